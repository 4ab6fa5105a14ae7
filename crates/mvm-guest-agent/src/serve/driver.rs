//! The loop around the core: carries events in, and actions out.

use super::extension::Extension;
use super::facts::Facts;
use super::handle::{Admitted, Handle, Message, Response};
use super::notify;
use super::requests::{self, Reply};
use super::watchers::{Queue, Watchers};
use crate::core::lifecycle::Done;
use crate::core::sleeping::{StepWork, Work};
use crate::core::{Action, Core, Event, RunId, WaiterId};
use crate::machine::console::say;
use crate::machine::interface::Machine;
use crate::machine::journal::JournalWriter;
use mvm_protocol::Lenient;
use mvm_protocol::answer::{self, Change};
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::request::Request;
use mvm_protocol::status::{Lifecycle, Restored};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// How long the end of commands is waited for at shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// After so many messages others have their turn: hundreds of hosts may ask at once.
const IN_A_ROW: u32 = 8;

/// The owner of the core.
pub(crate) struct Driver<M, E> {
    core: Core,
    handle: Handle,
    messages: mpsc::UnboundedReceiver<Message>,
    machine: Rc<M>,
    extension: E,
    journal: JournalWriter,
    notify_port: Option<u32>,
    /// Why the drop-ins could not be read the last time, if so.
    not_loaded: Option<String>,
    /// What tells the host that the guest is there, until a host has taken it.
    notifying: Option<AbortHandle>,
    watchers: Watchers,
    /// Who waits for the core. At most one a connection, so that a list is as good as a table, and
    /// smaller.
    waiting: Vec<(WaiterId, oneshot::Sender<Response>)>,
    /// By which each command, and each open request of an extension, is told to end.
    running: Vec<(RunId, oneshot::Sender<()>)>,
    step: Option<oneshot::Sender<()>>,
    next_waiter: u64,
}

/// Takes out what is listed under a number.
fn take<K: PartialEq, V>(list: &mut Vec<(K, V)>, key: &K) -> Option<V> {
    let at = list.iter().position(|(other, _)| other == key)?;
    Some(list.swap_remove(at).1)
}

impl<M: Machine, E: Extension> Driver<M, E> {
    pub(crate) fn new(
        core: Core,
        facts: Facts,
        machine: M,
        extension: E,
        notify_port: Option<u32>,
    ) -> Self {
        let (handle, messages) = Handle::new(facts);
        Self {
            core,
            handle,
            messages,
            machine: Rc::new(machine),
            extension,
            journal: JournalWriter::default(),
            notify_port,
            not_loaded: None,
            notifying: None,
            watchers: Watchers::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            step: None,
            next_waiter: 0,
        }
    }

