//! Nothing of the guest's work runs between its snapshot and the end of its wake: told with a service
//! that draws random numbers all the time.

use crate::story::{Story, name};
use mvm_guest_tests::{DRAWN, Draw, Drawn, amiss, build_drawer, eventually};
use mvm_protocol::lifecycle::{Outcome, Ready, SleepPrep, StepKind, Wake};
use mvm_vmm::{Deadline, suspend};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the snapshot lies there: what carries its time is older than that.
const PAUSE: Duration = Duration::from_secs(2);

/// What the service draws in at least 50 ms.
const SOME: usize = 20;

/// A running guest that draws.
pub(crate) async fn drawing(settings: Value, integrations: Vec<Value>) -> Option<Story> {
    let story =
        Story::with(|parts, folder| build_drawer(parts, folder, &settings, integrations)).await?;
    eventually("it draws", async || {
        let lines = lines_drawn(&story, "golden").await;
        (lines > 100).then_some(())
    })
    .await;
    Some(story)
}

pub(crate) async fn lines_drawn(story: &Story, vm: &str) -> usize {
    let count = story.sh(vm, &format!("wc -l <{DRAWN} || echo 0")).await;
    count.trim().parse().unwrap()
}

/// The lines of what was drawn after so many.
pub(crate) async fn drawn_after(story: &Story, vm: &str, lines: usize) -> Vec<String> {
    let rest = eventually("it draws again", async || {
        let rest = story
            .sh(vm, &format!("tail -n +{} {DRAWN}", lines + 1))
            .await;
        (rest.lines().count() > SOME).then_some(rest)
    })
    .await;
    rest.lines().map(str::to_owned).collect()
}

/// A snapshot that is taken of a guest that is ready, and how much it had drawn when it said so.
struct Asleep {
    place: String,
    ready: Ready,
    /// Whether its work stood still by then.
    frozen: bool,
    lines: usize,
}

/// As `mvmctl vm snapshot` does it, but for a look into the guest in between.
async fn fall_asleep(story: &Story) -> Asleep {
    story.seed().await;
    let place = story.place("snapshot");
    let ready = story.sleep_prep().await.unwrap();
    let lines = lines_drawn(story, "golden").await;
    let to = PathBuf::from(&place);
    let deadline = Deadline::new(Duration::from_mins(1), None);
    let (mut session, dir) = suspend::take(&story.home(), &name("golden"), Some(&to)).unwrap();
    let pending = session.freeze(dir, deadline).unwrap();
    pending.publish(ready.token.clone(), "test".into()).unwrap();
    session.stop(Path::new(&place)).unwrap();
    sleep(PAUSE);
    let frozen = ready
        .steps
        .iter()
        .any(|it| it.step == StepKind::Freeze && it.outcome == Outcome::Ok);
    Asleep {
        place,
        ready,
        frozen,
        lines,
    }
}

