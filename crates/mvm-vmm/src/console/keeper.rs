//! What keeps a console, in a process of its own that outlives `mvmctl`.
//!
//! ```text
//! guest ─► VMM ─► pipe ─► keeper ─► console.log, bounded
//! ```
//!
//! A VMM that writes the file itself fills the disk with a guest that prints in a loop, and nobody is
//! there to stop it: a bound that whoever comes by enforces holds for as long as somebody does. QEMU
//! has a ring for that in its own memory, which is gone when it is; the others have nothing.
//!
//! The VM is not stopped by a keeper that is gone (writes to the pipe fail, and what is printed is
//! lost), nor by a full disk (the keeper reads on, and counts). It ends when the VMM has: there is
//! nobody any more who could write to the pipe.

use super::layout::{LOG, Share, renew};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// By which name a program is the keeper.
const NAME: &str = "mvm-console";

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// That this program keeps consoles when it is called for that: see [`run_if_called`], which alone gives
/// it.
#[derive(Debug, Clone, Copy)]
pub struct ConsoleKeeper(());

/// Runs as the keeper of a console and ends, if it was started as one. A program that starts VMs, and
/// wants their consoles to be kept within a limit, begins with this: it is started once more for each.
#[must_use]
pub fn run_if_called() -> ConsoleKeeper {
    let mut arguments = std::env::args_os();
    if arguments.next() != Some(OsString::from(NAME)) {
        return ConsoleKeeper(());
    }
    let limit = arguments.next().and_then(|mib| mib.into_string().ok());
    let limit = limit.and_then(|mib| mib.parse().ok());
    let kept = Keeper::begin(Path::new("."), Share::of(limit)).map(|mut keeper| {
        let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
        stdin.map(|mut from| keeper.keep(&mut from))
    });
    std::process::exit(match kept {
        Ok(Ok(())) => 0,
        Ok(Err(_)) | Err(_) => 1,
    });
}

/// That very program, to be started in the VM's folder with what it reads as its standard input.
pub(crate) fn command(_: ConsoleKeeper, limit_mib: Option<u32>) -> Command {
    // Also if another has been installed in its place since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME);
    command.args(limit_mib.map(|mib| mib.to_string()));
    ignore_signals(&mut command);
    command
}

/// It ends with the VMM, and not before: what that says last is what matters most.
fn ignore_signals(command: &mut Command) {
    let ignore = || {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            #[expect(unsafe_code, reason = "rustix has no sigaction")]
            // SAFETY: takes two numbers, touches no memory, and is safe between fork and exec.
            unsafe {
                libc::signal(signal.as_raw(), libc::SIG_IGN);
            }
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "what is ignored stays so over an exec")]
    // SAFETY: `ignore` makes system calls alone, and allocates nothing.
    unsafe {
        command.pre_exec(ignore);
    }
}

/// A console that is being kept.
#[derive(Debug)]
pub(super) struct Keeper {
    folder: PathBuf,
    share: Share,
    file: File,
    length: u64,
    /// How many bytes could not be written since the last that was.
    lost: u64,
}

