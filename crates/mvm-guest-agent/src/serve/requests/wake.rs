//! `wake`: let the guest run on. Answered when it does.

use crate::core::lifecycle::WakeAsked;
use crate::core::{Event, WaiterId};
use mvm_protocol::lifecycle::Wake;
use std::hash::BuildHasher;

pub(super) fn event(waiter: WaiterId, wake: Wake, hasher: &impl BuildHasher) -> Event {
    // A request is the same if all of it is: a host that wakes another clone sends other entropy.
    let fingerprint = hasher.hash_one(&wake);
    Event::WakeAsked(waiter, Box::new(WakeAsked { wake, fingerprint }))
}
