//! How sessions and tasks reach the driver: a queue of messages, and their answers.

use super::facts::Facts;
use super::requests;
use super::watchers::Queue;
use crate::core::RunId;
use crate::core::ended::Ended;
use crate::core::lifecycle::Done;
use crate::core::open::Kind;
use crate::core::registry::Loaded;
use crate::core::signs::Marks;
use crate::core::worker::Sample;
use mvm_protocol::answer::{Answer, ErrorAnswer, ErrorCode};
use mvm_protocol::request::Request;
use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot};

/// What sessions and tasks tell the driver.
pub(super) enum Message {
    Ask {
        request: Request,
        watcher: Option<Rc<Queue>>,
        reply: oneshot::Sender<Response>,
    },
    RunEnded(RunId, Ended),
    StepDone(Done),
    StepRefused(String),
    Loaded(Loaded),
    /// The drop-ins could not be read for now, and why.
    NotLoaded(String),
    DropInsChanged,
    VmgenidChanged,
    MarksRead(Marks),
    Sampled(Sample),
    Reload,
    Stop,
    Open(Kind, oneshot::Sender<Response>),
    Closed(RunId),
}

/// What the driver responds.
pub(super) enum Response {
    Answer(Box<Answer>),
    /// A request of an extension may begin.
    Admitted(Admitted),
}

/// By which sessions and tasks reach the driver.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) messages: mpsc::UnboundedSender<Message>,
    facts: Rc<Facts>,
    stops: Rc<Cell<bool>>,
}

/// A request of an extension that the core has admitted. Dropping this reports that it has ended.
pub(crate) struct Admitted {
    pub(crate) run: RunId,
    /// Resolves when the request has to end, because the guest goes to sleep or the agent stops.
    pub(crate) end: oneshot::Receiver<()>,
    messages: mpsc::UnboundedSender<Message>,
}

impl Admitted {
    pub(super) fn new(run: RunId, end: oneshot::Receiver<()>, handle: &Handle) -> Self {
        let messages = handle.messages.clone();
        Self { run, end, messages }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Closed(self.run));
    }
}

impl Handle {
    /// A handle, and where the driver receives what is sent by it.
    pub(super) fn new(facts: Facts) -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (messages, received) = mpsc::unbounded_channel();
        let facts = Rc::new(facts);
        let stops = Rc::default();
        let handle = Self {
            messages,
            facts,
            stops,
        };
        (handle, received)
    }

    /// Asks the core to admit a request of an extension.
    pub(crate) async fn open(&self, kind: Kind) -> Result<Admitted, ErrorAnswer> {
        let (reply, answer) = oneshot::channel();
        let _ = self.messages.send(Message::Open(kind, reply));
        match answer.await {
            Ok(Response::Admitted(admitted)) => Ok(admitted),
            Ok(Response::Answer(answer)) => match *answer {
                Answer::Error(error) => Err(error),
                _ => Err(stopping()),
            },
            Err(_) => Err(stopping()),
        }
    }

    /// Asks and waits for the answer. Each caller has one question at a time, so the queue is
    /// bounded by the number of connections.
    pub(crate) async fn ask(&self, request: Request) -> Answer {
        match requests::answer_alone(&request) {
            Some(answer) => answer,
            None => self.send(request, None).await,
        }
    }

    /// Asks for the status, and subscribes to every change after it.
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
        match answer.await {
            Ok(Response::Answer(answer)) => *answer,
            Ok(Response::Admitted(_)) | Err(_) => Answer::Error(stopping()),
        }
    }

    /// What does not change.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A drop-in folder has changed.
    pub(crate) fn drop_ins_changed(&self) {
        let _ = self.messages.send(Message::DropInsChanged);
    }

    /// The kernel says that the VM's generation id is another one.
    pub(crate) fn vmgenid_changed(&self) {
        let _ = self.messages.send(Message::VmgenidChanged);
    }

    /// The marks of a restore were read.
    pub(crate) fn marks_read(&self, marks: Marks) {
        let _ = self.messages.send(Message::MarksRead(marks));
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
    pub(crate) fn is_stopping(&self) -> bool {
        self.stops.get()
    }
}

/// What is answered to whom an agent that stops has nothing else to say.
pub(crate) fn stopping() -> ErrorAnswer {
    ErrorAnswer::new(ErrorCode::Busy, "the agent is stopping")
}
