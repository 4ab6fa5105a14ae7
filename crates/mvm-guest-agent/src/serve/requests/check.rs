//! `check`: run one health check or probe now. Answered when the run has ended.

use crate::core::{Event, WaiterId};
use mvm_protocol::request::Check;

pub(super) fn event(waiter: WaiterId, fields: Check) -> Event {
    Event::CheckAsked(waiter, fields)
}
