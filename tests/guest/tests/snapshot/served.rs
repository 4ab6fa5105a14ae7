//! Filesystems that a process of the guest serves (FUSE): one that stands still answers nobody, and must
//! not hold up the agent.

use crate::frozen::{drawing, end_agent, frozen};
use crate::story::Story;
use crate::thawed::{draws_on, mover, witness, woken};
use mvm_client::Error as ClientError;
use mvm_guest_tests::{SOON, eventually, held_up};
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::drop_in::Secs;
use mvm_protocol::lifecycle::{Outcome, SleepPrep, StepKind, WakeCause};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

/// Where the process is that serves.
const SERVER: &str = "/sys/fs/cgroup/server";

/// Has a process of the guest's work serve a filesystem at /mnt, on a device if one is named.
async fn serve(story: &Story, device: &str) {
    let script = format!(
        "mkdir -p {SERVER}; (sh -c 'echo 0 >{SERVER}/cgroup.procs; \
         exec guest-probe fuse /mnt {device}' &) >/dev/null 2>&1"
    );
    story.sh("golden", &script).await;
    eventually("it is served", async || {
        let there = "[ -e /mnt/disk ] && echo yes || true";
        (story.sh("golden", there).await == "yes\n").then_some(())
    })
    .await;
}

/// What `ntfs-3g` is: a filesystem on a disk, which the agent has to sync.
#[tokio::test]
async fn a_sync_that_waits_for_a_process_that_stands_still_ends_at_its_deadline() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    serve(&story, "/dev/ram0").await;
    let prep = SleepPrep {
        deadline_secs: Secs::new(Duration::from_secs(4)).unwrap(),
        ..SleepPrep::default()
    };
    let mut session = story.session("golden").await;
    let asked = timeout(SOON, session.sleep_prep(prep)).await;
    let refused: ErrorAnswer = match asked.expect("an answer") {
        Err(ClientError::Refused(error)) => error,
        other => panic!("{other:?}"),
    };
    let why = "the sync timed out: syncfs of /mnt does not return; the guest was rolled back";
    assert!(refused.message.starts_with(why), "{}", refused.message);
    let steps = refused.steps.unwrap();
    let of = |kind| steps.iter().filter(move |it| it.step == kind);
    let synced: Vec<_> = of(StepKind::Sync).map(|it| &it.outcome).collect();
    assert_eq!(synced.len(), 2, "{steps:?}");
    assert!(*synced[0] == Outcome::Ok && *synced[1] == Outcome::TimedOut);
    assert_eq!(of(StepKind::Thaw).count(), 1, "{steps:?}");
    draws_on(&story, "rollback").await;
    story.sh("golden", "[ -e /mnt/disk ] && umount /mnt").await;
}

/// One that moves itself would do the same. The last sync is held up until it has been moved, by a server
/// that is not frozen; and the freeze before it by a process in the kernel, until that server is stopped.
#[tokio::test]
async fn who_gets_out_of_what_is_frozen_before_the_guest_is_ready_is_told() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    serve(&story, "/dev/ram0").await;
    let server = story
        .sh("golden", &format!("cat {SERVER}/cgroup.procs"))
        .await;
    let server = server.trim();
    let script = format!(
        "echo {server} >/sys/fs/cgroup/services/remote/cgroup.procs; mkdir /run/held; \
         mke2fs /dev/ram1 >/dev/null 2>&1; mount -t ext4 /dev/ram1 /run/held"
    );
    story.sh("golden", &script).await;
    let process = mover(&story).await;
    let told = format!("in no cgroup that can be frozen: sleep ({process})");
    let out = format!("echo {process} >/sys/fs/cgroup/cgroup.procs; kill -CONT {server}");
    let back = format!("echo {process} >/sys/fs/cgroup/mover/cgroup.procs");
    for require_freeze in [true, false] {
        let script = format!(
            "fsfreeze --freeze /run/held; sh -c 'echo 0 >{SERVER}/cgroup.procs; \
             echo text >/run/held/file' >/dev/null 2>&1 & pid=$!; \
             until grep -q ' D ' /proc/$pid/stat; do usleep 10000; done; \
             (until read now </sys/fs/cgroup/mover/cgroup.freeze && [ $now = 1 ]; do :; done; \
             kill -STOP {server}; fsfreeze --unfreeze /run/held) >/dev/null 2>&1 &"
        );
        story.sh("golden", &script).await;
        let prep = SleepPrep {
            require_freeze,
            ..SleepPrep::default()
        };
        let mut session = story.session("golden").await;
        let (ready, ()) = held_up(session.sleep_prep(prep), async {
            eventually("it is frozen, and the sync waits", async || {
                let script =
                    format!("cut -d ' ' -f 3 /proc/{server}/stat; pidof mvm-guest-agent | wc -w");
                (story.sh("golden", &script).await == "T\n2\n").then_some(())
            })
            .await;
            story.sh("golden", &out).await;
        })
        .await;
        if require_freeze {
            let refused = ready.unwrap_err();
            let why = format!("the freeze failed: {told}; the guest was rolled back");
            assert!(refused.to_string().contains(&why), "{refused}");
            draws_on(&story, "rollback").await;
            story.sh("golden", &back).await;
        } else {
            let ready = ready.unwrap();
            assert_eq!(frozen(&ready).last(), Some(&&*told), "{ready:?}");
            woken(&story, WakeCause::Aborted).await;
            draws_on(&story, "aborted").await;
        }
    }
    story.sh("golden", "[ -e /mnt/disk ] && umount /mnt").await;
}

