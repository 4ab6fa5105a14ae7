//! Every way out of a sleep thaws the guest's work, once and before restore commands run; and what
//! cannot be frozen is told.

use crate::frozen::{drawing, drawn_after, end_agent, frozen, lines_drawn};
use crate::story::Story;
use mvm_client::{Deadlines, Endpoint, Error as ClientError, Session};
use mvm_guest_tests::eventually;
use mvm_protocol::drop_in::Secs;
use mvm_protocol::lifecycle::{Outcome, SleepPrep, Step, StepKind, Token, Wake, WakeCause};
use serde_json::{Value, json};
use std::time::Duration;

/// A lease in seconds that does not run out.
const LONG: f64 = 600.0;

/// Where the service is that draws.
const DRAW: &str = "/sys/fs/cgroup/services/draw";

/// Writes down, at its restore, whether the service that draws stands still. Where there is a file for
/// that, its command kills the agent, and stays. The agent is its parent, or that of a restore command's
/// witness.
pub(crate) fn witness() -> Value {
    let kill = |when: &str| {
        let agent = match when {
            "restore" => "$(cut -d ' ' -f 4 /proc/$PPID/stat)",
            _ => "$PPID",
        };
        format!(
            "if rm /run/kill-{when} 2>/dev/null; then kill -9 {agent}; exec sleep 98765; fi; true"
        )
    };
    let told = format!("echo $MVM_CAUSE $(cat {DRAW}/cgroup.freeze) >>/run/restored");
    json!({
        "name": "witness",
        "health_cmd": "true",
        "checkpoint_cmd": kill("checkpoint"),
        "personalize_cmd": kill("personalize"),
        "restore_cmd": format!("{}; {told}", kill("restore")),
    })
}

/// What restore commands have written since this was last asked.
async fn restored(story: &Story) -> String {
    let script = "cd /run; mv restored seen 2>/dev/null && cat seen; true";
    story.sh("golden", script).await.trim().to_owned()
}

/// Makes it ready, sees that nothing is drawn, and gives what was said of the freeze.
async fn asleep(story: &Story, lease: f64) -> String {
    let prep = SleepPrep {
        lease_secs: Secs::new(Duration::from_secs_f64(lease)).unwrap(),
        ..SleepPrep::default()
    };
    let ready = story.session("golden").await.sleep_prep(prep).await;
    let before = lines_drawn(story, "golden").await;
    let uptime = "read up _ </proc/uptime; echo $up";
    let began = story.sh("golden", uptime).await;
    eventually("time passes", async || {
        let now = story.sh("golden", uptime).await;
        (now.trim().parse::<f64>().unwrap() > began.trim().parse::<f64>().unwrap() + 0.2)
            .then_some(())
    })
    .await;
    assert_eq!(lines_drawn(story, "golden").await, before);
    frozen(&ready.unwrap()).join(", ")
}

/// Sees that numbers are drawn again, what restore commands have seen, and that nothing is left of the
/// freeze.
pub(crate) async fn draws_on(story: &Story, cause: &str) {
    let lines = lines_drawn(story, "golden").await;
    drawn_after(story, "golden", lines).await;
    let expected = format!("{cause} 0");
    eventually("its restore command has run", async || {
        let told = restored(story).await;
        assert!(told.is_empty() || told == expected, "{told}");
        (told == expected).then_some(())
    })
    .await;
    let list = "ls /run/mvm/frozen 2>&1; true";
    let list = story.sh("golden", list).await;
    assert!(list.contains("No such"), "{list}");
}

pub(crate) async fn woken(story: &Story, cause: WakeCause) -> Vec<Step> {
    let wake = Wake {
        cause,
        ..Wake::default()
    };
    story
        .session("golden")
        .await
        .wake(wake)
        .await
        .unwrap()
        .steps
}

/// What was said of a step of a wake.
fn detail(steps: &[Step], kind: StepKind) -> Vec<String> {
    let steps = steps.iter().filter(|it| it.step == kind);
    steps.filter_map(|it| it.detail.clone()).collect()
}

