//! Sockets that are listened on, or not, under all the names that they can have.

use super::*;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use tempfile::TempDir;

struct Jailed {
    _root: TempDir,
    home: Home,
    folder: PathBuf,
}

impl Jailed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path());
        let folder = home.vm(&VmName::new("jailed").unwrap()).path().to_owned();
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            _root: root,
            home,
            folder,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("v.sock")
    }

    fn findings(&self) -> Vec<Finding> {
        own(&self.home)
    }

    /// Whether it is told that nobody listens.
    fn is_left_behind(&self) -> bool {
        match self.findings().as_slice() {
            [] => false,
            [only] => {
                assert_eq!((only.level, &*only.subject), (Level::Warning, "vm jailed"));
                assert!(only.message.contains("nobody listens on"), "{only:?}");
                assert!(only.fix.as_deref().is_some_and(|fix| fix.contains("rm ")));
                true
            }
            more => panic!("{more:?}"),
        }
    }
}

#[test]
fn a_socket_that_is_listened_on_under_its_name_is_not_dialled() {
    let jailed = Jailed::new();
    let listener = UnixListener::bind(jailed.socket()).unwrap();
    assert!(!jailed.is_left_behind());
    listener.set_nonblocking(true).unwrap();
    let accepted = listener.accept();
    assert!(accepted.is_err(), "it was dialled");
    drop(listener);
    assert!(jailed.is_left_behind());
}

/// As a VMM binds it that is started in the VM's folder.
#[test]
fn one_that_was_bound_under_another_name_is_alive() {
    let jailed = Jailed::new();
    let discovered = jailed.folder.join("bound-so");
    let listener = UnixListener::bind(&discovered).unwrap();
    std::fs::rename(&discovered, jailed.socket()).unwrap();
    assert!(!is_listed(&jailed.socket()));
    assert!(!jailed.is_left_behind());
    // It was told nothing.
    let (mut stream, _) = listener.accept().unwrap();
    let mut said = Vec::new();
    io::Read::read_to_end(&mut stream, &mut said).unwrap();
    assert_eq!(said, b"");
    drop(listener);
    assert!(jailed.is_left_behind());
}

#[test]
fn a_home_with_another_name_makes_no_difference() {
    let jailed = Jailed::new();
    let link = jailed.folder.join("link");
    std::os::unix::fs::symlink(jailed.home.root(), &link).unwrap();
    let _listener = UnixListener::bind(jailed.socket()).unwrap();
    assert_eq!(own(&Home::at(&link)), []);
}

#[test]
fn one_whose_queue_is_full_is_alive() {
    let jailed = Jailed::new();
    let discovered = jailed.folder.join("bound-so");
    let listener = UnixListener::bind(&discovered).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    std::fs::rename(&discovered, jailed.socket()).unwrap();
    let _fills_it = connect(&jailed.folder, "v.sock").unwrap();
    assert!(!jailed.is_left_behind());
}

#[test]
fn what_is_no_socket_is_not_taken_for_one() {
    let jailed = Jailed::new();
    std::fs::write(jailed.socket(), "").unwrap();
    let [finding] = jailed.findings().try_into().unwrap();
    assert!(finding.message.ends_with("is no socket"), "{finding:?}");
    assert!(!finding.fix.unwrap().contains("rm "));
}

#[test]
fn those_that_are_found_elsewhere_are_looked_at_too() {
    let folder = tempfile::tempdir().unwrap();
    let vm = DiscoveredVm {
        name: "jailed".into(),
        socket: folder.path().join("run.sock"),
    };
    assert_eq!(discovered(&vm), None, "it is not there");
    let listener = UnixListener::bind(&vm.socket).unwrap();
    assert_eq!(discovered(&vm), None);
    drop(listener);
    let finding = discovered(&vm).unwrap();
    assert_eq!(finding.subject, "vm jailed");
    assert!(finding.message.contains("nobody listens on"));
}

fn write_record(jailed: &Jailed, state: &str) {
    let record = format!(
        r#"{{"version":1,"name":"jailed","backend":"qemu","state":"{state}","image":null,
        "cpus":1,"memory_mib":256,"port":52,"accelerator":"tcg","boot_id":"x","processes":[]}}"#
    );
    std::fs::write(jailed.folder.join("vm.json"), record).unwrap();
}

#[test]
fn a_vm_that_ended_by_itself_is_found() {
    let jailed = Jailed::new();
    write_record(&jailed, "running");
    let [finding] = jailed.findings().try_into().unwrap();
    let message = "it has ended by itself: this machine was restarted";
    assert_eq!(finding.message, message);
    assert_eq!(finding.fix.unwrap(), "mvmctl vm stop jailed");
    write_record(&jailed, "stopped");
    assert_eq!(jailed.findings(), []);
}

#[test]
fn what_does_not_run_is_never_dialled() {
    let jailed = Jailed::new();
    let discovered = jailed.folder.join("bound-so");
    let listener = UnixListener::bind(&discovered).unwrap();
    std::fs::rename(&discovered, jailed.socket()).unwrap();
    listener.set_nonblocking(true).unwrap();
    for state in ["stopped", "asleep", "running"] {
        write_record(&jailed, state);
        jailed.findings();
        assert!(listener.accept().is_err(), "{state}: it was dialled");
    }
    // What others write of theirs is believed as well.
    let record = jailed.folder.join("vm.json");
    std::fs::write(&record, r#"{"state":"asleep"}"#).unwrap();
    assert_eq!(jailed.findings(), []);
    assert!(listener.accept().is_err(), "another's: it was dialled");
}
