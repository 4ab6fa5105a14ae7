//! From here into a guest.

use super::{missing, pack};
use crate::commands::Context;
use crate::commands::dev::failure;
use crate::render::data;
use crate::report::Failure;
use crate::stdio::{self, Pieces};
use crate::transfer::Transfer;
use mvm_client::Session;
use mvm_protocol::dev::exec::Path as GuestPath;
use mvm_protocol::dev::files::{Archive, FileName, Mode, Put};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// What is copied, opened.
pub(super) struct Source {
    /// As messages speak of it.
    shown: String,
    name: Option<FileName>,
    mode: Option<Mode>,
    archive: Option<Archive>,
    bytes: Option<u64>,
    pieces: Pieces,
}

impl Source {
    /// Standard input, as a file's content.
    pub(super) fn stdin() -> Result<Self, Failure> {
        Ok(Self {
            shown: "standard input".into(),
            name: None,
            mode: None,
            archive: None,
            bytes: None,
            pieces: stdio::read()?,
        })
    }

    /// A file or folder; a link stands for what it leads to. The other end of a FIFO, or a disk, may be
    /// waited for as long as the user wants: for `at_most`, or until a signal ends this program. So it is
    /// done on a thread that the runtime does not wait for in the end.
    pub(super) async fn open(path: PathBuf, at_most: Option<Duration>) -> Result<Self, Failure> {
        let shown = path.display().to_string();
        let (sender, opened) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("open".into())
            .spawn(move || sender.send(Self::open_now(&path)))?;
        let opened = timeout(at_most.unwrap_or(Duration::MAX), opened).await;
        let opened = opened.map_err(|_| {
            Failure::failed(format!(
                "cannot read {shown}: it could not be opened in time"
            ))
            .hint("a FIFO is opened when something writes into it; --timeout gives it more time")
        })?;
        opened.map_err(|error| Failure::failed(error.to_string()))?
    }

    fn open_now(path: &Path) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::failed(format!("cannot read {}: {error}", path.display()))
        };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        // `.` and `..` have names as well.
        let full = path.canonicalize().map_err(failed)?;
        let named = path.file_name().or_else(|| full.file_name());
        let name = named.and_then(|name| FileName::new(name.to_str()?.to_owned()));
        let is_folder = metadata.is_dir();
        Ok(Self {
            shown: path.display().to_string(),
            name,
            mode: Some(Mode::of(metadata.permissions().mode())),
            archive: is_folder.then_some(Archive::Tar),
            bytes: metadata.is_file().then_some(metadata.len()),
            pieces: if is_folder {
                pack::pack(path.to_owned()).map_err(failed)?
            } else {
                stdio::read_from(file)?
            },
        })
    }

    /// Copies it. Until all of it is there, nothing of it is.
    pub(super) async fn copy(
        mut self,
        context: &Context,
        session: &mut Session,
        vm: &str,
        path: GuestPath,
    ) -> Result<(), Failure> {
        let asked = Put {
            path,
            mode: self.mode,
            name: self.name.take(),
            archive: self.archive,
        };
        let is_nameless = asked.name.is_none();
        let shown = asked.path.as_str().to_owned();
        let begun = session.put(asked).await;
        let mut upload = begun.map_err(|error| {
            let failure = missing(failure(vm, &error), vm, &shown);
            match failure.hint {
                // A folder, and nothing to call the file in it.
                None if is_nameless => failure.hint(format!(
                    "if that is a folder, name the file in it: {vm}:{}/FILE",
                    shown.trim_end_matches('/')
                )),
                _ => failure,
            }
        })?;
        let what = format!("{} to {vm}:{}", self.shown, upload.path);
        let mut transfer = Transfer::new(&context.ui, &what, self.bytes);
        loop {
            let piece = tokio::select! {
                piece = self.pieces.recv() => piece,
                // While there is nothing to send, too.
                error = upload.failure() => return Err(failure(vm, &error)),
            };
            match piece {
                None => break,
                Some(Ok(bytes)) => {
                    let sent = upload.send(&bytes).await;
                    sent.map_err(|error| failure(vm, &error))?;
                    transfer.add(bytes.len());
                }
                // The connection is closed in the middle: the guest keeps nothing of it.
                Some(Err(error)) => {
                    return Err(Failure::failed(format!(
                        "cannot read {}: {error}",
                        self.shown
                    )));
                }
            }
        }
        let done = upload.finish().await.map_err(|error| failure(vm, &error))?;
        drop(transfer);
        data::one_for_programs(context, vm, &done)
    }
}
