//! VMs that go: their folders, and what killed programs have left of some.

use crate::error::Error;
use crate::leftovers::{entries, sweep_removed};
use crate::machine::replace_stopped_vm;
use mvm_registry::{Alive, Home, VmFolder, VmName};
use std::io::ErrorKind;
use std::path::Path;

/// Removes a VM that does not run: its folder, with its logs and snapshots.
pub fn remove(home: &Home, name: &VmName) -> Result<(), Error> {
    sweep_removed(home);
    let folder = home.vm(name);
    folder.record()?;
    let lock = home.lock(name)?;
    let record = folder.record()?;
    // One whose start was broken off too: somebody may be about to look at it.
    let alive = record.alive()?;
    if let Some(main) = Alive::main(&alive) {
        return Err(Error::NotRemoved {
            name: name.to_string(),
            pid: main.pid,
        });
    }
    replace_stopped_vm(name, &record, &folder)?;
    remove_whole(home, &folder)?;
    home.remove_lock(name, lock);
    Ok(())
}

/// Removes a VM's folder. First it is moved out of the way: of a folder that is half gone nobody would
/// know any more whose it was, or that it is to go. That takes no room, so that it goes from a disk that
/// is full. Whoever calls this holds the VM's lock.
fn remove_whole(home: &Home, folder: &VmFolder) -> Result<(), Error> {
    let removing = home.removing();
    mvm_registry::make_private(&removing)?;
    let going = removing.join(format!("{}.{}", folder.name(), std::process::id()));
    // What is there under that name a killed program has left.
    remove_all(&going)?;
    std::fs::rename(folder.path(), &going).map_err(Error::io("remove", folder.path()))?;
    remove_all(&going)
}

fn remove_all(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Removes what killed programs have left: folders that were being removed, and folders in which a VM
/// was to be made by the fleet of which nothing was started yet. What another program is at just now is
/// left to it, or gone with it.
///
/// # Errors
///
/// [`Error::Registry`] and [`Error::Io`] if it cannot even be looked.
pub fn sweep(home: &Home) -> Result<(), Error> {
    sweep_removed(home);
    for entry in entries(&home.vms())? {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| VmName::new(name).ok()) else {
            continue;
        };
        let folder = home.vm(&name);
        let is_begun = folder.vm().is_some() || !folder.path().is_dir();
        let is_empty = || entries(folder.path()).is_ok_and(|entries| entries.is_empty());
        if is_begun || !(folder.notes().fleet.made || is_empty()) {
            continue;
        }
        let Ok(lock) = home.lock(&name) else {
            continue;
        };
        if folder.vm().is_none() && remove_whole(home, &folder).is_ok() {
            home.remove_lock(&name, lock);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{remove_whole, sweep};
    use mvm_registry::notes::FleetNotes;
    use mvm_registry::{Home, VmName};
    use std::fs;

    #[test]
    fn what_killed_programs_have_left_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path());
        sweep(&home).unwrap();
        let folder = |name: &str| home.vm(&VmName::new(name).unwrap());
        // One that was being removed, and one that was to be removed under a name of its own.
        fs::create_dir_all(home.removing().join("web-7x/vm/snapshots")).unwrap();
        // Clones that were just begun: before and after it was noted whose they are.
        for name in ["begun", "noted", "started", "kept", "locked"] {
            folder(name).create().unwrap();
        }
        let made = FleetNotes {
            made: true,
            ..FleetNotes::default()
        };
        for name in ["noted", "started", "locked"] {
            folder(name).note(&made).unwrap();
        }
        // One that has come further, what is somebody's, and what somebody is at.
        fs::write(folder("started").file("vm.json"), "{}").unwrap();
        fs::write(folder("kept").file("notes.txt"), "mine").unwrap();
        let _lock = home.lock(&VmName::new("locked").unwrap()).unwrap();
        sweep(&home).unwrap();
        let mut left: Vec<_> = fs::read_dir(home.vms())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["kept", "locked", "started"]);
        assert_eq!(fs::read_dir(home.removing()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_left_of_a_removal_is_not_in_the_way_of_the_next() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path());
        let folder = home.vm(&VmName::new("web").unwrap());
        folder.create().unwrap();
        assert!(home.removing().is_dir(), "there is room for it yet");
        fs::write(folder.file("vm.json"), "{}").unwrap();
        let left = format!("web.{}/snapshots", std::process::id());
        fs::create_dir_all(home.removing().join(left)).unwrap();
        remove_whole(&home, &folder).unwrap();
        assert!(!folder.path().exists());
        assert_eq!(fs::read_dir(home.removing()).unwrap().count(), 0);
    }
}