/// What was said of the freeze.
pub(crate) fn frozen(ready: &Ready) -> Vec<&str> {
    let steps = ready.steps.iter().filter(|it| it.step == StepKind::Freeze);
    steps.filter_map(|it| it.detail.as_deref()).collect()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

async fn clone(story: &Story, asleep: &Asleep, vm: &str, more: &[&str]) -> Drawn {
    let since = now();
    let restore = ["vm", "restore", &asleep.place, "--name", vm, "--clone"];
    story.mvmctl.ok(&[&restore, more].concat());
    let mut lines = drawn_after(story, vm, asleep.lines).await;
    story.mvmctl.ok(&["vm", "rm", "--force", vm]);
    // It may have been stopped between drawing a number and writing it down.
    if asleep.frozen && lines[0].starts_with("0 ") {
        lines.remove(0);
    }
    Drawn { since, lines }
}

/// How many bytes of JSON a payload may have.
const MOST: usize = 65_536;

fn payload_of(bytes: usize) -> String {
    let text = format!(r#"{{"k":"{}"}}"#, "x".repeat(bytes - 8));
    assert_eq!(text.len(), bytes);
    text
}

#[tokio::test]
async fn no_two_of_twenty_clones_draw_a_number_in_common() {
    let Some(story) = drawing(json!({}), Vec::new()).await else {
        return;
    };
    let asleep = fall_asleep(&story).await;
    // The service, and what carries its output and that of the service that is exempt.
    assert_eq!(frozen(&asleep.ready), ["2 cgroups, 3 processes"]);
    let file = PathBuf::from(story.place("payload"));
    let mut clones = Vec::new();
    for number in 0..20 {
        let vm = format!("clone-{number}");
        // The largest that there can be, and one of its own for each of the others.
        let payload = match number {
            0 => payload_of(MOST),
            _ => format!(r#"{{"name": "{vm}"}}"#),
        };
        fs::write(&file, &payload).unwrap();
        let more = ["--payload", file.to_str().unwrap()];
        let clone = clone(&story, &asleep, &vm, &more).await;
        // The first that it did after the wake was to look for it.
        assert_eq!(clone.lines[0], format!("payload {payload}"), "{vm}");
        clones.push(clone);
    }
    assert_eq!(amiss(&clones), (0, 0), "drawn twice, with the old clock");

    let too_long = payload_of(MOST + 1);
    fs::write(&file, &too_long).unwrap();
    let file = file.to_str().unwrap();
    let refused = story.mvmctl.run(&[
        "vm",
        "restore",
        &asleep.place,
        "--name",
        "refused",
        "--payload",
        file,
    ]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("65537 bytes"), "{refused:?}");
    assert!(!story.mvmctl.file("refused", "").exists());
}

/// What the test above would see if nothing stood still.
#[tokio::test]
async fn clones_of_a_guest_that_is_not_frozen_draw_the_same_numbers_at_the_same_time() {
    let Some(story) = drawing(json!({"freeze": "off"}), Vec::new()).await else {
        return;
    };
    let asleep = fall_asleep(&story).await;
    assert_eq!(frozen(&asleep.ready), ["freeze: off"]);
    let mut clones = Vec::new();
    for vm in ["one", "two"] {
        clones.push(clone(&story, &asleep, vm, &[]).await);
    }
    let (common, old) = amiss(&clones);
    assert!(common > 0 && old > 0, "{common} in common, {old} old");
}

/// Ends a guest's agent, and waits for that.
pub(crate) async fn end_agent(story: &Story, vm: &str, signal: &str) {
    let script = format!(
        "pid=$(pidof mvm-guest-agent); kill -{signal} $pid; \
         while kill -0 $pid 2>/dev/null; do usleep 10000; done"
    );
    story.sh(vm, &script).await;
}

/// An integration whose personalize command fails as long as its payload has no `address`, and writes
/// down what it was told.
fn network() -> Value {
    json!({
        "name": "network",
        "health_cmd": "true",
        "personalize_cmd": "env | grep ^MVM_ | grep -v ^MVM_RUN= | sort >>/run/told; \
            grep -q address \"$MVM_PAYLOAD\" || { echo no address in the payload; exit 3; }",
        "checkpoint_cmd": "env | grep ^MVM_ | grep -v ^MVM_RUN= | sort >>/run/told",
        "restore_cmd": "echo restored $MVM_CAUSE >>/run/told",
    })
}

#[tokio::test]
async fn a_clone_that_cannot_be_personalized_stays_frozen_until_it_can() {
    let Some(story) = drawing(json!({}), vec![network()]).await else {
        return;
    };
    let asleep = fall_asleep(&story).await;
    let file = |text: &str| {
        let path = story.place("payload");
        fs::write(&path, text).unwrap();
        path
    };
    let secret = file(r#"{"key": "s3cret"}"#);
    let restore = [
        "vm",
        "restore",
        &asleep.place,
        "--name",
        "one",
        "--clone",
        "--payload",
        &secret,
        "--json",
    ];
    let held = story.mvmctl.run(&restore);
    assert_eq!(held.code, Some(1), "{held:?}");
    for word in [
        "the personalize command of `network` failed: exit code 3: no address in the payload",
        "stays frozen",
        "vm wake one --retry",
    ] {
        assert!(held.stderr.contains(word), "{word}: {held:?}");
    }
    assert_eq!(story.json(&["vm", "status", "one"])["lifecycle"], "waking");
    assert_eq!(lines_drawn(&story, "one").await, asleep.lines);

    // Neither an agent that is killed, nor one that is stopped, nor a host that calls it off thaws it.
    for signal in ["KILL", "TERM"] {
        end_agent(&story, "one", signal).await;
        let is_there = async || {
            let pinged = story.mvmctl.run(&["vm", "ping", "one"]);
            (pinged.code == Some(0)).then_some(())
        };
        eventually("another one is there", is_there).await;
        let again = story.mvmctl.run(&["vm", "wake", "one", "--aborted"]);
        assert_eq!(again.code, Some(1), "{again:?}");
        assert_eq!(lines_drawn(&story, "one").await, asleep.lines, "{signal}");
    }
    // Once the new agent has tried for itself.
    let is_held = async || {
        let refused = story.mvmctl.run(&["vm", "sleep", "one"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        refused.stderr.contains("wake it again").then_some(())
    };
    eventually("it is held again", is_held).await;

    let mended = file(r#"{"address": "10.0.0.2/24"}"#);
    let retry = ["vm", "wake", "one", "--retry", "--payload", "-"];
    let mut command = story.mvmctl.command(&retry);
    let from = fs::File::open(&mended).unwrap();
    let woken = command.stdin(from).output().unwrap();
    assert!(woken.status.success(), "{woken:?}");
    let told = String::from_utf8_lossy(&woken.stdout).into_owned();
    assert!(told.contains("26 bytes"), "its size is told: {told}");
    let lines = drawn_after(&story, "one", asleep.lines).await;
    assert_eq!(lines[0], r#"payload {"address": "10.0.0.2/24"}"#);
    assert_eq!(
        Draw::of(&lines[1]).generation,
        1,
        "one restore is one generation: {}",
        lines[1]
    );
    let told = story.sh("one", "cat /run/told").await;
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[..2], ["MVM_CLONE=0", "MVM_GENERATION=0"], "asleep");
    let personalized = [
        "MVM_CAUSE=restored",
        "MVM_CLONE=1",
        "MVM_GENERATION=1",
        "MVM_PAYLOAD=/run/mvm/payload.json",
    ];
    assert_eq!(told[2..6], personalized);
    let end = [&personalized[..], &["restored restored"]].concat();
    assert!(told.ends_with(&end), "{told:?}");
    let nothing = story.mvmctl.run(&retry[..4]);
    assert!(
        nothing.stderr.contains("nothing to try again"),
        "{nothing:?}"
    );

    // Neither what was refused nor what was taken is anywhere but in its file.
    let seen = [
        story.mvmctl.ok(&["vm", "logs", "one"]).stdout,
        story.json(&["vm", "inspect", "one"]).to_string(),
        story
            .sh("one", "ps -o args; ls -l /run/mvm/payload.json")
            .await,
    ]
    .concat();
    for word in ["s3cret", "10.0.0.2"] {
        assert!(
            !seen.contains(word) && !held.stdout.contains(word),
            "{seen}"
        );
    }
    assert!(seen.contains("-rw-------"), "{seen}");
    // That of the last wake is not this one's.
    let mut session = story.session("one").await;
    session.sleep_prep(SleepPrep::default()).await.unwrap();
    session.wake(Wake::default()).await.unwrap_err();
    let gone = story.sh("one", "ls /run/mvm/payload.json 2>&1; true").await;
    assert!(gone.contains("No such"), "{gone}");
}
