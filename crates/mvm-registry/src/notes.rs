//! What is noted of a VM beside its record: `fleet.json` by whoever serves the fleet, of which there is
//! one at a time, and `touched.json` by hosts that use the VM. So each file is written by one kind of
//! writer, none of which needs the VM's lock: a host that says that it uses a VM does so while the VM
//! is being snapshotted, too.
//!
//! A clone that failed has left no VM, so that what is noted of those stands in `$MVM_HOME`:
//! `failed-clones.json`, likewise by whoever serves the fleet.

use crate::files::{open_regular, read_all, write_whole};
use crate::trust::{self, ANYBODY_ELSE};
use crate::{Error, Home, VmFolder};
use mvm_protocol::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

/// The largest file of these that is read, in bytes.
const MAX_NOTES: u64 = 16 << 10;

/// The same of `failed-clones.json`, which has a line for each pool: a policy has a mebibyte at most.
const MAX_FAILED_CLONES: u64 = 1 << 20;

/// `fleet.json`: what outlives the program that serves the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FleetNotes {
    /// Whether the fleet made the VM, as a clone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// The fleet's last action on it that failed, if none has succeeded since that makes up for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedAction>,
}

/// An action of the fleet that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAction {
    /// What was tried: `sleep`, `wake`…
    pub action: String,
    /// When it failed last.
    pub at: Timestamp,
    /// How many times in a row it has failed.
    pub times: u32,
    /// Why, for people.
    #[serde(default)]
    pub problem: String,
}

/// `touched.json`: what `vm touch` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Touched {
    /// When a host last said that it uses the VM.
    pub at: Option<Timestamp>,
    /// Until when it wants the VM kept as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_until: Option<Timestamp>,
}

/// Both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    /// `fleet.json`
    pub fleet: FleetNotes,
    /// `touched.json`
    pub touched: Touched,
    /// Whether one of the files is there and cannot be read, or not be believed: then nobody knows what
    /// is wanted of the VM, and it is to be left alone.
    pub is_unreadable: bool,
}

impl VmFolder {
    /// What is noted of the VM.
    pub fn notes(&self) -> Notes {
        let fleet: io::Result<Option<FleetNotes>> = read(&self.file("fleet.json"));
        let touched: io::Result<Option<Touched>> = read(&self.file("touched.json"));
        Notes {
            is_unreadable: fleet.is_err() || touched.is_err(),
            fleet: fleet.ok().flatten().unwrap_or_default(),
            touched: touched.ok().flatten().unwrap_or_default(),
        }
    }

    /// Writes `fleet.json`: whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn note(&self, notes: &FleetNotes) -> Result<(), Error> {
        write(&self.file("fleet.json"), notes)
    }

    /// Writes `touched.json`: whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn touch(&self, touched: Touched) -> Result<(), Error> {
        write(&self.file("touched.json"), &touched)
    }
}

impl Home {
    /// The last clone of each pool that failed, if none has come to something since. A file that cannot be read
    /// or believed says nothing: then a clone is tried sooner again than it should.
    pub fn failed_clones(&self) -> BTreeMap<String, FailedAction> {
        let noted = read_up_to(&self.root().join("failed-clones.json"), MAX_FAILED_CLONES);
        noted.ok().flatten().unwrap_or_default()
    }

    /// Writes them: whole or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn note_failed_clones(&self, failed: &BTreeMap<String, FailedAction>) -> Result<(), Error> {
        write(&self.root().join("failed-clones.json"), failed)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    read_up_to(path, MAX_NOTES)
}

fn read_up_to<T: DeserializeOwned>(path: &Path, most: u64) -> io::Result<Option<T>> {
    let file = match open_regular(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file?,
    };
    trust::check(path, &file.metadata()?, ANYBODY_ELSE).map_err(io::Error::other)?;
    Ok(Some(serde_json::from_slice(&read_all(&file, most)?)?))
}

fn write(path: &Path, notes: &impl Serialize) -> Result<(), Error> {
    let content =
        serde_json::to_vec(notes).map_err(|error| Error::io("write", path)(error.into()))?;
    write_whole(path, &content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Home, VmName};

    #[test]
    fn what_was_noted_is_read_back_and_what_makes_no_sense_is_told() {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web").unwrap());
        assert_eq!(folder.notes(), Notes::default());
        folder.create().unwrap();
        let fleet = FleetNotes {
            made: true,
            failed: Some(FailedAction {
                action: "sleep".into(),
                at: Timestamp(8000),
                times: 2,
                problem: "no space".into(),
            }),
        };
        folder.note(&fleet).unwrap();
        let touched = Touched {
            at: Some(Timestamp(9000)),
            keep_until: None,
        };
        folder.touch(touched).unwrap();
        let notes = folder.notes();
        assert_eq!((&notes.fleet, notes.touched), (&fleet, touched));
        assert!(!notes.is_unreadable);
        std::fs::write(folder.file("touched.json"), "{\"at\":").unwrap();
        let notes = folder.notes();
        assert!(notes.is_unreadable);
        assert_eq!(notes.fleet, fleet);
    }

    #[test]
    fn clones_that_failed_are_read_back_and_what_makes_no_sense_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        assert_eq!(home.failed_clones(), BTreeMap::new());
        let failed = FailedAction {
            action: "clone".into(),
            at: Timestamp(8000),
            times: 3,
            problem: String::new(),
        };
        let failed = BTreeMap::from([("web".to_owned(), failed)]);
        home.note_failed_clones(&failed).unwrap();
        assert_eq!(home.failed_clones(), failed);
        std::fs::write(folder.path().join("failed-clones.json"), "{").unwrap();
        assert_eq!(home.failed_clones(), BTreeMap::new());
    }
}
