//! The stories, each told of both VMMs.

use crate::world::{Backend, World};
use std::fs;

/// A call and what it came to.
fn done(call: &str) -> String {
    format!("{call} 204")
}

pub(crate) fn a_snapshot_keeps_to_the_contract_and_so_does_its_clone(backend: &Backend) {
    let world = World::with_web(backend);
    let taken = world.json("vm snapshot web --to s");
    // The guest first, nothing open when it is frozen, and the guest last.
    assert_eq!(
        world.calls("web"),
        [
            "guest sleep-prep".to_owned(),
            done(backend.pause),
            done(backend.write),
            done(backend.resume),
            "guest wake aborted, time".to_owned(),
        ]
    );
    assert_eq!(
        (&taken["stopped"], &taken["vm"]),
        (&false.into(), &"web".into())
    );
    assert_eq!(
        (world.state(), world.lifecycle("web")),
        ("running".into(), "running".into())
    );
    assert_eq!(world.left(), ["s"]);

    let restored = world.json("vm restore s --name one --clone");
    assert_eq!(
        (&restored["was_ready"], &restored["generation"]),
        (&true.into(), &1.into())
    );
    let calls = world.calls("one");
    let woken = "guest wake restored, clone, time, entropy";
    assert_eq!(calls.last().map(String::as_str), Some(woken), "{calls:?}");
    assert_eq!(world.lifecycle("one"), "running");
    // The source is another guest.
    assert_eq!(world.json("vm status web")["lifecycle"], "running");
}

pub(crate) fn a_vm_is_suspended_and_resumed(backend: &Backend) {
    let world = World::with_web(backend);
    world.ok("vm snapshot web --to s --stop");
    assert_eq!(
        world.calls("web"),
        [
            "guest sleep-prep".to_owned(),
            done(backend.pause),
            done(backend.write)
        ]
    );
    assert_eq!(world.state(), "asleep");
    world.forget_calls();
    world.ok("vm restore s --name web");
    let calls = world.calls("web");
    let woken = "guest wake restored, time, entropy";
    assert_eq!(calls.last().map(String::as_str), Some(woken), "{calls:?}");
    assert_eq!(
        (world.state(), world.lifecycle("web")),
        ("running".into(), "running".into())
    );
}

pub(crate) fn a_guest_that_does_not_get_ready_costs_the_vm_nothing(backend: &Backend) {
    let world = World::with_web(backend);
    world.inject("guest sleep-prep refuse");
    world.fails(
        "vm snapshot web --to s",
        &[
            "the disk is on fire",
            "no snapshot was taken, and the VM runs on",
        ],
    );
    // The VMM was not asked for anything.
    assert_eq!(world.calls("web"), ["guest sleep-prep fault refuse"]);
    assert_eq!((world.state(), world.left()), ("running".into(), vec![]));
}

pub(crate) fn a_snapshot_that_fails_is_undone_and_the_guest_is_told(backend: &Backend) {
    let world = World::with_web(backend);
    for (call, fault) in [
        (backend.pause, "500"),
        (backend.pause, "cut"),
        (backend.write, "500"),
        (backend.write, "cut"),
    ] {
        world.inject(&format!("{call} {fault}"));
        world.fails(
            "vm snapshot web --to s",
            &["no snapshot was taken, and the VM runs on"],
        );
        let calls = world.calls("web");
        assert_eq!(
            calls.last().unwrap(),
            "guest wake aborted, time",
            "{calls:?}"
        );
        assert_eq!(
            (world.state(), world.lifecycle("web")),
            ("running".into(), "running".into())
        );
        assert_eq!(world.left(), [""; 0], "{call} {fault}");
        world.forget_calls();
    }
    world.ok("vm snapshot web --to s");
}