    /// By which others reach this driver.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until it is told to stop, and then until no command runs.
    pub(crate) async fn run(mut self) -> io::Result<()> {
        self.notify();
        self.handle_event(Event::Tick);
        let mut in_a_row = 0;
        loop {
            self.machine.set_deadline(self.core.deadline())?;
            tokio::select! {
                passed = self.machine.deadline_passed() => {
                    passed?;
                    self.handle_event(Event::Tick);
                }
                message = self.messages.recv() => match message {
                    Some(Message::Stop) | None => break,
                    Some(message) => self.take(message),
                },
            }
            in_a_row += 1;
            if in_a_row >= IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
        self.end_commands().await;
        if self.core.thaws_when_stopped() {
            let thawed = self.machine.run_step(Work::Thaw, STOP_WITHIN).await;
            say!("thawed: {}", thawed.detail.unwrap_or_default());
        }
        Ok(())
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Ask {
                request,
                watcher,
                reply,
            } => self.asked(request, watcher, reply),
            Message::RunEnded(run, ended) => {
                take(&mut self.running, &run);
                self.handle_event(Event::RunEnded(run, ended));
            }
            Message::StepDone(done) => {
                self.step = None;
                self.handle_event(Event::StepDone(done));
            }
            Message::StepRefused(why) => self.handle_event(Event::StepRefused(why)),
            Message::Loaded(loaded) => {
                say!(
                    "{} integrations and {} probes loaded",
                    loaded.integrations.len(),
                    loaded.probes.len()
                );
                for error in loaded.errors.iter().take(20) {
                    say!("rejected {}: {}", error.file, error.message);
                }
                self.not_loaded = None;
                self.handle_event(Event::DropInsLoaded(Ok(loaded)));
            }
            Message::NotLoaded(why) => {
                // Tried again each second.
                if self.not_loaded.as_ref() != Some(&why) {
                    say!("the drop-ins cannot be read, and stay as they are: {why}");
                    self.not_loaded = Some(why.clone());
                }
                self.handle_event(Event::DropInsLoaded(Err(why)));
            }
            Message::DropInsChanged => self.handle_event(Event::DropInsChanged),
            Message::VmgenidChanged => self.handle_event(Event::VmgenidChanged),
            Message::MarksRead(marks) => self.handle_event(Event::MarksRead(marks)),
            Message::Sampled(sample) => self.handle_event(Event::Sampled(sample)),
            Message::Reload => self.handle_event(Event::ReloadAsked(None)),
            Message::Stop => {}
            Message::Open(kind, reply) => {
                self.next_waiter += 1;
                let waiter = WaiterId(self.next_waiter);
                self.waiting.push((waiter, reply));
                self.handle_event(Event::OpenAsked(waiter, kind));
            }
            Message::Closed(run) => {
                take(&mut self.running, &run);
                self.handle_event(Event::Closed(run));
            }
        }
    }

