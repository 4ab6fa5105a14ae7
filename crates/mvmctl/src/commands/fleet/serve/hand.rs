//! The seam between what decides and what acts.
//!
//! The [owner](super::owner) asks `mvm_fleet::decide` for a plan whenever the view has changed or time
//! alone may have changed the plan, at most about once a second, at once when a connection waits. It
//! gives each action of the plan to the [`Hand`], which begins it on a task of its own and returns at
//! once. From then on the VM is under way (`Facts::under_way`) and nothing else is begun for it, until
//! the hand says [`Inputs::ended`](super::inputs::Inputs::ended): exactly once for each action, whatever
//! comes of it.
//!
//! What the hand owes:
//!
//! - Right before a sleep or a pause it asks the agent for its status once more, and says
//!   `Outcome::Skipped` if the guest is not idle any more.
//! - What must outlive this program it notes in the VM's folder *before* it says that an action has
//!   ended: `VmFolder::note` (made by the fleet, paused by the fleet, the last failure). The owner reads
//!   the folder when it is told of the end, and counts failed clones by itself.
//! - Connections that come for a pool wait by
//!   [`Inputs::connection`](super::inputs::Inputs::connection), which tells the policy's demand by being
//!   waited for, and gives the VM that takes them.

use super::inputs::Inputs;
use mvm_fleet::Policy;
use mvm_fleet::policy::{Action, PoolPolicy};
use std::pin::Pin;
use std::sync::Arc;

/// An action that is to be done, and what the policy says of its pool.
#[derive(Debug, Clone)]
#[expect(dead_code, reason = "of the hand, which is being written")]
pub(super) struct Task {
    pub(super) action: Action,
    pub(super) pool: PoolPolicy,
}

/// What acts.
pub(super) trait Hand {
    /// How many actions may be under way at once.
    fn at_once(&self) -> usize;

    /// Begins an action, and returns at once.
    fn start(&mut self, task: Task);

    /// The policy is this from now on: its listeners are to be opened, those of others closed. Called
    /// once at the start, too.
    fn policy(&mut self, policy: &Arc<Policy>);

    /// The program is to end: nothing new is begun, connections that are held are closed. Done when what
    /// should not be broken off has ended.
    fn end(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>>;
}

/// The hand of this program. There is none yet: what the policy asks for is decided and told, and not
/// done.
pub(super) fn hand(_inputs: &Inputs) -> Option<Box<dyn Hand>> {
    None
}
