//! What is kept of a VM in its folder: `vm.json`, and after a byte `0xff` each `fleet.json` and
//! `touched.json`.
//!
//! Whatever they say, the VM is one of the states that there are; and a record, or notes, that are
//! read are read the same when they are written again.

use mvm_registry::{Home, Record, VmName};

/// The content of the files.
pub fn records() -> impl FnMut(&[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::at(folder.path());
    let vm = home.vm(&VmName::new("web").unwrap());
    vm.create().unwrap();
    move |input| {
        // It is removed when the target is.
        let _ = &folder;
        let files = ["vm.json", "fleet.json", "touched.json"];
        let mut contents = input.splitn(files.len(), |byte| *byte == 0xff);
        for file in files {
            let path = vm.file(file);
            match contents.next() {
                Some(content) => std::fs::write(path, content).unwrap(),
                None => drop(std::fs::remove_file(path)),
            }
        }
        let notes = vm.notes();
        if !notes.is_unreadable {
            vm.note(&notes.fleet).unwrap();
            vm.touch(notes.touched).unwrap();
            assert_eq!(vm.notes(), notes);
        }
        let now = vm.vm().expect("there is a vm.json");
        let _ = (now.state.code(), now.pool());
        if let Ok(record) = vm.record() {
            let written = Record {
                // It says so itself when it is written.
                since: None,
                started_at: None,
                ..record
            };
            vm.save(&written).unwrap();
            let read = vm.record().unwrap();
            let read = Record {
                since: None,
                started_at: None,
                ..read
            };
            assert_eq!(read, written);
        }
    }
}