/// Whether the guest sleeps is not known then.
pub(crate) fn a_sleep_whose_answer_is_lost_is_undone(backend: &Backend) {
    let world = World::with_web(backend);
    world.inject("guest sleep-prep cut");
    let failed = world.run("vm snapshot web --to s");
    assert_eq!(failed.code, Some(3), "{failed:?}");
    let told = "no snapshot was taken, and the VM runs on";
    assert!(failed.stderr.contains(told), "{failed:?}");
    assert_eq!(
        world.calls("web"),
        ["guest sleep-prep fault cut", "guest wake aborted, time"]
    );
    assert_eq!(world.lifecycle("web"), "running");
}

pub(crate) fn a_vmm_that_dies_is_told(backend: &Backend) {
    let world = World::with_web(backend);
    world.inject(&format!("{} die", backend.write));
    world.fails("vm snapshot web --to s", &["in the middle of the answer"]);
    assert_eq!((world.state(), world.left()), ("stopped".into(), vec![]));
}

/// One that hangs for good is given up after a minute, and stays asleep: see the driver's own tests.
pub(crate) fn a_vmm_that_is_too_slow_is_given_up_and_the_vm_runs_on(backend: &Backend) {
    let world = World::with_web(backend);
    world.inject(&format!("{} late", backend.write));
    world.fails(
        "vm snapshot web --to s --timeout 500ms",
        &[
            "not answered within",
            "no snapshot was taken, and the VM runs on",
        ],
    );
    let calls = world.calls("web");
    assert_eq!(
        calls.last().unwrap(),
        "guest wake aborted, time",
        "{calls:?}"
    );
    assert_eq!((world.state(), world.left()), ("running".into(), vec![]));
}

pub(crate) fn the_next_command_mends_what_a_killed_one_has_left(backend: &Backend) {
    let world = World::with_web(backend);
    for next in ["vm wake web", "vm snapshot web --to t", "vm start web"] {
        // It is killed while the state is being written.
        world.inject(&format!("{} wait", backend.write));
        let mut killed = world.begin("vm snapshot web --to s");
        world.await_call(&format!("{} fault wait", backend.write));
        killed.kill().unwrap();
        killed.wait().unwrap();
        world.touch("web", "go");
        assert_eq!(world.state(), "asleep");
        let [partial] = world.left().try_into().unwrap();
        assert!(partial.starts_with(".partial-"), "{partial}");
        let ping = world.run("vm ping web");
        assert_eq!(ping.code, Some(3), "a frozen VM is not dialled: {ping:?}");
        assert!(ping.stderr.contains("mvmctl vm wake web"), "{ping:?}");
        let doctor = world.run("doctor");
        assert!(doctor.stdout.contains("mvmctl vm wake web"), "{doctor:?}");

        let mended = world.ok(next);
        assert!(mended.stderr.contains("was broken off"), "{mended:?}");
        let calls = world.calls("web");
        let at = calls.iter().position(|call| *call == done(backend.resume));
        let woken = calls
            .iter()
            .position(|call| call == "guest wake aborted, time");
        assert!(at < woken && at.is_some(), "{calls:?}");
        assert_eq!(
            (world.state(), world.lifecycle("web")),
            ("running".into(), "running".into())
        );
        let left = world.left();
        assert!(left.is_empty() || left == ["t"], "{left:?}");
        let _ = fs::remove_dir_all(world.path("t"));
        world.forget_calls();
    }

    // Before the VM was frozen, it runs, and its guest sleeps.
    world.inject(&format!("{} wait", backend.pause));
    let mut killed = world.begin("vm snapshot web --to s");
    world.await_call(&format!("{} fault wait", backend.pause));
    killed.kill().unwrap();
    killed.wait().unwrap();
    world.touch("web", "go");
    // What it holds can be ended, too.
    world.ok("vm stop web");
    assert_eq!((world.state(), world.left()), ("stopped".into(), vec![]));
}

pub(crate) fn the_broken_version_is_refused() {
    let world = World::with_version(&Backend::FIRECRACKER, Some("1.16.0"));
    world.fails(
        "vm snapshot web --to s",
        &["1.16.0", "loses the guest's vsock"],
    );
    assert_eq!(
        world.calls("web"),
        [""; 0],
        "neither the VM nor its guest noticed"
    );
    assert_eq!((world.state(), world.left()), ("running".into(), vec![]));
}
