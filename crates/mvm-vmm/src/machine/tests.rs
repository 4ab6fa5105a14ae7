use super::sweep;
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
