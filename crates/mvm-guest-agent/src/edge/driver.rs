//! The loop around the core: carries events in, and actions out.

use super::console::say;
use super::journal::Keeper;
use super::notify;
use super::system::Facts;
use super::watchers::{Queue, Watchers};
use super::world::World;
use crate::core::ended::Ended;
use crate::core::lifecycle::Done;
#[cfg(feature = "dev")]
use crate::core::open::Kind;
use crate::core::registry::Loaded;
use crate::core::sleeping::{StepWork, Work, command_done};
use crate::core::{Action, Core, Event, RunId, WaiterId};
#[cfg(feature = "dev")]
use crate::dev::Dev;
use crate::requests::{self, Reply};
use mvm_protocol::Lenient;
use mvm_protocol::answer::{self, Answer, Change, ErrorAnswer, ErrorCode};
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::request::Request;
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long the end of commands is waited for at shutdown.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// What sessions and tasks tell the driver.
enum Message {
    Ask {
        request: Request,
        watcher: Option<Rc<Queue>>,
        reply: oneshot::Sender<Answer>,
    },
    RunEnded(RunId, Ended),
    StepDone(Done),
    StepRefused(String),
    Loaded(Loaded),
    DropInsChanged,
    Reload,
    Stop,
    #[cfg(feature = "dev")]
    Open(Kind, oneshot::Sender<Result<Admitted, ErrorAnswer>>),
    #[cfg(feature = "dev")]
    Closed(RunId),
}

/// By which sessions and tasks reach the driver.
#[derive(Clone)]
pub(crate) struct Handle {
    messages: mpsc::UnboundedSender<Message>,
    facts: Rc<Facts>,
    stops: Rc<Cell<bool>>,
    #[cfg(feature = "dev")]
    dev: Rc<Dev>,
}

/// What a host was let have, for as long as this is kept.
#[cfg(feature = "dev")]
pub(crate) struct Admitted {
    pub(crate) run: RunId,
    /// Comes when it has to end, since the guest goes to sleep or the agent stops.
    pub(crate) end: oneshot::Receiver<()>,
    messages: mpsc::UnboundedSender<Message>,
}

#[cfg(feature = "dev")]
impl Drop for Admitted {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Closed(self.run));
    }
}

