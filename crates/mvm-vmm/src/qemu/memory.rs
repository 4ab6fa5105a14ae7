//! A guest's memory, which is in a memfd: copied from there into a file, and from a file into one.
//!
//! The memfd is ours and has a name: QEMU from 8.1 on leaves only memory out of what it migrates that
//! it has opened by a path.

use crate::deadline::Deadline;
use crate::error::Error;
use crate::launch::VmProcesses;
use crate::sparse::{BLOCK, is_zero, next_extent};
use mvm_registry::open_regular;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek, sendfile};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The name of the memfd that we make.
const NAME: &str = "mvm-memory";

/// That of the one that QEMU makes (`memory-backend-memfd`).
const QEMUS: &str = "memory-backend-memfd";

/// From which version on QEMU migrates what it has made itself, shared or not.
const NAMED_ONLY: (u64, u64, u64) = (8, 1, 0);

/// How much is copied at once, in bytes.
const PIECE: usize = 1 << 20;

/// Memory for a guest whose QEMU is about to start, and has it as long as this is there.
#[derive(Debug)]
pub(super) struct GuestMemory(File);

impl GuestMemory {
    pub(super) fn new(mib: u32) -> Result<Self, Error> {
        Self::of_length(u64::from(mib) << 20).map_err(Error::io("make", Path::new("memory")))
    }

    fn of_length(bytes: u64) -> io::Result<Self> {
        let memory = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC)?);
        memory.set_len(bytes)?;
        Ok(Self(memory))
    }

    /// By which QEMU opens it.
    pub(super) fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.0.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }
}

/// The memory of the guest that a QEMU of that version runs, if that QEMU can leave it out of what it
/// migrates; `None` as well if it is in no memfd that can be found.
pub(super) fn of_process(pid: i32, version: (u64, u64, u64)) -> Option<File> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let ours = [NAME, QEMUS].map(|name| format!("/memfd:{name} (deleted)"));
    let ours = if version < NAMED_ONLY {
        &ours[..]
    } else {
        &ours[..1]
    };
    let mut found = descriptors.filter_map(|entry| {
        let path = entry.ok()?.path();
        let target = std::fs::read_link(&path).ok()?;
        ours.iter()
            .any(|name| target.as_os_str() == name.as_str())
            .then_some(path)
    });
    let path = found.next()?;
    // Which of several is the memory would be a guess.
    if found.next().is_some() {
        return None;
    }
    File::open(path).ok()
}

/// Writes the memory of a guest that stands still into a file that is not there yet.
pub(super) fn save(memory: &File, path: &Path, deadline: Deadline<'_>) -> Result<(), Error> {
    let failed = || Error::io("write", path);
    let mut options = File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(Error::io("create", path))?;
    let bytes = memory.metadata().map_err(failed())?.len();
    file.set_len(bytes).map_err(failed())?;
    let mut piece = vec![0; PIECE];
    for (from, until) in extents(memory, bytes).map_err(failed())? {
        let mut at = from;
        while at < until {
            Error::if_over(deadline, || "the end of the guest's memory".into())?;
            let wanted = usize::try_from(until - at).map_or(PIECE, |left| left.min(PIECE));
            let Some(space) = piece.get_mut(..wanted) else {
                break;
            };
            memory.read_exact_at(space, at).map_err(failed())?;
            for block in space.chunks(BLOCK) {
                if !is_zero(block) {
                    file.write_all_at(block, at).map_err(failed())?;
                }
                at += block.len() as u64;
            }
        }
    }
    Ok(())
}

/// A guest's memory that is being read, while the QEMU that is to have it starts.
#[derive(Debug)]
pub(super) struct Loading {
    path: PathBuf,
    copying: JoinHandle<io::Result<()>>,
}

/// Begins to read a guest's memory from its file.
pub(super) fn load(path: &Path) -> Result<(GuestMemory, Loading), Error> {
    let failed = || Error::io("read", path);
    let file = open_regular(path).map_err(Error::io("open", path))?;
    let bytes = file.metadata().map_err(failed())?.len();
    let memory = GuestMemory::of_length(bytes).map_err(Error::io("make memory for", path))?;
    let into = memory.0.try_clone().map_err(failed())?;
    let loading = Loading {
        path: path.to_owned(),
        copying: std::thread::spawn(move || copy(&file, &into, bytes)),
    };
    Ok((memory, loading))
}

impl Loading {
    /// Waits until all of it is there. A disk that does not answer holds up the thread alone.
    pub(super) fn wait(self, processes: &VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
        processes.wait_for("the guest's memory", deadline, || {
            Ok(self.copying.is_finished().then_some(()))
        })?;
        let copied = self.copying.join();
        let copied = copied.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
        copied.map_err(Error::io("read", &self.path))
    }
}

/// Within the kernel: nothing of it comes through this process.
fn copy(file: &File, into: &File, bytes: u64) -> io::Result<()> {
    for (from, until) in extents(file, bytes)? {
        seek(into, SeekFrom::Start(from))?;
        let mut at = from;
        while at < until {
            let wanted = usize::try_from(until - at).unwrap_or(usize::MAX);
            if sendfile(into, file, Some(&mut at), wanted)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

/// Where a file of that length is no hole: from, until.
fn extents(file: &File, bytes: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes
        && let Some((from, until)) = next_extent(file, at)?
        && from < bytes
    {
        at = until.min(bytes);
        found.push((from, at));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::time::Duration;

    #[test]
    fn memory_is_what_it_was_and_its_zeros_take_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let memory = File::from(memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap());
        let bytes = 8 << 20;
        memory.set_len(bytes).unwrap();
        let touched = vec![0; 1 << 20];
        memory.write_all_at(&touched, 4 << 20).unwrap();
        for at in [0, 12_345, (3 << 20) - 2, (8 << 20) - 4] {
            memory.write_all_at(b"data", at).unwrap();
        }
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(of_process(own, (7, 2, 0)).is_some());
        assert!(of_process(own, NAMED_ONLY).is_some());
        let deadline = Deadline::new(Duration::from_secs(20), None);
        save(&memory, &path, deadline).unwrap();
        let saved = std::fs::metadata(&path).unwrap();
        assert_eq!(saved.len(), bytes);
        assert!(
            saved.blocks() * 512 <= 5 * BLOCK as u64,
            "{}",
            saved.blocks()
        );

        let (into, loading) = load(&path).unwrap();
        let loaded = File::open(into.path()).unwrap();
        loading.copying.join().unwrap().unwrap();
        let content = |file: &File| {
            let mut content = vec![0; usize::try_from(bytes).unwrap()];
            file.read_exact_at(&mut content, 0).unwrap();
            content
        };
        assert!(content(&loaded) == content(&memory));
        // With two of them it is not said which is the memory.
        assert!(of_process(own, NAMED_ONLY).is_none());
    }

    #[test]
    fn memory_that_a_later_qemu_has_made_itself_is_migrated() {
        let _memory = memfd_create(QEMUS, MemfdFlags::CLOEXEC).unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(of_process(own, (8, 0, 5)).is_some());
        assert!(of_process(own, NAMED_ONLY).is_none());
    }
}
