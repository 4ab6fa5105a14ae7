//! A command under way, its output and its end.
//!
//! ```text
//!  runs ──exit──▶ exited: reads on ──pipes closed, 100 ms of silence, 1 s──▶ kills the rest ──▶ done
//!   │                 ▲
//!   │ time is up,     │ exit
//!   │ or is told to   │
//!   ▼                 │
//!  TERM ──250 ms──▶ KILL ──2 s──▶ given up: stuck in the kernel
//! ```
//!
//! The command's own output is never cut off: what it wrote before its end is in the pipe by then,
//! and is read however slowly the host takes it.

use crate::core::STOOD_STILL;
use crate::machine::freezer::Freezer;
use crate::machine::process::{Exit, KILL_GRACE, Launcher, Process, TERM_GRACE};
use crate::ports::flow::{OutputSource, Sink};
use mvm_protocol::dev::channel::{STDERR, STDOUT};
use mvm_protocol::signal;
use rustix::fd::OwnedFd;
use rustix::process::Signal;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// After the end of the command, so long a silence is the end of its output.
const SILENCE: Duration = Duration::from_millis(100);

/// So long after the end of the command its output ends in any case.
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// When the guest has stood still, so long it takes at most until it is known for how long.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

/// How much is read at most once all are killed: more than a pipe holds.
const DRAIN_LIMIT: usize = 1024 * 1024;

/// A command that was started.
pub(super) struct Running {
    launcher: Rc<Launcher>,
    process: Option<Process>,
    pid: u32,
    /// Standard output, or the terminal, and standard error.
    outputs: [OutputSource; 2],
    /// The command's end of its terminal. While nobody at all has that open the agent's end has
    /// neither output nor an end, and a command may close it and open it again.
    terminal: Option<OwnedFd>,
    state: State,
    deadline: Option<Instant>,
    /// The deadline that passed while the guest stood still, until it is known for how long.
    overdue: Option<Instant>,
    timed_out: bool,
    /// Since when it is frozen: its timeout does not count that time.
    frozen_since: Option<Instant>,
    finished: Rc<Cell<bool>>,
}

enum State {
    Runs,
    Terminated,
    Killed,
    Exited {
        limit: Instant,
        /// How much of its output is left to be read.
        own: u64,
        /// Whether more than that has come, from what it left running.
        from_others: bool,
    },
    Done(Outcome),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) exit: Exit,
    pub(super) timed_out: bool,
    /// Whether other processes were still writing when its output was ended.
    pub(super) truncated: bool,
    /// Whether it did not end at all.
    pub(super) unkillable: bool,
}

impl Outcome {
    /// For the line on the console.
    pub(super) fn in_words(&self) -> String {
        let how = match (self.exit.code, self.exit.signal) {
            _ if self.unkillable => "unkillable, left behind".to_owned(),
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(number)) => format!("ended by {}", signal::name(number)),
            (None, None) => "ended".to_owned(),
        };
        let timed_out = if self.timed_out { "timed out, " } else { "" };
        format!("{timed_out}{how}")
    }
}

/// What there is to be done about it.
pub(super) enum CommandEvent {
    Output(usize),
    Exited,
    DeadlinePassed,
}