#[tokio::test]
async fn every_way_out_of_a_sleep_thaws_the_work_before_restore_commands_run() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    for cause in [WakeCause::Aborted, WakeCause::Restored] {
        assert_eq!(asleep(&story, LONG).await, "2 cgroups, 3 processes");
        let steps = woken(&story, cause).await;
        assert_eq!(detail(&steps, StepKind::Thaw), ["2 cgroups"]);
        draws_on(
            &story,
            if cause == WakeCause::Aborted {
                "aborted"
            } else {
                "restored"
            },
        )
        .await;
    }
    asleep(&story, 1.0).await;
    draws_on(&story, "lease").await;

    asleep(&story, LONG).await;
    end_agent(&story, "golden", "KILL").await;
    draws_on(&story, "restart").await;

    // While it is frozen and wakes, and when it is thawed and wakes still.
    for when in ["personalize", "restore"] {
        asleep(&story, LONG).await;
        story.sh("golden", &format!(": >/run/kill-{when}")).await;
        let mut session = story.session("golden").await;
        session.wake(Wake::default()).await.unwrap_err();
        draws_on(&story, "restart").await;
    }
    // Before there is anything to thaw.
    story.sh("golden", ": >/run/kill-checkpoint").await;
    story.sleep_prep().await.unwrap_err();
    draws_on(&story, "restart").await;

    // Neither a second host nor its wake is a way out.
    asleep(&story, LONG).await;
    let before = lines_drawn(&story, "golden").await;
    let mut second = story.session("golden").await;
    let other = Token::new("another");
    let prep = SleepPrep {
        token: other.clone(),
        ..SleepPrep::default()
    };
    let wake = Wake {
        token: other,
        ..Wake::default()
    };
    let busy = second.sleep_prep(prep).await.unwrap_err();
    assert_eq!(code(&busy), "busy");
    let wrong = second.wake(wake).await.unwrap_err();
    assert_eq!(code(&wrong), "wrong-token");
    assert_eq!(lines_drawn(&story, "golden").await, before);
    woken(&story, WakeCause::Aborted).await;
    draws_on(&story, "aborted").await;

    // One that is stopped thaws by itself, whether or not init has another.
    asleep(&story, LONG).await;
    let script = format!(
        "pid=$(pidof mvm-guest-agent); kill -TERM $pid; \
         while kill -0 $pid 2>/dev/null; do :; done; cat {DRAW}/cgroup.freeze; pidof mvm-guest-agent; true"
    );
    assert_eq!(
        story.sh("golden", &script).await,
        "0\n",
        "no other has begun yet"
    );
    draws_on(&story, "restart").await;

    // Others freeze, thaw and start what they like.
    let script = "for name in idle hers; do mkdir /sys/fs/cgroup/$name; \
         sh -c \"echo 0 >/sys/fs/cgroup/$name/cgroup.procs; exec sleep 12345\" & done; \
         echo 1 >/sys/fs/cgroup/hers/cgroup.freeze";
    story
        .sh("golden", &format!("({script}) >/dev/null 2>&1"))
        .await;
    assert_eq!(asleep(&story, LONG).await, "4 cgroups, 5 processes");
    let script = format!(
        "echo 0 >{DRAW}/cgroup.freeze; mkdir /sys/fs/cgroup/late; \
         (sh -c 'echo 0 >/sys/fs/cgroup/late/cgroup.procs; exec sleep 12345' &) >/dev/null 2>&1"
    );
    story.sh("golden", &script).await;
    let steps = woken(&story, WakeCause::Restored).await;
    let again = "thawed by somebody else and frozen again: /services/draw; new, and frozen: /late";
    assert_eq!(detail(&steps, StepKind::Freeze), [again]);
    assert_eq!(detail(&steps, StepKind::Thaw), ["4 cgroups"]);
    draws_on(&story, "restored").await;
    let left = story
        .sh("golden", "cat /sys/fs/cgroup/*/cgroup.freeze | tr -d '\\n'")
        .await;
    assert_eq!(
        left, "010000",
        "agent, hers, idle, late, relays, services: hers is hers to thaw"
    );

    assert_eq!(asleep(&story, LONG).await, "5 cgroups, 6 processes");
    story
        .sh("golden", &format!("echo 0 >{DRAW}/cgroup.freeze"))
        .await;
    let steps = woken(&story, WakeCause::Aborted).await;
    let told = "4 cgroups; thawed by somebody else before: /services/draw";
    assert_eq!(detail(&steps, StepKind::Thaw), [told]);
    draws_on(&story, "aborted").await;
}

