//! What has to survive the agent, in the run directory: as long as the guest runs, and no longer.

use super::console::say;
use super::interface::Machine;
use super::outcome::NotDone;
use super::regular_file::{Link, Trust, read_regular};
use crate::core::lifecycle::Journal;
use mvm_protocol::lifecycle::MAX_PAYLOAD;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The journal, and the largest that is read, in bytes: more than ten thousand integrations make.
const JOURNAL: &str = "journal.json";
const MAX_JOURNAL: usize = 4 * 1024 * 1024;

/// The generation's number, and the largest such file that is read, in bytes.
const GENERATION: &str = "generation";
const MAX_NUMBER: usize = 64;
/// The payload's file.
pub(crate) const PAYLOAD: &str = "payload.json";

/// The list of cgroups that were frozen. Its presence says that the guest's work stands still.
const FROZEN: &str = "frozen";

/// The largest such list that is read, in bytes: tens of thousands of cgroups.
const MAX_FROZEN: usize = 4 * 1024 * 1024;

/// What is removed to make room, in the run directory.
const RESERVE: &str = ".reserve";

/// How much that is, in bytes: eight pages and the largest payload. A journal and the generation's
/// number need one each, the list of 200 cgroups four, and each its own once more while it is replaced.
const RESERVE_BYTES: usize = 32 * 1024 + MAX_PAYLOAD;

/// The journal's file, and the generation's for programs in the guest.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    /// The list of what is frozen as this agent has kept it last: it goes by its file only if it has kept
    /// none. Somebody may remove that, or mount something over it, while the guest sleeps.
    frozen: Rc<RefCell<Option<Vec<String>>>>,
}

impl Files {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self {
            dir: run_dir.to_owned(),
            frozen: Rc::default(),
        }
    }

    /// Sets room aside for a journal: a guest whose `/run` is full has to sleep and wake as well.
    pub(crate) fn make_reserve(&self) {
        // Zeros, since a file with a hole in it takes no room.
        let _ = create(&self.path(RESERVE), &vec![0; RESERVE_BYTES], 0o600);
    }

    /// What an earlier agent kept; nothing if there was none. A journal that is none is said to be
    /// that: what may be owed is not known then, and nothing is run for it. The generation's number
    /// stands in a file of its own as well.
    pub(crate) fn read(&self) -> Journal {
        let mut journal = self.read_journal();
        // Whatever has become of the journal: what an earlier agent froze stands still.
        journal.frozen |= self.path(FROZEN).symlink_metadata().is_ok();
        journal
    }

    fn read_journal(&self) -> Journal {
        let told = |name: &str, why: &dyn fmt::Display| {
            say!("{}: {why}", self.path(name).display());
        };
        let read = |name: &str, max| {
            let read = read_regular(&self.path(name), Link::Refused, Trust::Owner, max);
            match read {
                Ok(content) => Some(content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    told(name, &error);
                    None
                }
            }
        };
        let journal = read(JOURNAL, MAX_JOURNAL).and_then(|text| {
            let journal = serde_json::from_slice::<Journal>(&text);
            journal.map_err(|error| told(JOURNAL, &error)).ok()
        });
        match journal {
            Some(journal) => journal,
            None if self.path(JOURNAL).symlink_metadata().is_err() => Journal::default(),
            None => {
                told(
                    JOURNAL,
                    &"not gone by: what may have been owed is not known",
                );
                let number = read(GENERATION, MAX_NUMBER);
                let number = number.and_then(|text| String::from_utf8(text).ok());
                Journal {
                    generation: number
                        .and_then(|text| text.trim().parse().ok())
                        .unwrap_or_default(),
                    ..Journal::default()
                }
            }
        }
    }

    /// Keeps the journal: whole or not at all.
    pub(crate) fn keep(&self, journal: &Journal) -> io::Result<()> {
        let text = serde_json::to_vec(journal)?;
        self.replace(JOURNAL, &text)
    }

    /// Writes the generation's number, by which a program sees that it was restored.
    pub(crate) fn write_generation(&self, generation: u64) -> io::Result<()> {
        self.replace(GENERATION, format!("{generation}\n").as_bytes())
    }

    /// Puts the payload where programs find it, for the agent's own user alone: it may have secrets.
    /// If that fails there is none: the one of the wake before is another guest's.
    pub(crate) fn write_payload(&self, text: &str) -> io::Result<()> {
        self.remove_payload()?;
        self.replace(PAYLOAD, text.as_bytes())
    }

    /// Removes the payload of the wake before.
    pub(crate) fn remove_payload(&self) -> io::Result<()> {
        self.remove(PAYLOAD)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The folders of the cgroups that were frozen here; those above before those below.
    /// One that is there and cannot be read is no empty one: it is all that says who is to be thawed.
    pub(crate) fn frozen(&self) -> Result<Vec<String>, NotDone> {
        if let Some(kept) = &*self.frozen.borrow() {
            return Ok(kept.clone());
        }
        let path = self.path(FROZEN);
        let list = match read_regular(&path, Link::Refused, Trust::Owner, MAX_FROZEN) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read
                .map_err(|error| NotDone::Failed(format!("the list of what is frozen: {error}")))?,
        };
        let list = String::from_utf8_lossy(&list);
        Ok(list.lines().map(str::to_owned).collect())
    }

    /// Keeps that list, so that just those are thawed whatever becomes of the agent; no file is no
    /// cgroup.
    pub(crate) fn keep_frozen(&self, groups: &[String]) -> io::Result<()> {
        if groups.is_empty() {
            self.remove(FROZEN)?;
        } else {
            // The kernel lets nobody have a newline in the name of a cgroup.
            self.replace(FROZEN, groups.join("\n").as_bytes())?;
        }
        self.frozen.replace(Some(groups.to_vec()));
        Ok(())
    }

    /// A file of the run directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// As [`Files::exchange`], if need be in the room that was set aside.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
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
        let mode = if name == PAYLOAD { 0o600 } else { 0o644 };
        let exchanged = create(&beside, content, mode)
            .and_then(|_| std::fs::rename(&beside, self.dir.join(name)));
        if exchanged.is_err() {
            let _ = std::fs::remove_file(beside);
        }
        exchanged
    }
}

