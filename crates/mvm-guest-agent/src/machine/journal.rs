//! What has to survive the agent, in the run directory: as long as the guest runs, and no longer.

use super::console::say;
use super::interface::Machine;
use crate::core::lifecycle::Journal;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is removed to make room, in the run directory.
const RESERVE: &str = ".reserve";

/// How much that is, in bytes: four pages. A journal and the generation's number need one each, and
/// one more while they are replaced.
const RESERVE_BYTES: usize = 16 * 1024;

/// The journal's file, and the generation's for programs in the guest.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self {
            dir: run_dir.to_owned(),
        }
    }

    /// Sets room aside for a journal: a guest whose `/run` is full has to sleep and wake as well.
    pub(crate) fn make_reserve(&self) {
        // Zeros, since a file with a hole in it takes no room.
        let _ = std::fs::write(self.path(RESERVE), [0; RESERVE_BYTES]);
    }

    /// What an earlier agent kept; nothing if there was none. A journal that cannot be read is told
    /// by its error: to go on as if nothing were owed would break a promise silently.
    pub(crate) fn read(&self) -> Result<Journal, String> {
        let path = self.dir.join("journal.json");
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Journal::default()),
            Err(error) => return Err(format!("{}: {error}", path.display())),
            Ok(text) => text,
        };
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Keeps the journal: whole or not at all.
    pub(crate) fn keep(&self, journal: &Journal) -> io::Result<()> {
        let text = serde_json::to_vec(journal)?;
        self.replace("journal.json", &text)
    }

    /// Writes the generation's number, by which a program sees that it was restored.
    pub(crate) fn write_generation(&self, generation: u64) -> io::Result<()> {
        self.replace("generation", format!("{generation}\n").as_bytes())
    }

    /// A file of the run directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// As [`Files::exchange`], if need be in the room that was set aside.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let full = match self.exchange(name, content) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => error,
            other => return other,
        };
        if std::fs::remove_file(self.path(RESERVE)).is_err() {
            return Err(full);
        }
        let exchanged = self.exchange(name, content);
        // What was replaced has left room as well.
        self.make_reserve();
        exchanged
    }

    /// Writes beside and renames, so that a reader, or an agent after a crash, sees the old or the
    /// new and nothing between.
    fn exchange(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let beside = self.dir.join(format!(".{name}.new"));
        let exchanged = std::fs::File::create(&beside)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| std::fs::rename(&beside, self.dir.join(name)));
        if exchanged.is_err() {
            let _ = std::fs::remove_file(beside);
        }
        exchanged
    }
}

/// Keeps the journal when it has changed, which most steps do not do, and tries again what it could
/// not keep.
#[derive(Debug, Default)]
pub(crate) struct JournalWriter {
    kept: Option<Journal>,
    missed: Option<Journal>,
}

impl JournalWriter {
    pub(crate) fn keep<M: Machine>(&mut self, journal: Journal, machine: &M) -> io::Result<()> {
        if self.kept.as_ref() == Some(&journal) {
            return Ok(());
        }
        self.kept = None;
        match machine.keep(&journal) {
            Ok(()) => {
                self.missed = None;
                self.kept = Some(journal);
                Ok(())
            }
            Err(error) => {
                if self.missed.replace(journal).is_none() {
                    say!("the journal cannot be kept, and is tried again: {error}");
                }
                Err(error)
            }
        }
    }

    /// While the guest runs: an agent that is started after a crash must not find that it sleeps.
    pub(crate) fn catch_up<M: Machine>(&mut self, machine: &M) {
        if let Some(journal) = self.missed.clone() {
            let _ = self.keep(journal, machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_journal_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        assert_eq!(files.read(), Ok(Journal::default()));
        let journal = Journal {
            asleep: true,
            owed: vec!["db".into()],
            generation: 3,
            ..Journal::default()
        };
        files.keep(&journal).unwrap();
        assert_eq!(files.read(), Ok(journal));
        files.write_generation(3).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("generation")).unwrap(),
            "3\n"
        );
        std::fs::write(dir.path().join("journal.json"), "{").unwrap();
        assert!(files.read().unwrap_err().contains("journal.json"));
    }
}