/// `vm snapshot --require-freeze`, which has to fail, and say so.
async fn refused(story: &Story, why: &str) {
    let snapshot = ["vm", "snapshot", "golden", "--require-freeze"];
    let refused = story.mvmctl.run(&snapshot);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for words in [why, "no snapshot was taken, and the VM runs on"] {
        assert!(refused.stderr.contains(words), "{words}: {refused:?}");
    }
    draws_on(story, "rollback").await;
}

fn code(error: &ClientError) -> &str {
    match error {
        ClientError::Refused(answer) => answer.code.as_str(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_frozen_is_told() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    let snapshot = ["vm", "snapshot", "golden", "--require-freeze"];
    story.mvmctl.ok(&snapshot);
    draws_on(&story, "aborted").await;

    let script =
        "sh -c 'echo 0 >/sys/fs/cgroup/cgroup.procs; exec sleep 23456' >/dev/null 2>&1 & echo $!";
    let process = story.sh("golden", script).await;
    let process = process.trim();
    let why = format!("in no cgroup that can be frozen: sleep ({process})");
    assert_eq!(
        asleep(&story, LONG).await,
        format!("2 cgroups, 3 processes; {why}")
    );
    woken(&story, WakeCause::Aborted).await;
    draws_on(&story, "aborted").await;
    refused(
        &story,
        &format!("the freeze failed: 2 cgroups, 3 processes; {why}"),
    )
    .await;
    let sleep = ["vm", "sleep", "golden", "--require-freeze"];
    let asleep_by_hand = story.mvmctl.run(&sleep);
    assert_eq!(asleep_by_hand.code, Some(1), "{asleep_by_hand:?}");
    let said = [&*asleep_by_hand.stdout, &*asleep_by_hand.stderr].concat();
    assert!(said.contains(&why), "{why}: {said}");
    draws_on(&story, "rollback").await;
    story.sh("golden", &format!("kill {process}")).await;

    // One that waits in the kernel, for a filesystem that stands still.
    let script = format!(
        "mke2fs /dev/ram0 >/dev/null 2>&1; mount -t ext4 /dev/ram0 /mnt && fsfreeze --freeze /mnt; \
         sh -c 'echo 0 >{DRAW}/cgroup.procs; echo text >/mnt/file' >/dev/null 2>&1 & echo $!"
    );
    let process = story.sh("golden", &script).await;
    let process = process.trim();
    eventually("it waits", async || {
        let stat = story
            .sh("golden", &format!("cat /proc/{process}/stat"))
            .await;
        stat.contains(" D ").then_some(())
    })
    .await;
    let why = format!("2 cgroups, 3 processes; not frozen: sh ({process}) in the kernel");
    assert_eq!(asleep(&story, LONG).await, why);
    woken(&story, WakeCause::Aborted).await;
    draws_on(&story, "aborted").await;
    refused(&story, &format!("the freeze timed out: {why}")).await;

    // An agent that is killed while it waits for that one, and a deadline that passes meanwhile.
    let is_freezing = async || {
        eventually("it freezes", async || {
            let state = story
                .sh("golden", &format!("cat {DRAW}/cgroup.freeze"))
                .await;
            (state == "1\n").then_some(())
        })
        .await;
    };
    let mut session = story.session("golden").await;
    let (cut_off, ()) = tokio::join!(session.sleep_prep(SleepPrep::default()), async {
        is_freezing().await;
        end_agent(&story, "golden", "KILL").await;
    });
    cut_off.unwrap_err();
    draws_on(&story, "restart").await;
    let prep = SleepPrep {
        deadline_secs: Secs::new(Duration::from_secs(1)).unwrap(),
        ..SleepPrep::default()
    };
    let (late, ()) = tokio::join!(
        async {
            let mut session = story.session("golden").await;
            session.sleep_prep(prep).await
        },
        is_freezing()
    );
    late.unwrap_err();
    draws_on(&story, "rollback").await;
    story.sh("golden", "fsfreeze --unfreeze /mnt").await;

    // Nor is there anything that an agent could freeze which is not root. Ports below 1024 are for root.
    let script = "mkdir -p /tmp/other/none; chown -R nobody /tmp/other; \
         (su -s /bin/sh nobody -c 'cd /tmp/other; echo $$ >pid; exec mvm-guest-agent \
         --listen vsock:1077 --run-dir run --integrations-dir none --probes-dir none' &) \
         >/dev/null 2>&1";
    story.sh("golden", script).await;
    let endpoint = Endpoint::unix(story.mvmctl.file("golden", "v.sock")).with_port(1077);
    let mut session = eventually("it listens", async || {
        let session = Session::connect(&endpoint, &Deadlines::default()).await;
        session.ok()
    })
    .await;
    let required = SleepPrep {
        require_freeze: true,
        ..SleepPrep::default()
    };
    let refused = eventually("it has read its drop-ins", async || {
        let refused = session.sleep_prep(required.clone()).await.unwrap_err();
        (code(&refused) != "busy").then_some(refused)
    })
    .await;
    let why = "the freeze was not possible: the agent is not root; the guest was rolled back";
    assert!(refused.to_string().contains(why), "{refused}");
    let ready = session.sleep_prep(SleepPrep::default()).await.unwrap();
    assert_eq!(frozen(&ready), ["the agent is not root"]);
    session.wake(Wake::default()).await.unwrap();
    story.sh("golden", "kill $(cat /tmp/other/pid)").await;

    // Nor is there anything to freeze with without cgroups.
    story.sh("golden", "umount -l /sys/fs/cgroup").await;
    end_agent(&story, "golden", "KILL").await;
    story.mvmctl.ok(&["vm", "wait", "golden", "--for", "ready"]);
    assert_eq!(skipped(&story).await, "there is no cgroup v2");
    let refused = story.mvmctl.run(&snapshot);
    let why = "the freeze was not possible: there is no cgroup v2";
    assert!(refused.stderr.contains(why), "{refused:?}");
}

/// What gets out of what is frozen before it is woken; `served.rs` has who does before it is ready.
#[tokio::test]
async fn who_gets_out_of_what_is_frozen_is_told_by_the_wake() {
    let Some(story) = drawing(json!({}), vec![witness()]).await else {
        return;
    };
    let process = mover(&story).await;
    let told = format!("in no cgroup that can be frozen: sleep ({process})");
    assert_eq!(asleep(&story, LONG).await, "3 cgroups, 4 processes");
    let out = format!("echo {process} >/sys/fs/cgroup/cgroup.procs");
    story.sh("golden", &out).await;
    let steps = woken(&story, WakeCause::Restored).await;
    assert_eq!(detail(&steps, StepKind::Freeze), [&*told]);
    draws_on(&story, "restored").await;
    // Who was outside by the time of the freeze was told then.
    let both = format!("3 cgroups, 3 processes; {told}");
    assert_eq!(asleep(&story, LONG).await, both);
    let steps = woken(&story, WakeCause::Restored).await;
    assert_eq!(detail(&steps, StepKind::Freeze), [""; 0]);
    draws_on(&story, "restored").await;
}

/// A process in a cgroup of its own, to be moved.
pub(crate) async fn mover(story: &Story) -> String {
    let script = "mkdir /sys/fs/cgroup/mover; \
         sh -c 'echo 0 >/sys/fs/cgroup/mover/cgroup.procs; exec sleep 34567' >/dev/null 2>&1 & echo $!";
    story.sh("golden", script).await.trim().to_owned()
}

/// Why nothing was frozen at all.
async fn skipped(story: &Story) -> String {
    let ready = story.sleep_prep().await.unwrap();
    let step = ready.steps.iter().find(|it| it.step == StepKind::Freeze);
    let step = step.unwrap();
    assert_eq!(step.outcome, Outcome::Skipped, "{step:?}");
    let why = step.detail.clone().unwrap();
    woken(story, WakeCause::Aborted).await;
    why
}
