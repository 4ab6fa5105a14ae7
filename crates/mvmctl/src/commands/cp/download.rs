//! From a guest to here.

use super::beside::{NewFile, NewFolder, folder_of};
use crate::commands::Context;
use crate::commands::dev::failure;
use crate::confine;
use crate::render::data;
use crate::report::Failure;
use crate::stdio::{Stream, WriteError, Writer};
use crate::transfer::Transfer;
use crate::ui::Ui;
use mvm_client::dev::Download;
use mvm_client::dev::archive::unpack;
use mvm_protocol::dev::files::GetDone;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Where it goes.
pub(super) enum Target {
    /// Standard output: a file's content, or a folder as a tar stream.
    Stdout,
    /// A name that is free, or a file's that is replaced.
    Path(PathBuf),
}

impl Target {
    /// What a path of this host means for something of that name: a folder that is there is gone
    /// into, and a link stands for what it leads to.
    pub(super) fn at(path: &Path, name: Option<&OsStr>) -> Result<Self, Failure> {
        let mut target = path.to_owned();
        if path.is_dir() {
            let name = name.ok_or_else(|| {
                Failure::usage("what is copied has no name of its own")
                    .hint("give the copy's own name, and not the folder that it goes to")
            })?;
            target.push(name);
        } else if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(Failure::failed(format!("no folder {}", path.display())));
        }
        if target.is_symlink()
            && let Ok(leads_to) = target.canonicalize()
        {
            target = leads_to;
        }
        Ok(Self::Path(target))
    }

    /// Copies it. Until all of it is there, nothing of it is.
    pub(super) async fn copy(
        self,
        context: &Context,
        vm: &str,
        from: &str,
        mut download: Download<'_>,
    ) -> Result<(), Failure> {
        let what = format!("{vm}:{from}");
        let mut transfer = Transfer::new(&context.ui, &what, download.bytes);
        match self {
            Self::Stdout => return stdout(vm, &mut download, &mut transfer).await,
            Self::Path(path) if download.archive.is_some() => {
                folder(&context.ui, vm, &path, &mut download, &mut transfer).await?;
            }
            Self::Path(path) => file(vm, &path, &mut download, &mut transfer).await?,
        }
        let bytes = transfer.bytes();
        drop(transfer);
        data::one_for_programs(context, vm, &GetDone { bytes })
    }
}

async fn stdout(
    vm: &str,
    download: &mut Download<'_>,
    transfer: &mut Transfer<'_>,
) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let mut result = Ok(());
    while let Some(bytes) = next(vm, download).await? {
        transfer.add(bytes.len());
        result = writer.write(Stream::Stdout, bytes).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        result = writer.finish().await;
    }
    match result {
        // A reader that has enough is no error.
        Ok(()) | Err(WriteError::Closed) => Ok(()),
        Err(WriteError::Failed(error)) => Err(Failure::failed(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

async fn file(
    vm: &str,
    path: &Path,
    download: &mut Download<'_>,
    transfer: &mut Transfer<'_>,
) -> Result<(), Failure> {
    let failed = cannot_write(path);
    if path.exists() && !path.is_file() {
        return Err(Failure::failed(format!(
            "{} is there already, and is no file",
            path.display()
        ))
        .hint("nothing but a file is replaced; to write into a device or pipe: … - >it"));
    }
    let mut new = NewFile::beside(path).map_err(&failed)?;
    confine::to_writing_below(folder_of(path)).map_err(&failed)?;
    while let Some(bytes) = next(vm, download).await? {
        new.write(&bytes).map_err(&failed)?;
        transfer.add(bytes.len());
    }
    new.finish(download.mode).map_err(&failed)
}

async fn folder(
    ui: &Ui,
    vm: &str,
    path: &Path,
    download: &mut Download<'_>,
    transfer: &mut Transfer<'_>,
) -> Result<(), Failure> {
    let failed = cannot_write(path);
    if path.symlink_metadata().is_ok() {
        return Err(
            Failure::failed(format!("{} is there already", path.display()))
                .hint("a folder is not merged into another: remove that one, or give another name"),
        );
    }
    let new = NewFolder::beside(path, ui).map_err(&failed)?;
    confine::to_writing_below(folder_of(path)).map_err(&failed)?;
    let (pieces, received) = mpsc::channel(2);
    let into = new.path().to_owned();
    let mut unpacking =
        Unpacking(Some(std::thread::Builder::new().name("tar".into()).spawn(
            move || confined_to(&into, || unpack_all(received, &into)),
        )?));
    // Dropped before the thread is waited for, which it keeps reading.
    let pieces = pieces;
    while let Some(bytes) = next(vm, download).await? {
        transfer.add(bytes.len());
        if pieces.send(bytes).await.is_err() {
            // It has failed, and says why below.
            break;
        }
    }
    drop(pieces);
    unpacking.end().map_err(|error| {
        Failure::failed(format!(
            "cannot unpack {vm}'s archive into {}: {error}",
            path.display()
        ))
        .hint("nothing of it was kept")
    })?;
    new.finish(download.mode).map_err(&failed)
}

/// The thread that unpacks. It is waited for in any case, before its folder is removed.
struct Unpacking(Option<std::thread::JoinHandle<io::Result<()>>>);

impl Unpacking {
    fn end(&mut self) -> io::Result<()> {
        match self.0.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(io::Error::other("its thread has ended")),
        }
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        if self.0.is_some() {
            let _ = self.end();
        }
    }
}

/// Does it with nothing but that folder at hand.
fn confined_to(folder: &Path, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    confine::to_folder(folder)?;
    work()
}

fn unpack_all(received: mpsc::Receiver<Vec<u8>>, into: &Path) -> io::Result<()> {
    let mut stream = Received {
        received,
        piece: io::Cursor::default(),
    };
    unpack(&mut stream, into)?;
    // What follows the end of an archive is padding.
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// The reading end of a channel of pieces.
struct Received {
    received: mpsc::Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.piece.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            match self.received.blocking_recv() {
                Some(piece) => self.piece = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

async fn next(vm: &str, download: &mut Download<'_>) -> Result<Option<Vec<u8>>, Failure> {
    download.next().await.map_err(|error| failure(vm, &error))
}

fn cannot_write(path: &Path) -> impl Fn(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| Failure::failed(format!("cannot write {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As an archive would that were unpacked wrongly.
    #[test]
    fn what_unpacks_cannot_leave_its_folder() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (into, evil) = (inside.path(), outside.path().join("evil"));
        let unpacked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                confined_to(into, || {
                    fs::write(into.join("file"), "x")?;
                    fs::write(&evil, "x")
                })
            });
            thread.join().unwrap()
        });
        assert!(into.join("file").exists());
        if confine::finding().level != mvm_vmm::doctor::Level::Ok {
            eprintln!("SKIPPED, NOTHING WAS TESTED: this kernel has no Landlock");
            return;
        }
        let error = unpacked.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(!evil.exists());
    }
}
