//! Disks that are full, and a root that may not be written.

use crate::agent_pid;
use mvm_guest_tests::{Mvmctl, TestVm, eventually};
use mvm_protocol::lifecycle::{Awake, Entropy, Outcome, SleepPrep, Wake, WakeCause};
use mvm_protocol::status::{Health, Lifecycle};

/// A sleep and a wake. Each of their steps is taken.
async fn sleeps_and_wakes(vm: &TestVm, cause: WakeCause) -> Awake {
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    let restored = cause == WakeCause::Restored;
    let wake = Wake {
        token: Some(ready.unwrap().token),
        entropy: restored.then(|| Entropy::new(vec![7; 64]).unwrap()),
        clone: restored,
        cause,
        ..Wake::default()
    };
    let awake = vm.session().await.wake(wake).await.unwrap();
    for step in &awake.steps {
        assert!(
            step.outcome == Outcome::Ok || step.outcome == Outcome::Skipped,
            "{step:?}"
        );
    }
    awake
}

/// Kills the agent, and waits for the next one.
async fn restarted(vm: &TestVm, times: usize) {
    vm.kill_agent().await;
    vm.wait_for_agent(times);
    eventually("the guest runs", async || {
        let status = vm.session().await.status().await.unwrap();
        let runs = status.lifecycle == Lifecycle::Running && status.integrations.len() == 2;
        runs.then_some(())
    })
    .await;
}

/// A file and a folder, which are not there afterwards, by half neither.
async fn nothing_can_be_put(vm: &TestVm, mvmctl: &Mvmctl, why: &str) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    for file in ["file", "folder/file"] {
        std::fs::write(folder.path().join(file), vec![7; 1 << 20]).unwrap();
    }
    let before = vm.sh("ls -A /etc").await;
    for name in ["file", "folder"] {
        let from = folder.path().join(name);
        let to = format!("{}:/etc/{name}", vm.address());
        let failed = mvmctl.run(&["vm", "cp", from.to_str().unwrap(), &to]);
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(failed.stderr.contains(why), "{failed:?}");
    }
    assert_eq!(vm.sh("ls -A /etc").await, before);
}

/// `/run`, `/tmp` and `/etc`. The root of this guest is as large as its memory: `/etc` gets a size of its own.
#[tokio::test]
async fn a_guest_whose_disks_are_full_is_looked_after_as_before() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let script = "cp -a /etc /tmp/etc; mount -t tmpfs none /etc; cp -a /tmp/etc/. /etc; rm -r /tmp/etc; \
         for at in /etc /run /tmp; do \
         set -- $(df -kP $at | tail -n 1); mount -o remount,size=$(($3 + 64))k $at || exit 1; \
         dd if=/dev/zero of=$at/filler bs=512 2>/dev/null; \
         (echo more >$at/more) 2>&1; done; rm -f /etc/more /run/more /tmp/more";
    let told = vm.sh(script).await;
    assert_eq!(told.matches("No space left").count(), 3, "{told}");
    nothing_can_be_put(&vm, &mvmctl, "No space left on device").await;
    let ran = mvmctl.ok(&["vm", "exec", &vm.address(), "--", "echo", "hi"]);
    assert_eq!(ran.stdout, "hi\n");
    sleeps_and_wakes(&vm, WakeCause::Aborted).await;
    restarted(&vm, 1).await;
    assert_eq!(vm.check("web").await.health, Health::Healthy);
    sleeps_and_wakes(&vm, WakeCause::Aborted).await;
    // Asleep when it is killed: the next one knows.
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    restarted(&vm, 2).await;
    let history = vm.session().await.inspect().await.unwrap().snapshot;
    assert!(history.last_sleep.is_some(), "{history:?}");
    vm.sh("rm /etc/filler /run/filler /tmp/filler").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let to = format!("{}:/tmp/file", vm.address());
    mvmctl.ok(&["vm", "cp", file.path().to_str().unwrap(), &to]);
}

#[tokio::test]
async fn a_guest_whose_root_is_read_only_is_looked_after_as_before() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    vm.sh("mount -o remount,ro /; (echo more >/more) 2>/dev/null && exit 1; true")
        .await;
    let before = agent_pid(&vm).await;
    nothing_can_be_put(&vm, &mvmctl, "Read-only file system").await;
    assert_eq!(vm.check("web").await.health, Health::Healthy);
    let names = "hostname; cat /proc/sys/kernel/random/boot_id";
    let own = vm.sh(names).await;
    let awake = sleeps_and_wakes(&vm, WakeCause::Restored).await;
    assert_eq!(awake.generation, 1);
    let clones = vm.sh(names).await;
    for (own, clones) in own.lines().zip(clones.lines()) {
        assert_ne!(own, clones);
    }
    assert_eq!(agent_pid(&vm).await, before);
    restarted(&vm, 1).await;
    assert_eq!(vm.check("web").await.health, Health::Healthy);
    assert_eq!(vm.sh("cat /run/mvm/generation").await, "1\n");
}
