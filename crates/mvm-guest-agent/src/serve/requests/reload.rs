//! `reload`: read the drop-ins anew. Answered when they have been read.

use crate::core::{Event, WaiterId};

pub(super) fn event(waiter: WaiterId) -> Event {
    Event::ReloadAsked(Some(waiter))
}
