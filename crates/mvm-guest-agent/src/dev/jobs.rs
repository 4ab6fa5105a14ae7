//! Jobs: commands that go on when the connection that started them is closed.

use super::ring::Ring;
use super::running::{Outcome, Running};
use super::start::Started;
use super::terminal::Terminal;
use crate::core::Now;
use crate::machine::clock;
use crate::machine::freezer::Freezer;
use crate::machine::turns::between_pieces;
use crate::ports::audit::Audit;
use crate::ports::flow::{PIECE, Sink};
use crate::ports::reply::failed;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::exec::Exec;
use mvm_protocol::dev::jobs::{self as wire, JobSignal, JobState, KEPT_JOBS};
use mvm_protocol::dev::{DevAnswer, DevAnswerFrame};
use mvm_protocol::{MAX_BODY, Timestamp, signal};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// The jobs that are remembered, by number.
#[derive(Default)]
pub(super) struct Jobs {
    all: RefCell<BTreeMap<u64, Rc<Job>>>,
    last: Cell<u64>,
    frozen: Cell<bool>,
    /// How many are being started.
    starting: Rc<Cell<usize>>,
}

/// A slot for a job that is being started.
pub(super) struct JobSlot(Rc<Cell<usize>>);

impl Drop for JobSlot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One job.
pub(super) struct Job {
    number: u64,
    pid: u32,
    argv: Vec<String>,
    started_at: Timestamp,
    terminal: Option<Terminal>,
    freezer: Option<Freezer>,
    orders: mpsc::UnboundedSender<Order>,
    ring: RefCell<Ring>,
    /// How it ended, and when by either clock.
    ended: Cell<Option<(Outcome, Now)>>,
    /// There is more output, or it has ended.
    pub(super) news: Notify,
}

enum Order {
    Signal(i32),
    Freeze(bool),
    StoodStill(Duration),
}

/// Runs a job to its end, whoever is attached to it.
async fn supervise(
    job: Rc<Job>,
    mut running: Running,
    mut orders: mpsc::UnboundedReceiver<Order>,
    audit: Audit,
) {
    let mut output = Output {
        job: &job,
        buffer: vec![0; PIECE / 4],
    };
    let outcome = loop {
        between_pieces().await;
        if let Some(outcome) = running.outcome() {
            break outcome;
        }
        tokio::select! {
            event = running.next_event(true) => running.act(event, &mut output).await,
            Some(mut order) = orders.recv() => loop {
                match order {
                    Order::Signal(number) => running.signal(number),
                    Order::Freeze(frozen) => running.frozen(frozen),
                    Order::StoodStill(time) => running.stood_still(time),
                }
                // All at once, or a host could send them faster than they are taken.
                match orders.try_recv() {
                    Ok(next) => order = next,
                    Err(_) => break,
                }
            },
        }
    };
    audit.end(&outcome.in_words());
    job.ended.set(Some((outcome, clock::now())));
    job.news.notify_waiters();
}

/// Where a job's output goes.
struct Output<'a> {
    job: &'a Job,
    buffer: Vec<u8>,
}

impl Sink for Output<'_> {
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno> {
        let read = rustix::io::read(from, self.buffer.as_mut_slice())?;
        let bytes = self.buffer.get(..read).unwrap_or_default();
        self.job.ring.borrow_mut().push(channel, bytes);
        self.job.news.notify_waiters();
        Ok(read)
    }
}

impl Jobs {
    /// Begins a job with a command that was started.
    pub(super) fn begin(&self, asked: &Exec, started: Started, audit: Audit) -> DevAnswer {
        let number = self.last.get() + 1;
        self.last.set(number);
        let (orders, received) = mpsc::unbounded_channel();
        let job = Rc::new(Job {
            number,
            pid: started.running.pid(),
            argv: asked.argv.words().to_vec(),
            started_at: clock::now().wall,
            terminal: started.terminal,
            freezer: started.running.freezer(),
            orders,
            ring: RefCell::default(),
            ended: Cell::new(None),
            news: Notify::new(),
        });
        self.all.borrow_mut().insert(number, Rc::clone(&job));
        let pid = job.pid;
        tokio::task::spawn_local(supervise(job, started.running, received, audit));
        DevAnswer::JobStarted(wire::JobStarted { job: number, pid })
    }

    /// Reserves a slot, if need be by forgetting the job that ended first.
    pub(super) fn reserve_slot(&self) -> Result<JobSlot, ErrorAnswer> {
        let mut all = self.all.borrow_mut();
        let slot = || {
            self.starting.set(self.starting.get() + 1);
            JobSlot(Rc::clone(&self.starting))
        };
        if all.len() + self.starting.get() < KEPT_JOBS {
            return Ok(slot());
        }
        let ended = all
            .values()
            .filter_map(|job| Some((job.ended.get()?.1.mono, job.number)));
        let Some((_, first)) = ended.min() else {
            let message = format!("{KEPT_JOBS} jobs are running: end one with `job-signal`");
            return Err(ErrorAnswer::new(ErrorCode::Busy, message));
        };
        all.remove(&first);
        Ok(slot())
    }

