//! `sleep-prep`: make the guest ready to be frozen. Answered when it is, or has been rolled back.

use crate::core::{Event, WaiterId};
use mvm_protocol::lifecycle::{SleepPrep, Token};

pub(super) fn event(waiter: WaiterId, fields: SleepPrep, made_up: Token) -> Event {
    Event::SleepAsked(waiter, fields, made_up)
}
