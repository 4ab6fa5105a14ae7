//! That a restore command has ended, kept for an agent that is killed before it has written so itself.
//!
//! A restore command runs once for each debt. The agent takes the debt from its journal when it has seen
//! the command end, and may be killed between the two; the next one would run the command again. So
//! the command has a parent of its own, a copy of the agent called its witness:
//!
//! ```text
//!   agent ──fork──▶ witness ──fork──▶ restore command
//!                      │                   │ exits
//!                      │◀──────────────────┘
//!                      ▼
//!          "ended NAME", or "fail: NAME", in the run directory, and the same exit
//! ```
//!
//! An agent that starts ends the command that it finds under way, and not the witness, which holds a
//! lock on the file as long as it lives: what the file says once the lock is gone is the last word. A
//! command that a signal has ended was cut short, and is run again.
//!
//! A file is one command's alone, so that a witness whose command the kernel holds for ever can at most
//! write into a file that has no name any more.

use super::console::say;
use super::journal::{Files, create};
use super::regular_file::{Link, Trust, read_regular};
use crate::core::lifecycle::Journal;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::cell::RefCell;
use std::io;
use std::time::Duration;

/// The file, in the run directory, and the largest that is read, in bytes.
const MARK: &str = ".restore";
const MAX_MARK: usize = 4096;

/// What it begins with. All are of one length: another is written over the first, for which there is
/// room in a filesystem that is full. One that failed has ended as well, and is not run again.
const BEGUN: &str = "begun ";
pub(super) const ENDED: &[u8] = b"ended ";
pub(super) const FAILED: &[u8] = b"fail: ";

/// How long a witness is waited for whose command was killed, and how often it is looked.
const TRIES: u32 = 80;
const BETWEEN_TRIES: Duration = Duration::from_millis(25);

/// The mark of the restore command that ran last, if it has ended and the journal does not say so yet.
#[derive(Debug, Default)]
pub(crate) struct EndMark {
    ended: RefCell<Option<String>>,
}

impl EndMark {
    /// What an earlier agent left: takes what was paid out of the journal. `end_commands` ends what is
    /// still under way.
    pub(crate) async fn settle(
        files: &Files,
        journal: &mut Journal,
        mut end_commands: impl FnMut(),
    ) -> Self {
        let ended = left(files, &mut end_commands).await;
        if let Some(name) = &ended {
            journal.owed.retain(|owed| owed != name);
        }
        Self {
            ended: RefCell::new(ended),
        }
    }

    /// The restore command of this integration has ended, and the agent knows it.
    pub(crate) fn has_ended(&self, integration: &str) {
        self.ended.replace(Some(integration.to_owned()));
    }

    /// Keeps the journal, and removes the mark, which says nothing that the journal does not.
    pub(crate) fn keep(&self, files: &Files, journal: &Journal) -> io::Result<()> {
        let mut ended = self.ended.borrow_mut();
        match &*ended {
            // A debt of that name is a new one, and must not be taken for paid: the mark goes first.
            Some(name) if journal.owed.contains(name) => {
                files.remove(MARK)?;
                *ended = None;
                files.keep(journal)
            }
            Some(_) => {
                files.keep(journal)?;
                if files.remove(MARK).is_ok() {
                    *ended = None;
                }
                Ok(())
            }
            None => files.keep(journal),
        }
    }
}

/// Makes the mark of a restore command that begins, with the lock on it.
pub(super) fn begin(files: &Files, integration: &str) -> io::Result<OwnedFd> {
    let content = format!("{BEGUN}{integration}\n");
    let file = create(&files.path(MARK), content.as_bytes(), 0o600)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.into())
}

