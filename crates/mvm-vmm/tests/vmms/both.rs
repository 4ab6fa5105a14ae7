//! What is to be so with either VMM; how they are asked is their own.

use crate::test_host::{LONG, TestHost, names, told};
use mvm_fake_vmm::Subject;
use mvm_registry::VmState;
use mvm_vmm::error::Error;
use mvm_vmm::suspend::may_be_broken_off;
use mvm_vmm::{Deadline, Recorded};
use std::path::Path;
use std::time::Duration;

/// How the end of a VMM is told that was made to die.
pub(crate) fn killed(vmm: &Subject) -> &'static str {
    if vmm.is_real() {
        "signal 9"
    } else {
        "exit status 1"
    }
}

pub(crate) fn starts_again_after_a_crash(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    vm.kill();
    assert!(vm.folder.file("api.sock").exists(), "it is left behind");
    vm.try_start(LONG).unwrap();
    assert!(vm.runs());
}

/// The error of a start with that fault. It leaves no process, and nothing that is in the next start's
/// way.
pub(crate) fn failing_start(vmm: &Subject, fault: &str, at_most: Duration) -> Error {
    let host = TestHost::new(vmm);
    let vm = host.vm("web");
    vm.inject(fault);
    let error = vm.try_start(at_most).unwrap_err();
    assert!(!vm.runs(), "{fault}");
    assert_eq!(vm.record().state, Recorded::Stopped, "{fault}");
    vm.try_start(LONG).unwrap();
    error
}

/// With what the VMM is to be asked by a restore.
pub(crate) fn suspends_and_resumes(vmm: &Subject, restored: &[impl AsRef<str>]) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), true);
    assert!(!vm.runs());
    assert_eq!(vm.record().state, Recorded::Asleep);
    vm.forget_calls();
    vm.restore(&snapshot, false).unwrap();
    let calls = vm.calls();
    assert!(
        calls.iter().eq(restored.iter().map(AsRef::as_ref)),
        "{calls:?}"
    );
    assert_eq!(vm.record().state, Recorded::Running);
}

/// A snapshot with that fault fails with those words, and leaves nothing but the VM as it ran. To
/// resume it is a request that begins so; one that was not paused is to get none.
pub(crate) fn a_snapshot_that_fails_leaves_the_vm_running(
    vmm: &Subject,
    fault: &str,
    words: &[&str],
    resume: &str,
    was_paused: bool,
) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    vm.inject(fault);
    let to = host.path("s");
    let (mut session, frozen) = vm.freeze(&to, LONG);
    told(&frozen.unwrap_err(), words);
    vm.forget_calls();
    session.run_on(Deadline::new(LONG, None)).unwrap();
    let calls = vm.calls();
    let resumed = calls.iter().any(|call| call.starts_with(resume));
    assert_eq!(resumed, was_paused, "{fault}: {calls:?}");
    assert_eq!(vm.record().state, Recorded::Running);
    assert_eq!(names(to.parent().unwrap()), ["home", "image"], "{fault}");
}

/// `fault` has it die when it is to write a snapshot.
pub(crate) fn a_vmm_that_dies_while_snapshotting_is_told(vmm: &Subject, fault: &str) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    vm.inject(fault);
    let (mut session, frozen) = vm.freeze(&host.path("s"), LONG);
    told(&frozen.unwrap_err(), &["in the middle of the answer"]);
    // Nobody listens any more, or still but not for long.
    session.run_on(Deadline::new(LONG, None)).unwrap_err();
    let state = vm.folder.vm().unwrap().state;
    assert!(matches!(state, VmState::Ended(_)), "{state:?}");
}

/// If this program is killed, the next one finds what it has made.
pub(crate) fn where_a_snapshot_is_made_is_noted_before_it_is(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    // Nobody makes a folder there.
    let error = vm.try_take(Path::new("/proc/s")).unwrap_err();
    told(&error, &["cannot make a folder in /proc"]);
    let noted = vm.record().snapshot_dir.expect("it was noted");
    let is_there = noted.exists();
    let noted = noted.display().to_string();
    assert!(noted.starts_with("/proc/.partial-") && !is_there, "{noted}");
    // What is noted and not there is nothing to mend.
    assert!(!may_be_broken_off(&vm.record()).unwrap());
    let snapshot = vm.snapshot(&host.path("s"), false);
    let noted = vm.record().snapshot_dir.unwrap();
    assert_eq!(noted.parent(), snapshot.folder.parent());
}