/// Frozen, and not ready yet.
#[tokio::test]
async fn every_way_out_of_a_last_sync_that_hangs_thaws_the_work() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    serve(&story, "/dev/ram0").await;
    let stands_still = async || {
        eventually("it stands still", async || {
            let script = format!("grep -c 'frozen 1' {SERVER}/cgroup.events; true");
            (story.sh("golden", &script).await == "1\n").then_some(())
        })
        .await;
    };
    for signal in ["KILL", "TERM"] {
        let mut session = story.session("golden").await;
        let (cut_off, ()) = tokio::join!(session.sleep_prep(SleepPrep::default()), async {
            stands_still().await;
            end_agent(&story, "golden", signal).await;
        });
        cut_off.unwrap_err();
        draws_on(&story, "restart").await;
    }
    let prep = SleepPrep {
        lease_secs: Secs::new(Duration::from_secs(2)).unwrap(),
        ..SleepPrep::default()
    };
    let mut session = story.session("golden").await;
    let (expired, ()) = tokio::join!(session.sleep_prep(prep), stands_still());
    expired.unwrap_err();
    draws_on(&story, "lease").await;
    let mut session = story.session("golden").await;
    let (called_off, ()) = tokio::join!(session.sleep_prep(SleepPrep::default()), async {
        stands_still().await;
        woken(&story, WakeCause::Aborted).await;
    });
    called_off.unwrap_err();
    draws_on(&story, "aborted").await;
}

/// What is just being mounted is locked, and who drops the caches waits for it: here for a disk whose
/// bytes come from a process that stands still.
#[tokio::test]
async fn a_mount_that_hangs_does_not_hang_the_agent() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    serve(&story, "").await;
    let script = format!(
        "losetup /dev/loop0 /mnt/disk; mke2fs /dev/loop0 >/dev/null 2>&1; sync; mkdir /other; \
         echo 3 >/proc/sys/vm/drop_caches; echo 1 >{SERVER}/cgroup.freeze; \
         (mount -t ext4 /dev/loop0 /other &) >/dev/null 2>&1"
    );
    story.sh("golden", &script).await;
    eventually("it waits in the kernel", async || {
        let script = "grep -l '^mount$' /proc/[0-9]*/comm | while read -r file; do \
             cut -d ' ' -f 3 <${file%comm}stat; done";
        (story.sh("golden", script).await == "D\n").then_some(())
    })
    .await;
    let mut session = story.session("golden").await;
    let asked = timeout(SOON, session.sleep_prep(SleepPrep::default())).await;
    let ready = asked.expect("an answer").unwrap();
    let dropped = ready
        .steps
        .iter()
        .find(|it| it.step == StepKind::DropCaches);
    let dropped = dropped.unwrap();
    assert_eq!(dropped.outcome, Outcome::TimedOut, "{dropped:?}");
    let why = dropped.detail.as_deref();
    assert_eq!(why, Some("drop_caches does not return"));
    woken(&story, WakeCause::Aborted).await;
    draws_on(&story, "aborted").await;
    // Nor past a deadline; and nobody waits any more for the process that was left behind.
    let prep = SleepPrep {
        deadline_secs: Secs::new(Duration::from_secs(6)).unwrap(),
        ..SleepPrep::default()
    };
    let mut session = story.session("golden").await;
    let late = timeout(SOON, session.sleep_prep(prep)).await;
    let Err(ClientError::Refused(late)) = late.expect("an answer") else {
        panic!("it is ready")
    };
    let why = "the deadline passed";
    assert!(late.message.contains(why), "{}", late.message);
    let steps = late.steps.unwrap();
    let checkpoint = steps.iter().find(|it| it.step == StepKind::Checkpoint);
    assert!(checkpoint.unwrap().duration_ms < 2000, "{steps:?}");
    draws_on(&story, "rollback").await;
    // Nothing of it is left once the disk answers.
    let script = format!("echo 0 >{SERVER}/cgroup.freeze");
    story.sh("golden", &script).await;
    eventually("it is mounted", async || {
        let script = "grep -c ' /other ' /proc/mounts; ps -o stat,comm | grep -c '^D'; true";
        (story.sh("golden", script).await == "1\n0\n").then_some(())
    })
    .await;
}