impl Running {
    pub(super) fn new(
        launcher: Rc<Launcher>,
        process: Process,
        outputs: [OutputSource; 2],
        terminal: Option<OwnedFd>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            launcher,
            pid: process.pid.as_raw_pid().unsigned_abs(),
            process: Some(process),
            outputs,
            terminal,
            state: State::Runs,
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            overdue: None,
            timed_out: false,
            frozen_since: None,
            finished: Rc::default(),
        }
    }

    /// What freezes it, as long as it runs.
    pub(super) fn freezer(&self) -> Option<Freezer> {
        let process = self.process.as_ref()?;
        Some(process.freezer(Rc::clone(&self.finished)))
    }

    /// It was frozen or thawed: its timeout does not count frozen time.
    pub(super) fn frozen(&mut self, frozen: bool) {
        if frozen {
            self.frozen_since.get_or_insert_with(Instant::now);
        } else if let Some(since) = self.frozen_since.take()
            && let State::Runs = self.state
        {
            self.deadline = self.deadline.map(|deadline| deadline + since.elapsed());
        }
    }

    /// The guest has stood still for that time: its timeout does not count it. What is frozen does not
    /// count any time.
    pub(super) fn stood_still(&mut self, time: Duration) {
        if let (State::Runs, None) = (&self.state, self.frozen_since) {
            let deadline = self.overdue.take().or(self.deadline);
            self.deadline = deadline.map(|deadline| deadline + time);
        }
    }

    /// Its process id, and its process group's.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether there may be more on its standard error.
    pub(super) fn stderr_is_open(&self) -> bool {
        !self.outputs[1].is_closed()
    }

    /// How it ended, once it has and its output has been read.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Done(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Waits for the next thing; `room` is whether output can be taken. To be dropped at any time.
    pub(super) async fn next_event(&self, room: bool) -> CommandEvent {
        let [stdout, stderr] = &self.outputs;
        tokio::select! {
            () = stdout.readable(), if room => CommandEvent::Output(0),
            () = stderr.readable(), if room => CommandEvent::Output(1),
            () = self.exited() => CommandEvent::Exited,
            () = self.deadline_passed() => CommandEvent::DeadlinePassed,
        }
    }

    /// Does what is to be done about it.
    pub(super) async fn act(&mut self, event: CommandEvent, sink: &mut impl Sink) {
        match event {
            CommandEvent::Output(which) => self.read(which, sink),
            CommandEvent::Exited => {
                // From here on the end is when nobody else has it.
                self.terminal = None;
                let own = self.pending();
                let now = Instant::now();
                self.deadline = Some(now + SILENCE);
                self.state = State::Exited {
                    limit: now + OUTPUT_LIMIT,
                    own,
                    from_others: false,
                };
            }
            CommandEvent::DeadlinePassed => self.on_deadline(sink).await,
        }
        let closed = self.outputs.iter().all(OutputSource::is_closed);
        if closed && let State::Exited { .. } = self.state {
            self.end(false, sink).await;
        }
    }

    fn read(&mut self, which: usize, sink: &mut impl Sink) {
        let Some(output) = self.outputs.get_mut(which) else {
            return;
        };
        let read = output.read(channel(which), sink);
        if let State::Exited {
            limit,
            own,
            from_others,
        } = &mut self.state
            && read > 0
        {
            *from_others |= read as u64 > *own;
            *own = own.saturating_sub(read as u64);
            self.deadline = Some((*limit).min(Instant::now() + SILENCE));
        }
    }

    /// How many bytes of output wait to be taken.
    fn pending(&self) -> u64 {
        self.outputs.iter().map(OutputSource::pending).sum()
    }

    async fn on_deadline(&mut self, sink: &mut impl Sink) {
        match self.state {
            State::Runs if self.overdue.is_none() && self.is_overdue() => {
                self.overdue = self.deadline;
                self.deadline = Some(Instant::now() + TOLD_WITHIN);
            }
            State::Runs => {
                self.timed_out = true;
                self.terminate();
            }
            State::Terminated => self.kill(),
            State::Killed => self.give_up(),
            State::Exited {
                limit,
                own,
                from_others,
            } => {
                let now = Instant::now();
                let pending = self.pending();
                if now >= limit {
                    // What waits is read all the same; what is not its own would have gone on.
                    self.end(from_others || pending > own, sink).await;
                } else if pending > 0 {
                    self.deadline = Some(limit.min(now + SILENCE));
                } else {
                    self.end(false, sink).await;
                }
            }
            State::Done(_) => self.deadline = None,
        }
    }

    /// Whether its time was up so long ago that its command cannot have run all the time.
    fn is_overdue(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline.elapsed() > STOOD_STILL)
    }

    /// Gives it so much time to end by itself.
    pub(super) fn end_within(&mut self, time: Duration) {
        if let State::Runs = self.state {
            self.deadline = Some(Instant::now() + time);
        }
    }

    /// Asks it to end, and kills it if it does not.
    pub(super) fn terminate(&mut self) {
        if let (State::Runs, Some(process)) = (&self.state, &self.process) {
            process.signal(Signal::TERM);
            // What is stopped has to go on to end.
            process.signal(Signal::CONT);
            self.state = State::Terminated;
            self.deadline = Some(Instant::now() + TERM_GRACE);
        }
    }

    /// Kills it and all that it started.
    pub(super) fn kill(&mut self) {
        match (&mut self.state, &self.process) {
            (State::Runs | State::Terminated | State::Killed, Some(process)) => {
                process.kill();
                self.state = State::Killed;
                self.deadline = Some(Instant::now() + KILL_GRACE);
            }
            (State::Exited { limit, .. }, _) => {
                *limit = Instant::now();
                self.deadline = Some(*limit);
            }
            _ => {}
        }
    }

    /// Sends a signal to its process group.
    pub(super) fn signal(&mut self, signal: i32) {
        if signal == Signal::KILL.as_raw() {
            self.kill();
        } else if let (State::Runs | State::Terminated, Some(process)) =
            (&self.state, &self.process)
        {
            process.signal(to_signal(signal));
        }
    }

    fn give_up(&mut self) {
        self.finished.set(true);
        if let Some(process) = self.process.take() {
            self.launcher.abandon(&process);
        }
        self.done(Exit::default(), false, true);
    }

    /// Kills what is left, and reads what is left.
    async fn end(&mut self, truncated: bool, sink: &mut impl Sink) {
        let Some(process) = self.process.take() else {
            return;
        };
        self.finished.set(true);
        let exit = self.launcher.finish(process).await;
        let mut left = DRAIN_LIMIT;
        for (which, output) in self.outputs.iter_mut().enumerate() {
            loop {
                let read = output.read_now(channel(which), sink);
                left = left.saturating_sub(read);
                if read == 0 || left == 0 {
                    break;
                }
            }
        }
        self.done(exit, truncated || left == 0, false);
    }

    fn done(&mut self, exit: Exit, truncated: bool, unkillable: bool) {
        self.deadline = None;
        self.state = State::Done(Outcome {
            exit,
            timed_out: self.timed_out,
            truncated,
            unkillable,
        });
    }

    async fn exited(&self) {
        match (&self.state, &self.process) {
            (State::Runs | State::Terminated | State::Killed, Some(process)) => {
                process.exited().await;
            }
            _ => std::future::pending().await,
        }
    }

    async fn deadline_passed(&self) {
        match (self.deadline, &self.state) {
            // A frozen command has no deadline.
            (Some(_), State::Runs) if self.frozen_since.is_some() => std::future::pending().await,
            (Some(deadline), _) => sleep_until(deadline).await,
            (None, _) => std::future::pending().await,
        }
    }
}

fn channel(which: usize) -> u8 {
    if which == 0 { STDOUT } else { STDERR }
}

#[expect(
    unsafe_code,
    reason = "there is no safe way to name a real-time signal"
)]
fn to_signal(number: i32) -> Signal {
    // SAFETY: the protocol lets pass 1 to 64 alone, which the kernel all knows; the signal is sent
    // and nothing is done with it in this process.
    Signal::from_named_raw(number).unwrap_or_else(|| unsafe { Signal::from_raw_unchecked(number) })
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
