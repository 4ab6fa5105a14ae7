//! What has to survive the agent, in the run directory: as long as the guest runs, and no longer.

use crate::core::lifecycle::Journal;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

    /// Writes beside and renames, so that a reader, or an agent after a crash, sees the old or the
    /// new and nothing between.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let beside = self.dir.join(format!(".{name}.new"));
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(content)?;
        std::fs::rename(beside, self.dir.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read() {
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