impl Handle {
    /// Asks for a command, a file or a port.
    #[cfg(feature = "dev")]
    pub(crate) async fn open(&self, kind: Kind) -> Result<Admitted, ErrorAnswer> {
        let (reply, answer) = oneshot::channel();
        let _ = self.messages.send(Message::Open(kind, reply));
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// What dev builds have beyond others.
    #[cfg(feature = "dev")]
    pub(crate) fn dev(&self) -> &Rc<Dev> {
        &self.dev
    }

    /// Asks and waits for the answer. Each caller has one question at a time, so the queue is
    /// bounded by the number of connections.
    pub(crate) async fn ask(&self, request: Request) -> Answer {
        match requests::answer_alone(&request) {
            Some(answer) => answer,
            None => self.send(request, None).await,
        }
    }

    /// Asks for the status, and to be told of every change after it.
    pub(crate) async fn watch(&self, queue: Rc<Queue>) -> Answer {
        self.send(Request::Status, Some(queue)).await
    }

    async fn send(&self, request: Request, watcher: Option<Rc<Queue>>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let _ = self.messages.send(Message::Ask {
            request,
            watcher,
            reply,
        });
        answer.await.unwrap_or_else(|_| Answer::Error(stopping()))
    }

    /// What does not change.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A drop-in folder has changed.
    pub(crate) fn drop_ins_changed(&self) {
        let _ = self.messages.send(Message::DropInsChanged);
    }

    /// A SIGHUP came.
    pub(crate) fn reload(&self) {
        let _ = self.messages.send(Message::Reload);
    }

    /// A SIGTERM came.
    pub(crate) fn stop(&self) {
        self.stops.set(true);
        let _ = self.messages.send(Message::Stop);
    }

    /// Whether the agent is stopping. What it ends then is not ended by a sleep.
    #[cfg(feature = "dev")]
    pub(crate) fn is_stopping(&self) -> bool {
        self.stops.get()
    }
}

/// What is answered to whom an agent that stops has nothing else to say.
pub(crate) fn stopping() -> ErrorAnswer {
    ErrorAnswer::new(ErrorCode::Busy, "the agent is stopping")
}

/// The owner of the core.
pub(crate) struct Driver<W> {
    core: Core,
    handle: Handle,
    messages: mpsc::UnboundedReceiver<Message>,
    world: Rc<W>,
    keeper: Keeper,
    notify_port: Option<u32>,
    watchers: Watchers,
    waiting: HashMap<WaiterId, oneshot::Sender<Answer>>,
    running: HashMap<RunId, oneshot::Sender<()>>,
    step: Option<oneshot::Sender<()>>,
    next_waiter: u64,
    #[cfg(feature = "dev")]
    opening: HashMap<WaiterId, oneshot::Sender<Result<Admitted, ErrorAnswer>>>,
    #[cfg(feature = "dev")]
    open: HashMap<RunId, oneshot::Sender<()>>,
}

impl<W: World> Driver<W> {
    pub(crate) fn new(core: Core, facts: Facts, world: W, notify_port: Option<u32>) -> Self {
        let (sender, messages) = mpsc::unbounded_channel();
        let world = Rc::new(world);
        Self {
            core,
            handle: Handle {
                messages: sender,
                facts: Rc::new(facts),
                stops: Rc::default(),
                #[cfg(feature = "dev")]
                dev: Rc::new(Dev::new(world.launcher())),
            },
            messages,
            world,
            keeper: Keeper::default(),
            notify_port,
            watchers: Watchers::default(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            step: None,
            next_waiter: 0,
            #[cfg(feature = "dev")]
            opening: HashMap::new(),
            #[cfg(feature = "dev")]
            open: HashMap::new(),
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
        loop {
            self.world.set_deadline(self.core.deadline())?;
            tokio::select! {
                passed = self.world.deadline_passed() => {
                    passed?;
                    self.handle_event(Event::Tick);
                }
                message = self.messages.recv() => match message {
                    Some(Message::Stop) | None => break,
                    Some(message) => self.take(message),
                },
            }
        }
        self.end_commands().await;
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
                self.running.remove(&run);
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
                self.handle_event(Event::DropInsLoaded(loaded));
            }
            Message::DropInsChanged => self.handle_event(Event::DropInsChanged),
            Message::Reload => self.handle_event(Event::ReloadAsked(None)),
            Message::Stop => {}
            #[cfg(feature = "dev")]
            Message::Open(kind, reply) => {
                self.next_waiter += 1;
                let waiter = WaiterId(self.next_waiter);
                self.opening.insert(waiter, reply);
                self.handle_event(Event::OpenAsked(waiter, kind));
            }
            #[cfg(feature = "dev")]
            Message::Closed(run) => {
                self.open.remove(&run);
                self.handle_event(Event::Closed(run));
            }
        }
    }

    fn asked(
        &mut self,
        request: Request,
        watcher: Option<Rc<Queue>>,
        reply: oneshot::Sender<Answer>,
    ) {
        self.next_waiter += 1;
        let waiter = WaiterId(self.next_waiter);
        match requests::apply(request, waiter, &self.core, &self.handle.facts) {
            Reply::Now(answer) => {
                if let Some(queue) = watcher {
                    self.watchers.add(&queue);
                }
                let _ = reply.send(*answer);
            }
            Reply::Later(event) => {
                self.waiting.insert(waiter, reply);
                self.handle_event(event);
            }
        }
    }

