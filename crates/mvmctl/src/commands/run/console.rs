//! The guest's console, copied to standard output.

use crate::render::console::ConsoleText;
use crate::report::Failure;
use crate::stdio::{Stream, Writer};
use crate::vm_state::{Growth, VmStates};
use std::convert::Infallible;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// How often is looked whether there is a console, as long as the VM is being started.
const TICK: Duration = Duration::from_millis(50);

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The console of a VM, from now on.
pub(super) struct Console<'a> {
    states: &'a VmStates<'a>,
    path: PathBuf,
    file: Option<File>,
    text: ConsoleText,
    /// What was read and not yet taken by standard output.
    pending: Option<Vec<u8>>,
    /// None once nobody reads it any more, which is no reason to end the VM.
    writer: Option<Writer>,
}

impl<'a> Console<'a> {
    /// What is written from now on. What there is already is another guest's, or was seen by another:
    /// a guest that is started writes to a new file.
    pub(super) fn of(states: &'a VmStates<'a>, path: PathBuf) -> Result<Self, Failure> {
        let mut file = File::open(&path).ok();
        if let Some(file) = &mut file {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Self {
            states,
            path,
            file,
            text: ConsoleText::for_stdout(),
            pending: None,
            writer: Some(Writer::start()?),
        })
    }

    /// Copies it. It may be dropped without losing anything.
    pub(super) async fn copy(&mut self) -> Infallible {
        loop {
            // Watched before it is read: what is written in between is told.
            let growth = self
                .file
                .is_some()
                .then(|| self.states.growth_of(&self.path));
            self.copy_new().await;
            self.until_more(growth).await;
        }
    }

    /// Waits until the file grows, or is another one.
    async fn until_more(&self, growth: Option<Growth<'_>>) {
        match growth {
            // The file is held open, so that no other one can have its number.
            Some(growth) if !self.is_replaced() => growth.changed().await,
            _ => tokio::time::sleep(TICK).await,
        }
    }

    fn is_replaced(&self) -> bool {
        let inode = |found: std::io::Result<std::fs::Metadata>| {
            found.ok().map(|found| (found.dev(), found.ino()))
        };
        let own = self.file.as_ref().and_then(|file| inode(file.metadata()));
        let there = inode(self.path.metadata());
        there.is_none() || there != own
    }

    /// Copies what there is, of a file that has come in place of this one too.
    async fn copy_new(&mut self) {
        loop {
            self.write_pending().await;
            let mut piece = vec![0; PIECE];
            // What cannot be read has no more to say.
            let count = match &mut self.file {
                Some(file) => file.read(&mut piece).unwrap_or(0),
                None => 0,
            };
            if let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) {
                self.pending = Some(self.text.take(bytes).into_owned());
            } else if self.is_replaced()
                && let Ok(file) = File::open(&self.path)
            {
                self.file = Some(file);
            } else {
                return;
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