    pub(super) fn find(&self, number: u64) -> Result<Rc<Job>, ErrorAnswer> {
        self.all.borrow().get(&number).cloned().ok_or_else(|| {
            let message = format!("no job {number}: `jobs` lists those that are remembered");
            ErrorAnswer::new(ErrorCode::NotFound, message)
        })
    }

    /// All that are remembered, shortened to what a frame holds.
    pub(super) fn list(&self, id: Option<u64>) -> DevAnswer {
        let all = self.all.borrow();
        let mut words = usize::MAX;
        loop {
            let jobs = all
                .values()
                .map(|job| job.described(self.frozen.get(), words));
            let answer = DevAnswer::Jobs(wire::Jobs {
                jobs: jobs.collect(),
            });
            let frame = DevAnswerFrame { answer, id };
            let length = serde_json::to_vec(&frame).map_or(0, |body| body.len());
            if length <= MAX_BODY || words == 0 {
                return frame.answer;
            }
            words = words.min(64 * 1024) / 2;
        }
    }

    pub(super) fn signal(&self, asked: JobSignal) -> Result<DevAnswer, ErrorAnswer> {
        let job = self.find(asked.job)?;
        if job.ended.get().is_some() {
            return Err(failed(format!("job {} has ended", asked.job)));
        }
        job.signal(asked.signal.number());
        Ok(DevAnswer::JobSignaled(wire::JobSignaled { job: asked.job }))
    }

    /// Freezes or thaws all.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.set(frozen);
        for job in self.all.borrow().values() {
            // At once, and not when the job's own task comes to it: the guest may be frozen by then.
            if let Some(freezer) = &job.freezer {
                freezer.set(frozen);
            }
            let _ = job.orders.send(Order::Freeze(frozen));
        }
    }

    /// The guest has stood still for that time: it counts for no timeout.
    pub(super) fn stood_still(&self, time: Duration) {
        for job in self.all.borrow().values() {
            let _ = job.orders.send(Order::StoodStill(time));
        }
    }

    /// Ends all, and waits until none is left.
    pub(super) async fn end(&self) {
        let all: Vec<_> = self.all.borrow().values().cloned().collect();
        for job in &all {
            job.signal(rustix::process::Signal::KILL.as_raw());
        }
        for job in &all {
            loop {
                let news = job.news.notified();
                if job.ended.get().is_some() {
                    break;
                }
                news.await;
            }
        }
    }
}

impl Job {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    pub(super) fn ring(&self) -> Ref<'_, Ring> {
        self.ring.borrow()
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.ended.get().map(|(outcome, _)| outcome)
    }

    pub(super) fn signal(&self, number: i32) {
        let _ = self.orders.send(Order::Signal(number));
    }

    /// As `jobs` lists it, with at most so many bytes of its arguments.
    fn described(&self, frozen: bool, words: usize) -> wire::Job {
        let ended = self.ended.get();
        let outcome = ended.map(|(outcome, _)| outcome);
        wire::Job {
            job: self.number,
            argv: shortened(&self.argv, words),
            pid: self.pid,
            state: match ended {
                Some(_) => JobState::Ended,
                None if frozen => JobState::Held,
                None => JobState::Running,
            }
            .into(),
            started_at: self.started_at,
            ended_at: ended.map(|(_, at)| at.wall),
            exit_code: outcome.and_then(|outcome| outcome.exit.code),
            signal: outcome
                .and_then(|outcome| outcome.exit.signal)
                .map(signal::name),
            timed_out: outcome.is_some_and(|outcome| outcome.timed_out),
            output_bytes: self.ring.borrow().end(),
        }
    }
}

/// The words up to so many bytes together, and `…` for the rest.
fn shortened(words: &[String], mut left: usize) -> Vec<String> {
    let mut kept = Vec::new();
    for word in words {
        if let Some(rest) = left.checked_sub(word.len() + 1) {
            left = rest;
            kept.push(word.clone());
        } else {
            let mut cut = left.min(word.len());
            while !word.is_char_boundary(cut) {
                cut -= 1;
            }
            kept.push(format!("{}…", word.get(..cut).unwrap_or_default()));
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn arguments_are_cut_at_character_boundaries() {
        let words = ["ls".to_owned(), "ü-long".to_owned(), "x".to_owned()];
        assert_eq!(shortened(&words, usize::MAX), words);
        assert_eq!(shortened(&words, 4), ["ls", "…"]);
        assert_eq!(shortened(&words, 5), ["ls", "ü…"]);
        assert_eq!(shortened(&words, 0), ["…"]);
    }
}