/// The integration whose restore command has ended by itself, as far as an earlier agent left word.
async fn left(files: &Files, end_commands: &mut impl FnMut()) -> Option<String> {
    let path = files.path(MARK);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = open(&path, flags, Mode::empty()).ok()?;
    let mut tries = 0;
    while flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
        if tries == TRIES {
            say!("a restore command that cannot be ended is left, and counts as not run");
            let _ = files.remove(MARK);
            return None;
        }
        tries += 1;
        // It may have been about to become a program when the others were ended.
        end_commands();
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    let content = read_regular(&path, Link::Refused, Trust::Owner, MAX_MARK).ok()?;
    let failed = content.strip_prefix(FAILED);
    let name = failed.or_else(|| content.strip_prefix(ENDED))?;
    let name = String::from_utf8(name.strip_suffix(b"\n")?.to_vec()).ok()?;
    if failed.is_some() {
        // No agent was there to say so.
        say!("the restore command of `{name}` failed");
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::RunId;
    use crate::machine::children::Orphans;
    use crate::machine::process::Launcher;
    use crate::machine::program::{Program, no_input};

    fn owing(names: &[&str]) -> Journal {
        Journal {
            owed: names.iter().map(ToString::to_string).collect(),
            ..Journal::default()
        }
    }

    async fn settled(files: &Files) -> (EndMark, Journal) {
        let mut journal = files.read();
        let mark = EndMark::settle(files, &mut journal, || {}).await;
        (mark, journal)
    }

    #[tokio::test]
    async fn what_has_ended_is_paid_and_what_has_begun_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        files.keep(&owing(&["a", "b"])).unwrap();
        let mark = begin(&files, "a").unwrap();
        rustix::io::pwrite(&mark, ENDED, 0).unwrap();
        drop(mark);
        let (mark, journal) = settled(&files).await;
        assert_eq!(journal, owing(&["b"]));
        // An agent that is killed before it has kept that finds it again; after that it is gone.
        assert_eq!(settled(&files).await.1, owing(&["b"]));
        mark.keep(&files, &journal).unwrap();
        assert!(!files.path(MARK).exists());
        drop(begin(&files, "b").unwrap());
        assert_eq!(settled(&files).await.1, owing(&["b"]));
    }

    #[tokio::test]
    async fn a_mark_pays_no_later_debt() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        files.keep(&owing(&["a"])).unwrap();
        let mark = begin(&files, "a").unwrap();
        rustix::io::pwrite(&mark, ENDED, 0).unwrap();
        drop(mark);
        let mark = EndMark::default();
        mark.has_ended("a");
        // The journal could not be kept in between.
        mark.keep(&files, &owing(&["a"])).unwrap();
        assert_eq!(settled(&files).await.1, owing(&["a"]));
    }

    /// Its cgroup is gone, since a new agent has begun, or the disk does not answer.
    #[tokio::test]
    async fn a_command_that_was_not_begun_pays_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let launcher = Launcher::new(dir.path(), false);
        for (path, content) in [
            ("/nonexistent", "begun a\n"),
            ("/bin/false", "fail: a\n"),
            ("/bin/true", "ended a\n"),
        ] {
            let stdio = [(); 3].map(|()| no_input().unwrap());
            let paths = [path.to_owned()];
            let program = Program::new("/", &paths, &[path], Vec::new(), stdio).unwrap();
            let scope = launcher.scope(RunId(1), Orphans::ToLeader, None).unwrap();
            let mark = begin(&files, "a").unwrap();
            let begun = launcher.spawn_witnessed(program, scope, Some(mark));
            let process = begun.unwrap();
            process.exited().await;
            assert_eq!(
                process.not_started().is_some(),
                content.starts_with("begun")
            );
            launcher.finish(process).await;
            let kept = std::fs::read_to_string(files.path(MARK)).unwrap();
            assert_eq!(kept, content, "{path}");
            // One that failed is not run again either.
            files.keep(&owing(&["a"])).unwrap();
            let is_owed = !settled(&files).await.1.owed.is_empty();
            assert_eq!(is_owed, content.starts_with("begun"), "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_witness_that_never_ends_is_not_waited_for_and_not_believed_later() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        files.keep(&owing(&["a"])).unwrap();
        let mark = begin(&files, "a").unwrap();
        let (_, journal) = settled(&files).await;
        assert_eq!(journal, owing(&["a"]));
        rustix::io::pwrite(&mark, ENDED, 0).unwrap();
        drop(mark);
        assert_eq!(settled(&files).await.1, owing(&["a"]));
    }
}
