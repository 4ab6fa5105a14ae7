//! What the owner of the view is told, and how.

use crate::feed::{Fed, Sink, WAITING};
use mvm_fleet::Policy;
use mvm_fleet::actions::Ended;
use mvm_fleet::metrics::Format;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// One thing that has come about.
#[derive(Debug)]
pub(in crate::commands::fleet) enum Input {
    /// In the folders, or on a VM's watch connection.
    Fed(Fed),
    /// An action has ended.
    Ended(Ended),
    /// A connection waits for a VM of a pool.
    Connection(String, oneshot::Sender<Given>),
    /// The policy is another.
    Policy(Policy),
    /// Somebody asks.
    Query(Query, oneshot::Sender<Reply>),
}

/// What is asked for.
#[derive(Debug)]
pub(in crate::commands::fleet) enum Query {
    Metrics(Format),
    Fleet,
    Pool(String),
    Plan,
    IsComplete,
}

/// What the owner says.
#[derive(Debug)]
pub(in crate::commands::fleet) enum Reply {
    /// It stands so.
    Text(String),
    /// The same, in pieces that belong behind each other.
    Pieces(Vec<String>),
    /// It stands so, and the view that it is made of is not complete: nobody may scale by it.
    Incomplete(String),
    /// There is no such pool.
    NoSuchPool {
        /// Those that there are.
        pools: Vec<String>,
    },
}

/// The VM that takes a connection. As long as this is there the VM serves one.
#[derive(Debug)]
pub(in crate::commands::fleet) struct Given {
    pub(super) vm: Arc<str>,
    /// One for each connection, and the owner's.
    joined: Arc<()>,
    cut: watch::Receiver<bool>,
}

impl Given {
    /// Whether it is the only one of its VM.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.joined) <= 2
    }

    /// Waits until the VM does not run any more.
    pub(super) async fn cut(&self) {
        // That the owner is gone ends it as well.
        let _ = self.cut.clone().wait_for(|cut| *cut).await;
    }
}

/// The connections of a VM, as the owner has them.
#[derive(Debug)]
pub(in crate::commands::fleet) struct Joined {
    joined: Arc<()>,
    cut: watch::Sender<bool>,
}

impl Default for Joined {
    fn default() -> Self {
        Self {
            joined: Arc::default(),
            cut: watch::Sender::new(false),
        }
    }
}

impl Joined {
    /// Gives the VM to one more.
    pub(super) fn give(&self, vm: Arc<str>) -> Given {
        Given {
            vm,
            joined: Arc::clone(&self.joined),
            cut: self.cut.subscribe(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(Arc::strong_count(&self.joined) - 1).unwrap_or(u32::MAX)
    }

    /// Ends them.
    pub(super) fn cut(&self) {
        self.cut.send_replace(true);
    }
}

/// The way to the owner. It is gone when all of these are.
#[derive(Debug, Clone)]
pub(in crate::commands::fleet) struct Inputs(mpsc::Sender<Input>);

impl Inputs {
    pub(in crate::commands::fleet) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Hands it in. An owner that has ended needs none.
    pub(in crate::commands::fleet) async fn send(&self, input: Input) {
        let _ = self.0.send(input).await;
    }

    /// An action has ended; see [`super::hand`].
    pub(in crate::commands::fleet) async fn ended(&self, ended: Ended) {
        self.send(Input::Ended(ended)).await;
    }

    /// A connection has come for a VM of that pool. Waits until there is an idle one that can take it, or
    /// one that was just brought up for it; for all that wait at once it is the same one. Dropping this
    /// gives up waiting. `None` if the program is about to end.
    pub(in crate::commands::fleet) async fn connection(&self, pool: &str) -> Option<Given> {
        let (answer, answered) = oneshot::channel();
        self.send(Input::Connection(pool.to_owned(), answer)).await;
        answered.await.ok()
    }

    /// The policy is another from now on.
    pub(in crate::commands::fleet) fn policy(&self, policy: Policy) {
        let inputs = self.clone();
        tokio::spawn(async move { inputs.send(Input::Policy(policy)).await });
    }

    /// Asks. `None` if the program is about to end.
    pub(in crate::commands::fleet) async fn ask(&self, query: Query) -> Option<Reply> {
        let (answer, answered) = oneshot::channel();
        self.send(Input::Query(query, answer)).await;
        answered.await.ok()
    }
}

impl Sink for Inputs {
    async fn feed(&self, fed: Fed) {
        self.send(Input::Fed(fed)).await;
    }
}
