//! Files and folders into a guest and out of it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts, Run, TestVm};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use tempfile::TempDir;

/// A VM that is reached by an address, and the program that copies.
struct Copies<'a> {
    mvmctl: &'a Mvmctl,
    vm: String,
}

impl Copies<'_> {
    fn there(&self, path: &str) -> String {
        format!("{}:{path}", self.vm)
    }

    fn cp(&self, from: &str, to: &str) -> Run {
        self.mvmctl.run(&["vm", "cp", from, to])
    }

    fn ok(&self, from: &str, to: &str) {
        self.mvmctl.ok(&["vm", "cp", from, to]);
    }

    /// What a script prints there. It has to succeed.
    fn sh(&self, script: &str) -> String {
        let arguments = ["vm", "exec", &self.vm, "--", "sh", "-c", script];
        self.mvmctl.ok(&arguments).stdout
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// All that is in a folder: paths, modes, and contents or where links lead.
fn all(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(here) = waiting.pop() {
        for entry in fs::read_dir(&here).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else if metadata.is_dir() {
                waiting.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.push((name, metadata.mode(), content));
        }
    }
    found.sort();
    found
}

/// Ten thousand small files, in folders of a hundred.
fn small_files(folder: &Path) {
    for number in 0..100 {
        let folder = folder.join(format!("folder {number}"));
        fs::create_dir(&folder).unwrap();
        for number in 0..100 {
            fs::write(
                folder.join(format!("{number}")),
                format!("number {number}\n"),
            )
            .unwrap();
        }
    }
    fs::set_permissions(folder.join("folder 7"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(folder.join("folder 7/7"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../folder 8/9", folder.join("folder 7/link")).unwrap();
}

#[test]
fn ten_thousand_small_files_there_and_back() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let copies = Copies {
        mvmctl: &mvmctl,
        vm: vm.address(),
    };
    let folder = TempDir::new().unwrap();
    let (here, back) = (folder.path().join("here"), folder.path().join("back"));
    fs::create_dir(&here).unwrap();
    small_files(&here);
    // The guest's root is half of its memory.
    copies.sh("mount -t tmpfs -o size=90m,nr_inodes=0 none /mnt");
    copies.ok(text(&here), &copies.there("/mnt"));
    assert_eq!(copies.sh("find /mnt/here -type f | wc -l"), "10000\n");
    copies.ok(&copies.there("/mnt/here"), text(&back));
    assert!(all(&here) == all(&back));
    let again = copies.cp(text(&here), &copies.there("/mnt"));
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("there already"), "{again:?}");
}

#[test]
fn a_file_there_and_back_with_its_mode() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let copies = Copies {
        mvmctl: &mvmctl,
        vm: vm.address(),
    };
    let folder = TempDir::new().unwrap();
    let here = folder.path().join("program");
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&here, &content).unwrap();
    fs::set_permissions(&here, fs::Permissions::from_mode(0o4750)).unwrap();
    copies.ok(text(&here), &copies.there("/tmp"));
    assert_eq!(copies.sh("stat -c %a /tmp/program"), "4750\n");
    let back = folder.path().join("back");
    copies.ok(&copies.there("/tmp/program"), text(&back));
    assert!(fs::read(&back).unwrap() == content);
    assert_eq!(back.metadata().unwrap().mode() & 0o7777, 0o750);
    let nothing = copies.cp(&copies.there("/no/such/file"), text(&back));
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains("/no/such/file"), "{nothing:?}");
    let device = copies.cp(&copies.there("/dev/zero"), text(&back));
    assert_eq!(device.code, Some(1), "{device:?}");
}

#[test]
fn a_disk_that_is_full_keeps_the_old_file() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let copies = Copies {
        mvmctl: &mvmctl,
        vm: vm.address(),
    };
    copies.sh("mount -t tmpfs -o size=4m none /mnt && echo old >/mnt/x");
    let folder = TempDir::new().unwrap();
    let large = folder.path().join("large");
    fs::write(&large, vec![7; 32 << 20]).unwrap();
    let failed = copies.cp(text(&large), &copies.there("/mnt/x"));
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(
        failed.stderr.contains("No space left on device"),
        "{failed:?}"
    );
    assert_eq!(copies.sh("cat /mnt/x; ls -A /mnt"), "old\nx\n");
    // A folder is not there by half either.
    let failed = copies.cp(text(folder.path()), &copies.there("/mnt/folder"));
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert_eq!(copies.sh("ls -A /mnt"), "x\n");
}

/// As a plain process: an emulated guest takes a minute for a gigabyte.
#[test]
fn a_gigabyte_of_nothing_takes_up_nothing() {
    let Some(parts) = Parts::find() else { return };
    let mvmctl = Mvmctl::new();
    let agent = text(&parts.dev_agent);
    mvmctl.ok(&["vm", "start", "web", "--backend", "local", "--agent", agent]);
    let copies = Copies {
        mvmctl: &mvmctl,
        vm: "web".into(),
    };
    let folder = TempDir::new().unwrap();
    let [here, there, back] = ["here", "there", "back"].map(|name| folder.path().join(name));
    let file = fs::File::create(&here).unwrap();
    file.set_len(1 << 30).unwrap();
    copies.ok(text(&here), &copies.there(text(&there)));
    copies.ok(&copies.there(text(&there)), text(&back));
    for file in [&there, &back] {
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 0));
    }
}
