//! What comes into the model, and what it wants done.

use super::row::Deed;
use crate::feed::{Fed, Sink};
use crate::render::shown::OneLine;
use mvm_fleet::Effect;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What comes about.
#[derive(Debug)]
pub(super) enum Input {
    /// In the folders, or on a VM's watch connection.
    Fed(Fed),
    Key(Key),
    /// What was asked for has been done, or has failed; in words.
    Done(OneLine),
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

/// The way to the model.
#[derive(Debug, Clone)]
pub(super) struct Inputs(pub(super) mpsc::Sender<Input>);

impl Sink for Inputs {
    async fn feed(&self, fed: Fed) {
        // A model that is gone needs none.
        let _ = self.0.send(Input::Fed(fed)).await;
    }
}
