//! What the guest is not given: processes, memory, a run folder that can be written, the right time.

use crate::{agent_pid, shell};
use mvm_client::dev::Output;
use mvm_client::{Deadlines, Endpoint, Session};
use mvm_guest_tests::{Mvmctl, Parts, TestVm, build_pool, eventually};
use mvm_protocol::lifecycle::{SleepPrep, Wake};
use mvm_protocol::status::{Health, Lifecycle};

/// fork(2) fails with EAGAIN: of the service that says nothing.
#[tokio::test]
async fn without_processes_to_be_had_a_check_says_so_and_no_verdict_changes() {
    let Some(vm) = TestVm::new() else { return };
    let before = agent_pid(&vm).await;
    // As many as there are in between two checks.
    vm.sh(
        "cd /sys/fs/cgroup; echo +pids >cgroup.subtree_control; echo 1 >agent/pids.max; \
         cat agent/pids.max",
    )
    .await;
    let web = eventually("a check that cannot be started", async || {
        let web = vm.check("web").await;
        let last = web.last_check.clone()?;
        last.output.contains("unavailable").then_some(web)
    })
    .await;
    let last = web.last_check.unwrap();
    assert_eq!(web.health, Health::Healthy, "{last:?}");
    assert!(last.output.starts_with("not started: fork: "), "{last:?}");
    assert_eq!(last.exit_code, None);
    vm.session().await.status().await.unwrap();
    vm.sh("echo max >/sys/fs/cgroup/agent/pids.max").await;
    let web = vm.check("web").await;
    assert_eq!(web.last_check.unwrap().exit_code, Some(0));
    assert_eq!(agent_pid(&vm).await, before);
}

/// Nothing can be kept, so nothing is begun that would be owed.
#[tokio::test]
async fn a_guest_whose_run_folder_is_read_only_does_not_sleep_and_says_why() {
    let Some(vm) = TestVm::new() else { return };
    let before = agent_pid(&vm).await;
    // Over it, since what the agent has open for writing keeps it from being made read-only itself.
    vm.sh("mount --bind /run/mvm /run/mvm && mount -o remount,bind,ro /run/mvm")
        .await;
    let refused = vm.session().await.sleep_prep(SleepPrep::default()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("Read-only file system"), "{refused}");
    let status = eventually("it runs", async || {
        let status = vm.session().await.status().await.unwrap();
        (status.lifecycle == Lifecycle::Running).then_some(status)
    });
    assert!(!status.await.integrations.is_empty());
    assert_eq!(vm.check("web").await.health, Health::Healthy);
    vm.sh("umount /run/mvm").await;
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    let wake = Wake {
        token: Some(ready.unwrap().token),
        ..Wake::default()
    };
    vm.session().await.wake(wake).await.unwrap();
    assert_eq!(agent_pid(&vm).await, before);
}

/// A year forward, and two back.
#[tokio::test]
async fn a_clock_that_is_set_by_a_year_makes_no_burst_and_no_verdict() {
    let Some(vm) = TestVm::new() else { return };
    let before = vm.session().await.inspect().await.unwrap();
    for step in [31_536_000_i64, -63_072_000] {
        let now: i64 = vm.sh("date +%s").await.trim().parse().unwrap();
        vm.sh(&format!("date -s @{}", now + step)).await;
        let web = eventually("a check since", async || {
            let web = vm.check("web").await;
            let at = web.last_check.as_ref()?.at.0 / 1000;
            ((at - now - step).abs() < 600).then_some(web)
        })
        .await;
        assert_eq!(web.health, Health::Healthy, "{web:?}");
        let after = vm.session().await.inspect().await.unwrap();
        assert_eq!(after.agent.pid, before.agent.pid);
        let started = after.agent.started_at.0 / 1000;
        assert!(
            (now + step - started).abs() < 600,
            "it began {started}, and it is {}",
            now + step
        );
    }
}

/// 80 MiB, of which the guest itself needs most.
#[tokio::test]
async fn a_command_that_takes_all_memory_is_ended_and_the_agent_stays() {
    let Some(parts) = Parts::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    build_pool(&parts, folder.path(), true);
    let image = folder.path().join("image");
    let image = image.to_str().unwrap();
    let mvmctl = Mvmctl::new();
    let start = [
        "vm",
        "start",
        "small",
        "--image",
        image,
        "--backend",
        "qemu",
    ];
    mvmctl.ok(&[&start[..], &["--memory", "80"]].concat());
    let endpoint = Endpoint::unix(mvmctl.file("small", "v.sock"));
    let session = async || {
        let session = Session::connect(&endpoint, &Deadlines::default()).await;
        session.unwrap()
    };
    let before = session().await.inspect().await.unwrap();
    assert!(before.system.memory_total_bytes < 80 << 20);
    for _ in 0..3 {
        let script = "a=xxxxxxxxxxxxxxxx; while :; do a=$a$a; done";
        let mut session = session().await;
        let (_input, mut output) = session.exec(shell(script)).await.unwrap().split();
        let exited = loop {
            if let Output::Exited(exited) = output.next().await.unwrap() {
                break exited;
            }
        };
        assert_eq!(exited.signal.as_deref(), Some("KILL"), "{exited:?}");
    }
    let after = session().await.inspect().await.unwrap();
    assert_eq!(after.agent.pid, before.agent.pid);
    let logs = mvmctl.ok(&["vm", "logs", "small"]).stdout;
    assert!(logs.contains("Out of memory: Killed process"), "{logs}");
}

/// Memory that the kernel promises nobody any more (vm.overcommit_memory), so that execve(2) fails with
/// ENOMEM, and so does whatever wants more of it. The agent goes on with what it has.
#[tokio::test]
async fn without_memory_to_be_had_a_check_says_so_and_no_verdict_changes() {
    let Some(vm) = TestVm::new() else { return };
    let before = agent_pid(&vm).await;
    // The shell that does so cannot start anything either: it waits for a pipe without a writer.
    let script = "cd /proc/sys/vm; mkfifo /run/never; exec 3<>/run/never; echo 0 >admin_reserve_kbytes; \
         echo 0 >user_reserve_kbytes; echo 1 >overcommit_kbytes; echo 2 >overcommit_memory; \
         read -t 6 word <&3; echo 0 >overcommit_memory; echo over";
    let (over, web) = tokio::join!(
        vm.sh(script),
        eventually("a check that cannot be started", async || {
            let status = vm.session().await.status().await.unwrap();
            let web = status
                .integrations
                .into_iter()
                .find(|it| it.name == "web")?;
            let last = web.last_check.clone()?;
            last.output
                .contains("Cannot allocate memory")
                .then_some(web)
        })
    );
    assert_eq!(over, "over\n");
    assert_eq!(web.health, Health::Healthy, "{web:?}");
    let last = web.last_check.unwrap();
    assert!(last.output.starts_with("not started: "), "{last:?}");
    let web = vm.check("web").await;
    assert_eq!(web.health, Health::Healthy);
    assert_eq!(web.last_check.unwrap().exit_code, Some(0));
    assert_eq!(agent_pid(&vm).await, before);
}
