//! `vm snapshot` and `vm restore`: what is refused before anything is touched.

use crate::host::Host;
use mvm_fake_agent::well;
use std::fs;

#[test]
fn a_vm_that_cannot_be_kept_is_not_put_to_sleep() {
    for (backend, state, expected) in [
        (
            "local",
            "running",
            "backend local cannot do this: it has no snapshots",
        ),
        ("qemu", "asleep", "web: the VM is asleep"),
        // Its record says so, and its process is gone: it has crashed.
        ("qemu", "running", "web: the VM has ended by itself"),
    ] {
        let host = Host::with("web", well).own("web", backend, state);
        let to = host.path().join("snapshot");
        host.mvmctl(&format!("vm snapshot web --to {}", to.display()))
            .exits(1)
            .says(expected);
        assert_eq!(host.accepted("web"), 0, "{backend} {state}");
        assert!(!to.exists());
    }
    Host::with("web", well)
        .own("web", "qemu", "running")
        .mvmctl("vm snapshot wbe")
        .exits(3)
        .says("did you mean `web`?");
}

#[test]
fn what_is_no_snapshot_starts_nothing() {
    let host = Host::new();
    let folder = host.path().join("snapshot");
    let restore = format!("vm restore {} --name new", folder.display());
    host.mvmctl(&restore).exits(1).says("is no snapshot");
    fs::create_dir(&folder).unwrap();
    host.mvmctl(&restore)
        .exits(1)
        .says("cannot read its manifest.json");
    fs::write(folder.join("manifest.json"), "{\"version\": 3}").unwrap();
    host.mvmctl(&restore).exits(1).says("has version 3");
    assert!(!host.path().join("vms/new").exists());
    let unnamed = format!("vm restore {}", folder.display());
    host.mvmctl(&unnamed).exits(2).says("--name <NEW>");
    let elsewhere = format!("{unnamed} --name ../new");
    host.mvmctl(&elsewhere)
        .exits(2)
        .says("cannot be a VM's name");
}

#[test]
fn a_vm_that_others_started_is_theirs_to_snapshot() {
    let host = Host::with("web", well);
    host.mvmctl("vm snapshot web")
        .exits(1)
        .says("mvmctl did not start it")
        .says("between `mvmctl vm sleep web` and `mvmctl vm wake web`");
    assert_eq!(host.accepted("web"), 0);
}

/// Its `mvmctl` was killed before the VM ran: the snapshot has what it was doing still.
#[test]
fn a_restore_that_was_broken_off_does_not_make_a_cold_boot_of_it() {
    let host = Host::new().own("web", "qemu", "starting");
    let record = host.path().join("vms/web/vm.json");
    let text = fs::read_to_string(&record).unwrap();
    let kept = host.path().join("kept");
    let kept = kept.display();
    let suspended = format!("\"suspended_in\":\"{kept}\",\"processes\"");
    fs::write(&record, text.replace("\"processes\"", &suspended)).unwrap();
    fs::create_dir(host.path().join("kept")).unwrap();
    host.mvmctl("vm start web")
        .exits(1)
        .says(&format!("it is asleep in {kept}"))
        .says(&format!("mvmctl vm restore {kept} --name web"));
    // Nobody is sent to a folder that has gone.
    fs::remove_dir(host.path().join("kept")).unwrap();
    host.mvmctl("vm start web")
        .exits(1)
        .says("which is not there any more")
        .says("put it back")
        .says("vm start --discard-state web");
}