    fn handle_event(&mut self, event: Event) {
        let actions = self.core.handle(event, self.world.now());
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Run(run, command) => {
                let (cancel, cancelled) = oneshot::channel();
                self.running.insert(run, cancel);
                let world = Rc::clone(&self.world);
                let messages = self.handle.messages.clone();
                tokio::task::spawn_local(async move {
                    let ended = world.run(run, command, cancelled).await;
                    let _ = messages.send(Message::RunEnded(run, ended));
                });
            }
            Action::Kill(run) => {
                if let Some(cancel) = self.running.remove(&run) {
                    let _ = cancel.send(());
                }
            }
            Action::Sample => {
                self.keeper.catch_up(&*self.world);
                let sample = self.world.sample();
                self.handle_event(Event::Sampled(sample));
            }
            Action::LoadDropIns => {
                let world = Rc::clone(&self.world);
                let messages = self.handle.messages.clone();
                tokio::task::spawn_local(async move {
                    let _ = messages.send(Message::Loaded(world.load_drop_ins().await));
                });
            }
            Action::Step(step) => self.begin_step(*step),
            Action::CancelStep => {
                if let Some(cancel) = self.step.take() {
                    let _ = cancel.send(());
                }
            }
            Action::Keep(journal) => {
                // Told and tried again by the keeper.
                let _ = self.keeper.keep(journal, &*self.world);
            }
            Action::Woke => self.notify(),
            Action::Publish(change) => {
                if let Change::Lifecycle {
                    lifecycle: Lenient::Known(lifecycle),
                } = &change
                {
                    say!("lifecycle: {}", lifecycle.as_str());
                }
                self.watchers.publish(answer::Event {
                    at: self.world.now().wall,
                    change,
                });
            }
            Action::Answer(waiter, answer) => self.answer(waiter, *answer),
            #[cfg(feature = "dev")]
            Action::Admit(waiter, run) => self.admit(waiter, run),
            #[cfg(feature = "dev")]
            Action::End(run) => {
                if let Some(end) = self.open.remove(&run) {
                    let _ = end.send(());
                }
            }
            #[cfg(feature = "dev")]
            Action::HoldJobs => self.handle.dev.hold_jobs(true),
            #[cfg(feature = "dev")]
            Action::ReleaseJobs => self.handle.dev.hold_jobs(false),
        }
    }

    fn answer(&mut self, waiter: WaiterId, answer: Answer) {
        #[cfg(feature = "dev")]
        if let Some(reply) = self.opening.remove(&waiter) {
            if let Answer::Error(error) = answer {
                let _ = reply.send(Err(error));
            }
            return;
        }
        if let Some(reply) = self.waiting.remove(&waiter) {
            let _ = reply.send(answer);
        }
    }

    #[cfg(feature = "dev")]
    fn admit(&mut self, waiter: WaiterId, run: RunId) {
        let (sender, end) = oneshot::channel();
        self.open.insert(run, sender);
        // If nobody waits any more, it is closed again by being dropped.
        let admitted = Admitted {
            run,
            end,
            messages: self.handle.messages.clone(),
        };
        if let Some(reply) = self.opening.remove(&waiter) {
            let _ = reply.send(Ok(admitted));
        }
    }

    /// Tells the host that the guest is there, if it wants to be told.
    fn notify(&self) {
        if let Some(port) = self.notify_port {
            tokio::task::spawn_local(notify::notify(port, self.handle()));
        }
    }

    /// The journal comes first.
    fn begin_step(&mut self, step: StepWork) {
        let messages = self.handle.messages.clone();
        if let Err(error) = self.keeper.keep(step.journal, &*self.world)
            && step.needs_journal
        {
            let why = format!("not begun: the journal cannot be kept: {error}");
            let _ = messages.send(Message::StepRefused(why));
            return;
        }
        let (cancel, mut cancelled) = oneshot::channel();
        self.step = Some(cancel);
        let world = Rc::clone(&self.world);
        tokio::task::spawn_local(async move {
            let done = match step.work {
                Work::Command(run, command) => {
                    command_done(&world.run(run, command, cancelled).await)
                }
                work => {
                    tokio::select! {
                        done = world.take(work, step.limit) => done,
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
        for (_, cancel) in self.running.drain() {
            let _ = cancel.send(());
        }
        #[cfg(feature = "dev")]
        for (run, end) in self.open.drain() {
            left.push(run);
            let _ = end.send(());
        }
        let ended = async {
            while !left.is_empty() {
                match self.messages.recv().await {
                    Some(Message::RunEnded(run, _)) => left.retain(|other| *other != run),
                    #[cfg(feature = "dev")]
                    Some(Message::Closed(run)) => left.retain(|other| *other != run),
                    Some(_) => {}
                    None => break,
                }
            }
            #[cfg(feature = "dev")]
            self.handle.dev.end_jobs().await;
        };
        if tokio::time::timeout(STOP_WITHIN, ended).await.is_err() {
            say!("stopping although a command cannot be ended");
        }
    }
}
