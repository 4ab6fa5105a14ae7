//! The policy: who sleeps, who wakes, who is made, who is ended. A pure function of the view, the
//! policy, what is under way, and the time.
//!
//! ```text
//!                    clone
//!      (nothing) ───────────────▶ starting ──▶ busy ◀──▶ idle          the guest's own doing
//!          ▲                          ▲                  │ ▲ │
//!          │                          │     idle_pause_  │ │ │ idle_sleep_after
//!          │                     wake │     after: pause │ │ │ sleep
//!          │                          │                  ▼ │ resume
//!          │ asleep_remove_after      │     paused ───────┘ │
//!          │ remove                asleep ◀── sleep ──┘     │
//!          │                          ▲─────────────────────┘
//!          │ remove (made by the fleet)          max_lifetime: stop
//!          └──────────────────────── stopped ◀─── idle, paused; at twice that busy, starting
//!
//!      unknown: no arrow leads from it or to it. It counts as busy, and is left alone.
//! ```
//!
//! **The happy path.** A pool has `min = 0`, `max = 20`, `spare = 0`, a `golden` and both idle periods.
//! A connection comes: there is nothing, so one is cloned. It works, and gets idle. After
//! `idle_pause_after` by its guest's clock it is paused, after `idle_sleep_after` in all it is put to
//! sleep. The next connection wakes it. Nobody comes for `asleep_remove_after`: it is removed.
//!
//! In each pool the decision first counts. *Taken* are those that are busy, starting, unknown or on
//! their way; `wanted` is taken and `spare`, at least `min`, at most `max`. What is missing is brought
//! up: paused ones are resumed, then sleepers woken, then clones made. A paused one is there at once and
//! its memory is taken already; were it left for last, as pauses go before sleeps, pools would wake
//! sleepers all day while their paused ones stand by. What is idle beyond is put down, the one that has been idle for longest first, each when its own period is over. Then what is
//! too old or left over is ended and removed.
//!
//! How it could go wrong, and does not:
//!
//! - *A VM that works is put to sleep.* Only `idle` leads down: said by the agent, for the whole period
//!   by the guest's clock, and not longer than the VM runs without a break, since a `touch`, and since
//!   the host's clocks jumped ([`View::idle_for`](crate::View::idle_for)). Between decision and action a
//!   guest may begin to work: whoever acts asks once more, and skips it then ([`Outcome::Skipped`]).
//!   The one exception is asked for: at twice `max_lifetime` a VM is stopped whatever it does.
//! - *A lost view looks like an empty or idle fleet.* Until all VMs of a pool have answered or failed
//!   once nothing at all is done in it; those that failed are unknown, count as busy towards `wanted`
//!   and `max`, and do not count as running towards `min` when others are to be put down.
//! - *Never under `min`.* What is put down must leave `min` that are busy or idle. Those on their way
//!   do not count: they may fail. Where `min` equals `max`, one that is over its lifetime has nobody to
//!   stand in for it, and stays until twice that.
//! - *Never over `max`.* Paused ones hold memory: they count, and so does what is on its way down,
//!   until it is there. Clones are made only while the sleepers, too, are within `max`; else a pool
//!   whose sleepers cannot be woken would grow by a clone at each try.
//! - *Flapping.* What is brought up has run for the whole period before it can go down, since its idle
//!   time counts from there. What went down is brought up again for `spare` only once it has been down
//!   for the period that put it there. Connections that wait, and `min`, do not wait for that: they are
//!   reasons from outside, and those who are longest down go first.
//! - *One that is too old sleeps for ever*, and connections wait in vain: where there is no `golden` to
//!   clone in its place, connections and `min` bring it up all the same, and it has one more lifetime.
//! - *Fifty connections wake fifty.* One that is starting or on its way is enough for all of them.
//! - *That one hangs*, and with it all who wait: once it has taken longer than one should, the next one
//!   is brought up beside it, and so on up to `max`.
//! - *A failure is repeated for ever.* Each action that failed is left for a pause that grows from 10 s
//!   to 10 min; what sleeps badly runs on meanwhile. A clone that fails holds up the pool's clones alone,
//!   and so does one that crashes as soon as it is made ([`fates`]).
//! - *Two actions on one VM.* What is under way is left out and counted as what it will be; each VM is
//!   in one list, and each list gives an action at most.
//! - *It is killed.* It has no memory: when a VM came to be what it is, whether the fleet made or paused
//!   it, and what failed, stand in its folder. What was under way is found as the folders say, a start
//!   that was broken off is removed.
//! - *The wall clock was set back*, and folders are from the future: their periods count as not begun.
//!
//! [`Outcome::Skipped`]: crate::Outcome::Skipped

mod clones;
mod decision;
mod file;
mod members;
mod plan;
mod terms;
#[cfg(test)]
mod tests;

use crate::{ActionKind, Now, View};
pub use clones::{Crashed, Fates, fates};
use decision::Decision;
pub use file::{Policy, PolicyError, Problem};
use members::Members;
pub use plan::{Action, Cause, Facts, Held, Old, Plan, Reason, UnderWay};
use std::collections::BTreeMap;
pub use terms::{PoolPolicy, Port, WakeListener};

/// What is to be done now. VMs of pools that the policy does not name are left alone.
///
/// [`View::tick`] is to be called with the same time before: a view from before a host's suspension
/// decides wrongly.
pub fn decide(view: &View, policy: &Policy, facts: &Facts, now: &Now) -> Plan {
    let mut pools: BTreeMap<&str, Members> = policy
        .pools()
        .map(|(name, _)| (name, Members::default()))
        .collect();
    for vm in view.vms() {
        if let Some(members) = pools.get_mut(vm.pool()) {
            members.add(vm, facts.under_way.get(vm.name()), view, now);
        }
    }
    // Clones whose folders are not there yet.
    for (name, under_way) in &facts.under_way {
        if under_way.kind == ActionKind::Clone
            && view.vm(name).is_none()
            && let Some(members) = pools.get_mut(under_way.pool.as_str())
        {
            members.add_coming(name, under_way, now);
        }
    }
    let mut plan = Plan::default();
    for (name, policy) in policy.pools() {
        if let Some(members) = pools.remove(name) {
            Decision::new(name, policy, members, view, facts, *now, &mut plan).run();
        }
    }
    // Stable: within a kind by pool, and within a pool as it was decided.
    plan.actions.sort_by_key(|action| action.kind);
    plan
}
