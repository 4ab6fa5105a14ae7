//! The guest's console, copied to standard output.

use crate::render::console::ConsoleText;
use crate::report::Failure;
use crate::stdio::{Stream, Writer};
use crate::ui::Ui;
use crate::vm_state::VmStates;
use mvm_registry::VmFolder;
use mvm_vmm::console::Follow;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

/// How often is looked whether the file is another one: it is written anew when it has grown over its
/// limit, and when the VM is started.
const TICK: Duration = Duration::from_millis(250);

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The console of a VM, from now on.
pub(super) struct Console<'a> {
    states: &'a VmStates<'a>,
    path: PathBuf,
    follow: Follow,
    text: ConsoleText,
    /// What was read and not yet taken by standard output.
    pending: Option<Vec<u8>>,
    /// None once nobody reads it any more, which is no reason to end the VM.
    writer: Option<Writer>,
}

impl<'a> Console<'a> {
    /// What is written from now on. What there is already is another guest's, or was seen by another.
    pub(super) fn of(
        states: &'a VmStates<'a>,
        folder: &VmFolder,
        ui: &Ui,
    ) -> Result<Self, Failure> {
        Ok(Self {
            states,
            path: folder.console(),
            follow: Follow::from_now(folder),
            text: ConsoleText::for_stdout(ui),
            pending: None,
            writer: Some(Writer::start()?),
        })
    }

    /// Copies it. It may be dropped without losing anything.
    pub(super) async fn copy(&mut self) -> Infallible {
        loop {
            // Watched before it is read: what is written in between is told.
            let growth = self.states.growth_of(&self.path);
            self.copy_new().await;
            tokio::select! {
                () = growth.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Copies what there is.
    async fn copy_new(&mut self) {
        loop {
            self.write_pending().await;
            let mut piece = vec![0; PIECE];
            // What cannot be read has no more to say.
            let count = self.follow.read(&mut piece).unwrap_or(0);
            match piece.get(..count) {
                Some(bytes) if !bytes.is_empty() => {
                    self.pending = Some(self.text.take(bytes).into_owned());
                }
                _ => return,
            }
        }
    }

    async fn write_pending(&mut self) {
        if let (Some(writer), Some(pending)) = (&mut self.writer, &self.pending)
            && writer.write(Stream::Stdout, pending.clone()).await.is_err()
        {
            self.writer = None;
        }
        self.pending = None;
    }

    /// Copies what is left, and waits until all is written.
    pub(super) async fn finish(&mut self) {
        self.copy_new().await;
        self.pending = Some(self.text.rest());
        self.write_pending().await;
        if let Some(writer) = &mut self.writer {
            // Whoever does not read it does not want it.
            let _ = writer.finish().await;
        }
    }
}
