//! The hand: carries out what the owner decides, and holds the connections that wait for it.
//!
//! ```text
//!   owner ── Order::Begin ──► an action, a future of its own:  restore, snapshot, pause, stop …
//!         ◄── Input::Ended ──┘
//!
//!   a pool's `wake` ──► held ── Input::Connection ──► owner: an idle VM, or the one just brought up
//!                         │ 60 s                        │ Given
//!                         ▼                             ▼
//!                       closed ◄── port not there ── joined to the VM's port ──► both sides have ended
//!                                  in those 60 s
//! ```
//!
//! The [owner](super::owner) asks `mvm_fleet::decide` for a plan whenever the view has changed or time
//! alone may have changed the plan, at most about once a second, at once when a connection waits. It
//! gives each action of the plan to the [`Hand`], which begins it. From then on the VM is under way
//! (`Facts::under_way`) and nothing else is begun for it, until the hand says that it has ended: exactly
//! once for each action, whatever comes of it.
//!
//! What is remembered here a restart may lose. All else is noted in the VM's folder *before* the owner is
//! told that an action has ended, since it looks there then. What one that was killed has left half done
//! is brought to its end first: [`mend`].
//!
//! How it could go wrong, and does not:
//!
//! - *A guest begins to work when it has just been decided that it sleeps*: it is asked once more, right
//!   before; `skipped`. A connection that comes after that waits for the end of the sleep, and then for
//!   the wake.
//! - *An action hangs.* Each has deadlines of its own, those of the command that it is.
//! - *Slow ones take all places.* There are [`AT_ONCE`] for what writes or reads a guest's memory for
//!   nobody in particular; what connections may wait for has as many again.
//! - *A skipped action is tried in a circle*, since the view has not heard yet of what it was skipped
//!   for: it is told [`REST`] late.
//! - *Connections pile up.* Each listener holds [`listen::MOST`] at most; the others stay in the kernel's
//!   queue.
//! - *A VM is put to sleep, or ends, under its connections*: they are cut when the owner has heard of it.
//!   They would stay open and silent for ever.

mod actions;
mod join;
mod listen;
mod mend;

use super::inputs::Inputs;
use crate::commands::Context;
use crate::report::Failure;
use actions::Job;
pub(super) use actions::note;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use listen::Connections;
pub(super) use mend::HalfDone;
use mvm_fleet::actions::Ended;
use mvm_fleet::policy::{Action, PoolPolicy, UnderWay};
use mvm_fleet::{Outcome, Policy};
use mvm_protocol::Timestamp;
use mvm_registry::{Home, VmName};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How many actions are under way at once that make VMs or put them down. Each writes or reads a guest's
/// memory.
const AT_ONCE: usize = 8;

/// How much later a skip is told.
const REST: Duration = Duration::from_secs(2);

/// How long what is under way may take to be undone or done, once the program is to end: a guest that is
/// being frozen is woken again, with its restore commands.
const LAST: Duration = Duration::from_secs(90);

/// An action that is to be done, and what the policy says of its pool.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) action: Action,
    pub(super) pool: PoolPolicy,
}

/// What the hand is to do.
#[derive(Debug)]
enum Order {
    Begin(Box<Task>),
    Mend(HalfDone, Box<PoolPolicy>),
}

/// What acts, as the owner has it.
#[derive(Debug)]
pub(super) struct Hand {
    orders: mpsc::UnboundedSender<Order>,
}

impl Hand {
    /// Whether that may be begun beside those that are under way.
    pub(super) fn has_room(under_way: &BTreeMap<String, UnderWay>, action: &Action) -> bool {
        let urgent = under_way.values().map(|it| it.is_urgent);
        let taken = urgent.filter(|it| *it == action.is_urgent());
        taken.count() < AT_ONCE
    }

    /// Begins an action, and returns at once.
    pub(super) fn begin(&self, task: Task) {
        // If it is gone the program is about to end.
        let _ = self.orders.send(Order::Begin(Box::new(task)));
    }

    /// Begins to bring something to its end.
    pub(super) fn mend(&self, half_done: HalfDone, pool: PoolPolicy) {
        let _ = self.orders.send(Order::Mend(half_done, Box::new(pool)));
    }
}

/// The hand's own side: runs what is under way. It is to be [run](Hands::run) beside the owner.
pub(super) struct Hands<'a> {
    context: &'a Context,
    home: Home,
    inputs: Inputs,
    orders: mpsc::UnboundedReceiver<Order>,
    under_way: FuturesUnordered<LocalBoxFuture<'a, Ended>>,
    /// What the owner is still to be told.
    ended: Option<Ended>,
    connections: Connections<'a>,
    cancelled: Arc<AtomicBool>,
}