/// Writes a new file in the place of what has that name: a link would lead to another, and a FIFO
/// would hold the agent.
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    Ok(file)
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
        assert_eq!(files.read(), Journal::default());
        let journal = Journal {
            asleep: true,
            owed: vec!["db".into()],
            generation: 3,
            ..Journal::default()
        };
        files.keep(&journal).unwrap();
        assert_eq!(files.read(), journal);
        files.write_generation(3).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("generation")).unwrap(),
            "3\n"
        );
        std::fs::write(dir.path().join("journal.json"), "{").unwrap();
        let known = Journal {
            generation: 3,
            ..Journal::default()
        };
        assert_eq!(files.read(), known, "of one that is cut");
    }

    /// Whoever took it for empty would leave for ever what is frozen.
    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        assert!(files.frozen().unwrap().is_empty());
        let path = dir.path().join("frozen");
        std::fs::write(&path, vec![b'x'; MAX_FROZEN + 1]).unwrap();
        let thawed = super::super::workload::thaw(&files);
        assert!(matches!(thawed, Err(NotDone::Failed(_))), "{thawed:?}");
        assert!(path.exists());
    }

    /// It may be removed, or have something mounted over it, while the guest sleeps.
    #[test]
    fn an_agent_knows_what_it_has_frozen_whatever_becomes_of_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let frozen = ["/nonexistent/a".to_owned()];
        files.keep_frozen(&frozen).unwrap();
        std::fs::remove_file(dir.path().join("frozen")).unwrap();
        assert_eq!(files.clone().frozen().unwrap(), frozen);
        // A cgroup that has gone has nobody in it.
        super::super::workload::thaw(&files).unwrap();
        assert!(files.frozen().unwrap().is_empty());
    }

    #[test]
    fn what_was_frozen_is_to_be_thawed_whatever_becomes_of_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        files.keep_frozen(&["/nonexistent/a".to_owned()]).unwrap();
        for journal in [None, Some("{"), Some("")] {
            if let Some(text) = journal {
                std::fs::write(dir.path().join("journal.json"), text).unwrap();
            }
            assert!(Files::new(dir.path()).read().frozen, "{journal:?}");
        }
    }

    /// Each of these would be written through, or hold whoever opens it.
    #[test]
    fn what_stands_in_the_way_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (mode, fifo) = (rustix::fs::Mode::RUSR, rustix::fs::FileType::Fifo);
        std::fs::write(path("precious"), "x").unwrap();
        std::os::unix::fs::symlink("precious", path(".journal.json.new")).unwrap();
        for name in [".reserve", ".generation.new"] {
            rustix::fs::mknodat(rustix::fs::CWD, path(name), fifo, mode, 0).unwrap();
        }
        let files = Files::new(dir.path());
        files.make_reserve();
        files.keep(&Journal::default()).unwrap();
        files.write_generation(7).unwrap();
        assert_eq!(std::fs::read(path("precious")).unwrap(), b"x");
        assert_eq!(std::fs::read(path("generation")).unwrap(), b"7\n");
        let reserve = std::fs::metadata(path(".reserve")).unwrap();
        assert_eq!(reserve.len(), 98_304);
    }
}
