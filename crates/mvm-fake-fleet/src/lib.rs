//! For tests alone: the agents of many VMs in one process, each on a Unix socket of its own in a folder
//! of `$MVM_HOME`, each behaving as it is told.
//!
//! They speak by the protocol's own types, on one thread for all: ten thousand of them take some tens of
//! megabytes. The VMs are another's to `mvmctl`: their `vm.json` has a pool and, where they do not run,
//! a state.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "for tests alone"
)]

mod agent;
mod answers;

use agent::Agent;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// How an agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// It answers: idle for so long.
    Idle(Duration),
    /// It answers: busy.
    Busy,
    /// It answers: idle, and held by an open command.
    Held,
    /// It answers: no verdict on its health yet.
    Starting,
    /// It answers as an idle one, each time after so long.
    Slow(Duration),
    /// It is idle and busy in turn, so long each.
    Flapping(Duration),
    /// It answers, and closes each connection after so long.
    Dying(Duration),
    /// Its guest was restored from a snapshot: connections of before are silent for ever, new ones are
    /// answered.
    Restored,
    /// It takes connections, and says nothing.
    Stalled,
    /// What it sends is no answer.
    Garbage,
    /// Nobody listens.
    Dead,
    /// Its record says that it is asleep, and nobody listens.
    Asleep,
    /// Its folder is gone.
    Gone,
}

impl FromStr for Behaviour {
    type Err = String;

    /// `idle`, `idle:30`, `busy`, `slow:2`, `flapping:1`…: seconds behind the colon.
    fn from_str(text: &str) -> Result<Self, String> {
        let (word, secs) = text.split_once(':').unwrap_or((text, "3600"));
        let secs: f64 = secs.parse().map_err(|_| format!("no seconds: {text}"))?;
        let duration = Duration::from_secs_f64(secs);
        Ok(match word {
            "idle" => Self::Idle(duration),
            "busy" => Self::Busy,
            "held" => Self::Held,
            "starting" => Self::Starting,
            "slow" => Self::Slow(duration),
            "flapping" => Self::Flapping(duration),
            "dying" => Self::Dying(duration),
            "restored" => Self::Restored,
            "stalled" => Self::Stalled,
            "garbage" => Self::Garbage,
            "dead" => Self::Dead,
            "asleep" => Self::Asleep,
            "gone" => Self::Gone,
            _ => return Err(format!("no behaviour: {text}")),
        })
    }
}

/// What all of a fleet's guests have in common.
#[derive(Debug, Clone, Default)]
pub struct Guests {
    /// The label `pool` of each; by name if none.
    pub pool: Option<String>,
    /// Whether all text of theirs is of the kind that breaks formats and terminals.
    pub is_hostile: bool,
}

/// The agents, until it is dropped.
#[derive(Debug)]
pub struct FakeFleet {
    home: PathBuf,
    vms: BTreeMap<String, watch::Sender<Behaviour>>,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Add(String, watch::Receiver<Behaviour>, mpsc::Sender<()>),
    End,
}

impl FakeFleet {
    /// No agents yet, in that `$MVM_HOME`.
    pub fn start(home: &Path, guests: Guests) -> Self {
        let (orders, mut received) = tokio::sync::mpsc::unbounded_channel();
        let vms = home.join("vms");
        std::fs::create_dir_all(&vms).unwrap();
        allow_descriptors();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                while let Some(Order::Add(name, behaviour, done)) = received.recv().await {
                    let agent = Agent::new(&vms, &name, behaviour, guests.clone());
                    tokio::spawn(agent.run(done));
                }
            });
        });
        Self {
            home: home.to_owned(),
            vms: BTreeMap::new(),
            orders,
            thread: Some(thread),
        }
    }

    /// One VM more, or another behaviour of one that is there. It is so when this returns.
    pub fn set(&mut self, name: &str, behaviour: Behaviour) {
        if let Some(vm) = self.vms.get(name) {
            vm.send_replace(behaviour);
            return;
        }
        let (sender, receiver) = watch::channel(behaviour);
        let (done, is_done) = mpsc::channel();
        self.orders
            .send(Order::Add(name.to_owned(), receiver, done))
            .unwrap();
        is_done.recv().unwrap();
        self.vms.insert(name.to_owned(), sender);
    }

    /// `$MVM_HOME`.
    pub fn home(&self) -> &Path {
        &self.home
    }
}

impl Drop for FakeFleet {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// As many as the hard limit allows.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