/// Both sides of a hand that has listened nowhere and done nothing. Whoever calls this holds the fleet's
/// lock.
pub(super) fn hand(context: &Context, home: Home, inputs: Inputs) -> (Hand, Hands<'_>) {
    let (sender, orders) = mpsc::unbounded_channel();
    let hands = Hands {
        context,
        home,
        connections: Connections::new(context, inputs.clone()),
        inputs,
        orders,
        under_way: FuturesUnordered::new(),
        ended: None,
        cancelled: Arc::default(),
    };
    (Hand { orders: sender }, hands)
}

impl Hands<'_> {
    /// Listens where the policy says from now on, and nowhere else.
    ///
    /// # Errors
    ///
    /// An address cannot be listened on: then all is as it was.
    pub(super) fn listen(&mut self, policy: &Policy) -> Result<(), Failure> {
        self.connections.listen(policy)
    }

    /// Does what it is told, for ever. It may be dropped while it waits, and be called again.
    pub(super) async fn run(&mut self) -> std::convert::Infallible {
        loop {
            if let Some(ended) = &self.ended {
                self.inputs.ended(ended.clone()).await;
                self.ended = None;
            }
            tokio::select! {
                Some(order) = self.orders.recv() => self.take(order),
                Some(ended) = self.under_way.next() => self.ended = Some(ended),
                () = self.connections.next() => {}
            }
        }
    }

    /// Begins nothing more, closes the connections, has undone what can be, and waits for the end of what
    /// is under way.
    pub(super) async fn end(mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        drop(self.connections);
        let all = async { while self.under_way.next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST, all).await;
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Begin(task) => self.begin(*task),
            Order::Mend(half_done, pool) => self.mend(half_done, *pool),
        }
    }

    fn begin(&mut self, task: Task) {
        let job = Job {
            context: self.context,
            home: self.home.clone(),
            action: task.action,
            policy: task.pool,
            cancelled: Arc::clone(&self.cancelled),
        };
        self.under_way.push(Box::pin(async move {
            let (outcome, problem) = job.perform().await;
            if outcome == Outcome::Skipped {
                tokio::time::sleep(REST).await;
            }
            let action = job.action;
            Ended {
                at: now(),
                pool: action.pool,
                vm: action.vm,
                action: action.kind,
                outcome,
                reason: action.reason.to_string(),
                problem,
            }
        }));
    }

    fn mend(&mut self, half_done: HalfDone, pool: PoolPolicy) {
        let (context, home) = (self.context, self.home.clone());
        let cancelled = Arc::clone(&self.cancelled);
        self.under_way.push(Box::pin(async move {
            let mended = half_done.mend(context, &home, &pool, &cancelled).await;
            let problem = mended.err().map(|failure| failure.message);
            let outcome = if problem.is_some() {
                Outcome::Failed
            } else {
                Outcome::Ok
            };
            Ended {
                at: now(),
                pool: half_done.pool.into(),
                vm: half_done.vm.as_str().into(),
                action: half_done.what.kind(),
                outcome,
                reason: "it was left half done".to_owned(),
                problem,
            }
        }));
    }
}

/// What one that was killed has left half done, in the pools of a policy. What it has left that needs no
/// guest is removed. To be called before anything is decided; it blocks.
pub(super) fn half_done(home: &Home, policy: &Policy) -> Vec<HalfDone> {
    // What cannot be looked at has nothing that could be mended.
    let _ = mvm_vmm::removal::sweep(home);
    let entries = std::fs::read_dir(home.vms()).into_iter().flatten();
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        VmName::new(name.to_str()?).ok()
    });
    names
        .filter_map(|name| HalfDone::of(home, &name))
        .filter(|half_done| policy.pool(&half_done.pool).is_some())
        .collect()
}

/// This host's time.
fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_fleet::ActionKind;
    use mvm_fleet::policy::Reason;

    fn clone(reason: Reason) -> Action {
        Action {
            kind: ActionKind::Clone,
            vm: "web-9".into(),
            pool: "web".into(),
            reason,
        }
    }

    /// Or who waits at the door waits for spare ones to be made first.
    #[test]
    fn a_clone_for_which_connections_wait_has_a_place_beside_spare_ones() {
        let spare = clone(Reason::FewSpare { idle: 0, spare: 9 });
        let (waiting, old) = (1, None);
        let demanded = clone(Reason::Demand { waiting, old });
        let with = |action: &Action| -> BTreeMap<String, UnderWay> {
            let names = (0..AT_ONCE).map(|number| format!("web-{number}"));
            names
                .map(|name| (name, action.under_way(Duration::ZERO)))
                .collect()
        };
        for (all, one, has_room) in [
            (&spare, &spare, false),
            (&spare, &demanded, true),
            (&demanded, &demanded, false),
            (&demanded, &spare, true),
        ] {
            assert_eq!(Hand::has_room(&with(all), one), has_room, "{all:?} {one:?}");
        }
    }
}