    fn asked(
        &mut self,
        request: Request,
        watcher: Option<Rc<Queue>>,
        reply: oneshot::Sender<Response>,
    ) {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        let (facts, now) = (self.handle.facts(), self.machine.now());
        match requests::apply(request, waiter, &self.core, facts, E::PROFILE, now) {
            Reply::Now(answer) => {
                if let Some(queue) = watcher {
                    self.watchers.add(&queue);
                }
                let _ = reply.send(Response::Answer(answer));
            }
            Reply::Later(event) => {
                self.waiting.push((waiter, reply));
                self.handle_event(event);
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        let actions = self.core.handle(event, self.machine.now());
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(run, command) => {
                let (cancel, cancelled) = oneshot::channel();
                self.running.push((run, cancel));
                let machine = Rc::clone(&self.machine);
                let messages = self.handle.messages.clone();
                tokio::task::spawn_local(async move {
                    let ended = machine.run(run, command, cancelled).await;
                    let _ = messages.send(Message::RunEnded(run, ended));
                });
            }
            Action::Kill(run) | Action::End(run) => {
                if let Some(end) = take(&mut self.running, &run) {
                    let _ = end.send(());
                }
            }
            Action::Sample => {
                self.journal.catch_up(&*self.machine);
                let sample = self.machine.sample();
                // Not at once: where it takes longer than an interval the next one is due by then.
                let _ = self.handle.messages.send(Message::Sampled(sample));
            }
            Action::LoadDropIns => {
                let machine = Rc::clone(&self.machine);
                let messages = self.handle.messages.clone();
                tokio::task::spawn_local(async move {
                    let message = match machine.load_drop_ins().await {
                        Ok(loaded) => Message::Loaded(loaded),
                        Err(error) => Message::NotLoaded(error.to_string()),
                    };
                    let _ = messages.send(message);
                });
            }
            Action::Step(step) => self.begin_step(*step),
            Action::CancelStep => {
                if let Some(cancel) = self.step.take() {
                    let _ = cancel.send(());
                }
            }
            Action::Keep(journal) => {
                // The writer logs it and tries again.
                let _ = self.journal.keep(journal, &*self.machine);
            }
            Action::Log(line) => say!("{line}"),
            Action::Woke => self.notify(),
            Action::Publish(change) => {
                match &change {
                    Change::Lifecycle {
                        lifecycle: Lenient::Known(lifecycle),
                    } => {
                        say!("lifecycle: {}", lifecycle.as_str());
                        // Nothing goes out of a guest that sleeps. Awake again, it tells anew.
                        if *lifecycle != Lifecycle::Running {
                            self.stop_notifying();
                        }
                    }
                    Change::Restored {
                        restored:
                            Restored {
                                by: Lenient::Known(by),
                                ..
                            },
                    } => say!("restored, and no host has announced it: {}", by.as_str()),
                    _ => {}
                }
                self.watchers.publish(answer::Event {
                    at: self.machine.now().wall,
                    change,
                });
            }
            Action::Answer(waiter, answer) => self.respond(waiter, Response::Answer(answer)),
            Action::Admit(waiter, run) => self.admit(waiter, run),
            Action::FreezeJobs => self.extension.freeze(),
            Action::ThawJobs => self.extension.thaw(),
            Action::StoodStill(time) => self.extension.stood_still(time),
        }
    }

    fn respond(&mut self, waiter: WaiterId, response: Response) {
        if let Some(reply) = take(&mut self.waiting, &waiter) {
            let _ = reply.send(response);
        }
    }

    fn admit(&mut self, waiter: WaiterId, run: RunId) {
        let (sender, end) = oneshot::channel();
        self.running.push((run, sender));
        // If nobody waits any more, it is closed again by being dropped.
        let admitted = Admitted::new(run, end, &self.handle);
        self.respond(waiter, Response::Admitted(admitted));
    }

    /// Tells the host that the guest is there, if it wants to be told.
    fn notify(&mut self) {
        self.stop_notifying();
        if let Some(port) = self.notify_port {
            let task = tokio::task::spawn_local(notify::notify(port, self.handle()));
            self.notifying = Some(task.abort_handle());
        }
    }

    fn stop_notifying(&mut self) {
        if let Some(task) = self.notifying.take() {
            task.abort();
        }
    }

    /// The journal comes first.
    fn begin_step(&mut self, step: StepWork) {
        let messages = self.handle.messages.clone();
        if let Err(error) = self.journal.keep(step.journal, &*self.machine)
            && step.needs_journal
        {
            let why = format!("not begun: the journal cannot be kept: {error}");
            let _ = messages.send(Message::StepRefused(why));
            return;
        }
        let (cancel, mut cancelled) = oneshot::channel();
        self.step = Some(cancel);
        let machine = Rc::clone(&self.machine);
        tokio::task::spawn_local(async move {
            let done = match step.work {
                Work::Command(run, command) => machine.run(run, command, cancelled).await.to_step(),
                work => {
                    tokio::select! {
                        done = machine.run_step(work, step.limit) => done,
                        Ok(()) = &mut cancelled => Done {
                            outcome: Outcome::TimedOut,
                            duration_ms: 0,
                            detail: Some("left behind: the sleep was ended".to_owned()),
                        },
                    }
                }
            };
            let _ = messages.send(Message::StepDone(done));
        });
    }

    /// Ends what runs, so that nothing outlives the agent.
    async fn end_commands(&mut self) {
        let mut left: Vec<RunId> = self.core.runs().collect();
        for (_, end) in self.running.drain(..) {
            let _ = end.send(());
        }
        // One that freezes must not go on behind the thaw.
        let mut step = self.step.take().and_then(|cancel| cancel.send(()).ok());
        let open = async {
            while !left.is_empty() || step.is_some() {
                match self.messages.recv().await {
                    Some(Message::StepDone(_)) => step = None,
                    Some(Message::RunEnded(run, _) | Message::Closed(run)) => {
                        left.retain(|other| *other != run);
                    }
                    Some(_) => {}
                    None => break,
                }
            }
        };
        // A host that does not read keeps what it has open, and nothing else.
        let ended = async { tokio::join!(open, self.extension.shut_down()) };
        if tokio::time::timeout(STOP_WITHIN, ended).await.is_err() {
            say!("stopping although a command cannot be ended");
        }
    }
}
