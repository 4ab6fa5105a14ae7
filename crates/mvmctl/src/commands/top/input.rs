//! What comes into the model, and what it wants done.

use super::row::Deed;
use crate::render::shown::OneLine;
use mvm_fleet::{Effect, RegistryEvent, Ticket};
use mvm_protocol::answer::Event;
use mvm_protocol::status::{Inspect, Status};
use std::sync::Arc;

/// What comes about.
#[derive(Debug)]
pub(super) enum Input {
    Registry(RegistryEvent),
    Agent(Ticket, Heard),
    Key(Key),
    /// What was asked for has been done, or has failed; in words.
    Done(OneLine),
}

/// What comes from a guest.
#[derive(Debug)]
pub(super) enum Heard {
    Status(Box<Status>),
    Inspect(Box<Inspect>),
    Event(Box<Event>),
    Lost,
    LetGo,
}

/// A key, as far as any means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Esc,
    Backspace,
    /// Ctrl-C
    Interrupt,
    /// None: the terminal has another size, and is to be drawn anew.
    Resized,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    View(Effect),
    Do(Deed, Arc<str>),
    Quit,
}