impl Keeper {
    /// Goes on with the file that is there.
    pub(super) fn begin(folder: &Path, share: Share) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = folder.join(LOG);
        let file = File::from(rustix::fs::open(
            path,
            flags | OFlags::APPEND,
            Mode::empty(),
        )?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("the console is no regular file"));
        }
        Ok(Self {
            folder: folder.to_owned(),
            share,
            length: metadata.len(),
            file,
            lost: 0,
        })
    }

    /// Until nobody is left who could write.
    fn keep(&mut self, from: &mut impl io::Read) {
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => self.write(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    /// What cannot be written is counted, and said once something can.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.lost > 0 {
            let line = format!("\n--- {} bytes could not be written ---\n", self.lost);
            if self.append(line.as_bytes()) < line.len() {
                self.lost += bytes.len() as u64;
                return;
            }
            self.lost = 0;
        }
        // In pieces that leave room for others.
        for piece in bytes.chunks(PIECE) {
            let written = self.append(piece);
            self.lost += (piece.len() - written) as u64;
        }
    }

    /// How many of the bytes were written.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let fits = self.length + bytes.len() as u64 <= self.share.whole();
        if !fits && self.make_room().is_err() {
            return 0;
        }
        let mut done = 0;
        while let Some(left) = bytes.get(done..).filter(|left| !left.is_empty()) {
            match self.file.write(left) {
                Ok(written @ 1..) => {
                    done += written;
                    self.length += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        done
    }

    fn make_room(&mut self) -> io::Result<()> {
        let file = renew(&self.folder, &self.file, self.length, self.share)?;
        self.length = file.metadata()?.len();
        self.file = file;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{LAST_LOG, begin};
    use super::*;
    use std::fs;

    const SHARE: u64 = (1 << 20) / 5 * 2;

    fn share() -> Share {
        let share = Share::of(Some(1));
        assert_eq!(share.whole(), SHARE);
        share
    }

    fn begun(folder: &Path) -> Keeper {
        begin(folder, share()).unwrap();
        Keeper::begin(folder, share()).unwrap()
    }

    fn sizes(folder: &Path) -> u64 {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn beginning_and_end_are_kept_and_the_rest_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = begun(folder.path());
        let mut said = 0;
        let mut line = 0_u64;
        while said < 3 << 20 {
            let text = format!("line {line}\n");
            keeper.write(text.as_bytes());
            said += text.len() as u64;
            line += 1;
            assert!(sizes(folder.path()) <= SHARE);
        }
        let log = fs::read_to_string(folder.path().join(LOG)).unwrap();
        assert!(log.starts_with("line 0\nline 1\n"), "{}", &log[..40]);
        assert!(log.ends_with(&format!("line {}\n", line - 1)));
        let (head, rest) = log.split_once("\n--- ").unwrap();
        let (missing, end) = rest.split_once(" bytes are missing here ---\n").unwrap();
        let missing: u64 = missing.trim().parse().unwrap();
        assert_eq!(head.len() as u64 + missing + end.len() as u64, said);
        // What is kept is what was said there.
        let all: Vec<_> = (0..line).map(|line| format!("line {line}\n")).collect();
        let all = all.concat();
        assert!(all.starts_with(head) && all.ends_with(end));
    }

    #[test]
    fn a_panic_is_there_after_the_next_start_and_the_limit_holds() {
        let folder = tempfile::tempdir().unwrap();
        for boot in 0..3 {
            let mut keeper = begun(folder.path());
            keeper.write(&vec![b'x'; 2 << 20]);
            keeper.write(format!("Kernel panic {boot}\n").as_bytes());
            assert!(sizes(folder.path()) <= 1 << 20);
        }
        begin(folder.path(), share()).unwrap();
        let last = fs::read_to_string(folder.path().join(LAST_LOG)).unwrap();
        assert!(last.ends_with("Kernel panic 2\n"));
        // A start that comes to nothing does not take its place.
        begin(folder.path(), share()).unwrap();
        let last = fs::read_to_string(folder.path().join(LAST_LOG)).unwrap();
        assert!(last.ends_with("Kernel panic 2\n"));
    }

    #[test]
    fn what_an_mvmctl_without_a_limit_has_left_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let mut old = vec![b'a'; 10 << 20];
        old.extend_from_slice(b"Kernel panic\n");
        fs::write(folder.path().join(LOG), old).unwrap();
        begin(folder.path(), share()).unwrap();
        assert!(sizes(folder.path()) <= SHARE);
        let last = fs::read_to_string(folder.path().join(LAST_LOG)).unwrap();
        assert!(last.ends_with("Kernel panic\n"));
    }

    #[test]
    fn what_others_have_put_there_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(LOG);
        let theirs = folder.path().join("theirs");
        fs::write(&theirs, "theirs").unwrap();
        std::os::unix::fs::symlink(&theirs, &log).unwrap();
        assert!(Keeper::begin(folder.path(), share()).is_err());
        begun(folder.path()).write(b"ours");
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
        fs::remove_file(&log).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(Keeper::begin(folder.path(), share()).is_err());
        begun(folder.path()).write(b"ours");
        assert_eq!(fs::read_to_string(&log).unwrap(), "ours");
    }

    #[test]
    fn what_cannot_be_written_is_told_once_something_can() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = begun(folder.path());
        keeper.write(b"before\n");
        let file = std::mem::replace(
            &mut keeper.file,
            File::options().write(true).open("/dev/full").unwrap(),
        );
        keeper.write(b"1234567");
        keeper.write(b"123");
        keeper.file = file;
        keeper.write(b"after\n");
        let log = fs::read_to_string(folder.path().join(LOG)).unwrap();
        assert_eq!(
            log,
            "before\n\n--- 10 bytes could not be written ---\nafter\n"
        );
    }
}
