//! Changes that are told, each by its event.

use super::*;
use crate::process::ProcessId;
use crate::record::tests::record;
use crate::{Ending, Process, Record, Recorded, Role};
use std::fs;
use std::process::{Child, Command};

/// A deadline that is not meant to be met.
const LONG: Duration = Duration::from_secs(20);

struct TestHome {
    _root: tempfile::TempDir,
    home: Home,
}

impl TestHome {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self {
            home: Home::at(root.path().join("mvm")),
            _root: root,
        }
    }

    fn with(name: &str, record: &Record) -> Self {
        let home = Self::new();
        home.save(name, record);
        home
    }

    fn save(&self, name: &str, record: &Record) {
        let folder = self.home.vm(&named(name));
        folder.create().unwrap();
        folder.save(record).unwrap();
    }

    fn watch(&self, name: &str) -> Watch {
        Watch::of(&self.home, [named(name)]).unwrap()
    }
}

fn named(name: &str) -> VmName {
    VmName::new(name).unwrap()
}

/// A process that is a VM's, ended with the test.
struct Vmm(Child);

impl Vmm {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn record(&self, state: Recorded) -> Record {
        let (process, _) = Process::identify(Role::Vmm, self.0.id()).unwrap();
        Record {
            state,
            processes: vec![process],
            ..record()
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn next(watch: &mut Watch) -> Change {
    watch.wait(LONG).unwrap().expect("a change")
}

fn change(name: &str, state: impl Into<Option<VmState>>) -> Change {
    Change {
        name: named(name),
        state: state.into(),
    }
}

#[test]
fn the_end_of_its_process_is_told() {
    let mut vmm = Vmm::new();
    let home = TestHome::with("web", &vmm.record(Recorded::Running));
    let mut watch = home.watch("web");
    assert_eq!(watch.state(&named("web")), Some(&VmState::Running));
    assert_eq!(watch.wait(Duration::ZERO).unwrap(), None);
    vmm.0.kill().unwrap();
    let ended = VmState::Ended(Ending::Unknown);
    assert_eq!(next(&mut watch), change("web", ended.clone()));
    assert_eq!(watch.state(&named("web")), Some(&ended));
    // Told once, though it stays so.
    assert_eq!(watch.wait(Duration::from_millis(50)).unwrap(), None);
}

#[tokio::test]
async fn those_who_may_not_block_are_told_as_well() {
    let mut vmm = Vmm::new();
    let home = TestHome::with("web", &vmm.record(Recorded::Running));
    let mut watch = home.watch("web");
    for _ in 0..3 {
        let waited = tokio::time::timeout(Duration::from_millis(10), watch.next()).await;
        assert!(waited.is_err(), "nothing has changed");
    }
    vmm.0.kill().unwrap();
    let told = tokio::time::timeout(LONG, watch.next()).await;
    let ended = VmState::Ended(Ending::Unknown);
    assert_eq!(told.unwrap().unwrap(), change("web", ended));
    home.save(
        "web",
        &Record {
            state: Recorded::Stopped,
            ..record()
        },
    );
    let told = tokio::time::timeout(LONG, watch.next()).await;
    assert_eq!(told.unwrap().unwrap(), change("web", VmState::Stopped));
}

#[test]
fn what_is_written_is_told() {
    let vmm = Vmm::new();
    let home = TestHome::with("web", &vmm.record(Recorded::Running));
    let mut watch = home.watch("web");
    home.save("web", &vmm.record(Recorded::Stopping));
    assert_eq!(
        watch.wait(Duration::from_millis(50)).unwrap(),
        None,
        "it runs"
    );
    let asleep = Record {
        suspended_in: Some("/s".into()),
        state: Recorded::Asleep,
        ..record()
    };
    home.save("web", &asleep);
    let snapshot = Some("/s".into());
    assert_eq!(
        next(&mut watch),
        change("web", VmState::Asleep { snapshot })
    );
    // The process is another one now, and is watched.
    let mut vmm = Vmm::new();
    home.save("web", &vmm.record(Recorded::Running));
    assert_eq!(next(&mut watch), change("web", VmState::Running));
    vmm.0.kill().unwrap();
    let ended = VmState::Ended(Ending::Unknown);
    assert_eq!(next(&mut watch), change("web", ended));
    fs::remove_dir_all(home.home.vm(&named("web")).path()).unwrap();
    assert_eq!(next(&mut watch), change("web", None));
}

/// The lock is given back without a word when its holder is killed.
#[test]
fn a_start_that_is_broken_off_is_told() {
    let vmm = Vmm::new();
    let home = TestHome::with("web", &vmm.record(Recorded::Starting));
    // Another program has it, and has signed it.
    let lock = home.home.lock(&named("web")).unwrap().into_file();
    let holder = Command::new("sleep").arg("600").stdin(lock).spawn();
    let mut holder = Vmm(holder.unwrap());
    let (signed, _) = Process::identify(Role::Vmm, holder.0.id()).unwrap();
    let signed = format!("{} {}\n", signed.pid, signed.start_ticks);
    fs::write(home.home.root().join("locks/web"), signed).unwrap();
    let mut watch = home.watch("web");
    assert_eq!(watch.state(&named("web")), Some(&VmState::Starting));
    holder.0.kill().unwrap();
    assert_eq!(next(&mut watch), change("web", VmState::StartBrokenOff));
}

#[test]
fn vms_that_come_and_go_are_told() {
    let home = TestHome::new();
    // Not even the folder of all is there.
    let mut watch = Watch::all(&home.home).unwrap();
    assert_eq!(watch.all_known().count(), 0);
    let stopped = Record {
        state: Recorded::Stopped,
        ..record()
    };
    for name in ["a", "b"] {
        home.save(name, &stopped);
        assert_eq!(next(&mut watch), change(name, VmState::Stopped));
    }
    let names: Vec<_> = watch.all_known().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    fs::remove_dir_all(home.home.vm(&named("a")).path()).unwrap();
    assert_eq!(next(&mut watch), change("a", None));
    // A folder that is moved away, and another that takes its place.
    fs::rename(home.home.vm(&named("b")).path(), home.home.root().join("b")).unwrap();
    assert_eq!(next(&mut watch), change("b", None));
    home.save("b", &stopped);
    assert_eq!(next(&mut watch), change("b", VmState::Stopped));
    let own = ProcessId::own().unwrap();
    let running = Record {
        state: Recorded::Running,
        processes: vec![Process {
            role: Role::Vmm,
            pid: own.pid,
            start_ticks: own.start_ticks,
        }],
        ..record()
    };
    home.save("b", &running);
    assert_eq!(next(&mut watch), change("b", VmState::Running));
}

#[test]
fn a_socket_of_anothers_is_told() {
    let home = TestHome::new();
    let mut watch = home.watch("web");
    let folder = home.home.vm(&named("web"));
    folder.create().unwrap();
    fs::write(folder.socket(), "").unwrap();
    let theirs = VmState::NotOurs { state: None };
    assert_eq!(next(&mut watch), change("web", theirs));
    // Written in place, as others may.
    fs::write(folder.file("vm.json"), r#"{"state":"asleep"}"#).unwrap();
    let theirs = VmState::NotOurs {
        state: Some("asleep".into()),
    };
    let mut told = next(&mut watch);
    if matches!(told.state, Some(VmState::Unknown(_))) {
        // Read while it was half written.
        told = next(&mut watch);
    }
    assert_eq!(told, change("web", theirs));
}

#[test]
fn what_is_noted_is_told_to_those_who_watch_all() {
    let vmm = Vmm::new();
    let home = TestHome::with("web", &vmm.record(Recorded::Running));
    let web = named("web");
    let mut all = Watch::all(&home.home).unwrap();
    let mut one = home.watch("web");
    let at = Some(Timestamp(1000));
    let touched = crate::notes::Touched {
        at,
        keep_until: None,
    };
    home.home.vm(&web).touch(touched).unwrap();
    assert_eq!(next(&mut all), change("web", VmState::Running));
    assert_eq!(all.known(&web).unwrap().notes.touched, touched);
    let labelled = Record {
        pinned: true,
        labels: crate::Labels::default()
            .with(&["pool=db".parse().unwrap()])
            .unwrap(),
        ..vmm.record(Recorded::Running)
    };
    let since = all.known(&web).unwrap().since;
    assert!(since.is_some());
    home.save("web", &labelled);
    assert_eq!(next(&mut all), change("web", VmState::Running));
    let known = all.known(&web).unwrap();
    assert_eq!((known.pool.as_deref(), known.pinned), (Some("db"), true));
    assert_eq!(known.since, since, "it is what it was");
    assert_eq!(one.wait(Duration::from_millis(50)).unwrap(), None);
}
