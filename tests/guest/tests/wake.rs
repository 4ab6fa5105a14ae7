//! What a guest says after a wake is true now: verdicts, idleness, load.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts, build_waker, compute, eventually, remote};
use mvm_protocol::Timestamp;
use mvm_vmm::qemu::arguments::QMP_SOCKET;
use mvm_vmm::qemu::qmp::Qmp;
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::sleep;

struct Story {
    mvmctl: Mvmctl,
    folder: TempDir,
}

impl Story {
    /// With a running VM `golden`, which is idle by now, and whose service is well.
    async fn new() -> Option<Self> {
        let parts = Parts::find()?;
        let folder = tempfile::tempdir().unwrap();
        build_waker(&parts, folder.path());
        let mvmctl = Mvmctl::new();
        let image = folder.path().join("image");
        let image = image.to_str().unwrap();
        let start = ["vm", "start", "golden", "--image", image, "--backend"];
        mvmctl.ok(&[&start[..], &["qemu", "--memory", "128"]].concat());
        let story = Self { mvmctl, folder };
        story.sh("golden", ": >/run/svc-up").await;
        story.mvmctl.ok(&["vm", "check", "golden", "svc"]);
        story.wait("golden", "idle", "2m");
        Some(story)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let run = self.mvmctl.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"))
    }

    async fn sh(&self, vm: &str, script: &str) -> String {
        remote::run(&self.mvmctl.file(vm, "v.sock"), script).await
    }

    fn wait(&self, vm: &str, state: &str, timeout: &str) {
        let wait = ["vm", "wait", vm, "--for", state, "--timeout", timeout];
        self.mvmctl.ok(&wait);
    }

    /// The VM stands still as when its host sleeps, and nobody tells the guest.
    async fn a_host_that_sleeps(&self) {
        let shown = self.mvmctl.ok(&["vm", "status", "golden"]).stdout;
        assert!(!shown.contains("clock"), "{shown}");
        let qmp = Qmp::connect(&self.mvmctl.file("golden", ""), QMP_SOCKET);
        let mut qmp = qmp.unwrap().unwrap();
        qmp.execute("stop", &json!({})).unwrap();
        sleep(Duration::from_secs(4)).await;
        qmp.execute("cont", &json!({})).unwrap();
        drop(qmp);
        let shown = self.mvmctl.ok(&["vm", "status", "golden"]).stdout;
        for words in [
            "golden's clock is ",
            " behind this host's: mvmctl vm wake golden sets it",
        ] {
            assert!(shown.contains(words), "{shown}");
        }
        let wide = self.mvmctl.ok(&["vm", "ls", "-o", "wide"]).stdout;
        assert!(wide.contains(" behind: vm wake sets it"), "{wide}");
        self.mvmctl.ok(&["vm", "wake", "golden"]);
        let shown = self.mvmctl.ok(&["vm", "status", "golden"]).stdout;
        assert!(!shown.contains("clock"), "{shown}");
    }

    fn place(&self) -> String {
        let place = self.folder.path().join("snapshot");
        place.to_str().unwrap().to_owned()
    }
}

fn secs(time: &Value) -> f64 {
    let time = Timestamp::parse(time.as_str().unwrap()).unwrap();
    time.0 as f64 / 1000.0
}

/// How long its worker is idle, by its own clock, and how long it has run.
fn idle_and_up(status: &Value) -> (f64, f64) {
    assert_eq!(status["worker"]["state"], "idle", "{status}");
    let idle = secs(&status["now"]) - secs(&status["worker"]["since"]);
    (idle, status["uptime_secs"].as_f64().unwrap())
}

#[tokio::test]
async fn a_suspended_guest_knows_nothing_of_now_until_its_first_check() {
    let Some(story) = Story::new().await else {
        return;
    };
    let before = story.json(&["vm", "status", "golden"]);
    assert_eq!(before["health"], "healthy");
    let (idle_before, up_before) = idle_and_up(&before);
    let busy_before = before["worker"]["last_busy_at"].clone();
    let taken = story.json(&["vm", "snapshot", "golden", "--stop"]);
    sleep(Duration::from_secs(40)).await;
    let place = taken["snapshot"].as_str().unwrap();
    story
        .mvmctl
        .ok(&["vm", "restore", place, "--name", "golden"]);

    // Nothing but the first check can tell, and it says that the service was stopped.
    let wait = [
        "vm",
        "wait",
        "golden",
        "--for",
        "healthy",
        "--timeout",
        "6s",
    ];
    let refused = story.mvmctl.run(&wait);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("1 unhealthy (svc)"), "{refused:?}");
    story.sh("golden", ": >/run/svc-up").await;
    story.mvmctl.ok(&["vm", "check", "golden", "svc"]);
    story.wait("golden", "healthy", "6s");
    // The probe has run by itself as well.
    eventually("the probe has run", async || {
        let probe = story.json(&["vm", "inspect", "golden"])["probes"][0].clone();
        (probe["stale"].is_null() && probe["value"].is_string()).then_some(())
    })
    .await;

    // It is idle for as long as it has run, and no second longer.
    let after = story.json(&["vm", "status", "golden"]);
    let (idle, up) = idle_and_up(&after);
    let (more_idle, more_up) = (idle - idle_before, up - up_before);
    assert!(
        (more_idle - more_up).abs() < 2.0,
        "idle for {more_idle} s more after {more_up} s more: {after}"
    );
    if busy_before.is_null() {
        assert_eq!(after["worker"]["last_busy_at"], Value::Null);
    }
    story.a_host_that_sleeps().await;
}

#[tokio::test]
async fn a_clone_is_idle_until_it_works_whatever_its_checkpoint_did() {
    let Some(story) = Story::new().await else {
        return;
    };
    let place = story.place();
    story
        .mvmctl
        .ok(&["vm", "snapshot", "golden", "--to", &place]);
    for clone in ["one", "two"] {
        story
            .mvmctl
            .ok(&["vm", "restore", &place, "--name", clone, "--clone"]);
    }
    // One has work at once.
    let work = "while :; do :; done >/dev/null 2>&1 &";
    story.sh("two", work).await;
    let one = story.json(&["vm", "inspect", "one"]);
    let load = one["worker"]["load1"].as_f64().unwrap();
    assert!(load >= 0.1, "its checkpoint left no load: {one}");
    let (idle, _) = idle_and_up(&one);
    let woken = secs(&one["now"]) - secs(&one["snapshot"]["last_wake"]);
    assert!(
        idle <= woken + 1.0,
        "idle for {idle} s, woken {woken} s ago"
    );
    assert_eq!(one["worker"]["last_busy_at"], Value::Null);

    story.wait("two", "busy", "30s");
    let two = story.json(&["vm", "inspect", "two"]);
    assert_eq!(two["worker"]["because"], json!(["loadavg"]));
    let late = secs(&two["worker"]["since"]) - secs(&two["snapshot"]["last_wake"]);
    assert!(
        late < 12.0,
        "seen after {late} s, of samples every 5 s: {two}"
    );

    sleep(Duration::from_secs(15)).await;
    for idle in ["one", "golden"] {
        let status = story.json(&["vm", "status", idle]);
        idle_and_up(&status);
    }
    let one = story.json(&["vm", "status", "one"]);
    assert_eq!(one["worker"]["last_busy_at"], Value::Null, "{one}");
}

/// Its check computes for a second of every five, in which the kernel looks at what runs. That it
/// starts at a random moment of the first half second of its slot does not help: the kernel looks in
/// the second half second. Whatever runs for 33 ms alone can be met as often by chance alone, and not
/// on purpose.
#[tokio::test]
async fn a_check_that_the_kernel_meets_each_time_makes_nobody_busy() {
    let Some(story) = Story::new().await else {
        return;
    };
    let drop_in = json!({
        "name": "step",
        "health_cmd": compute(100),
        "health_interval_secs": 5,
    });
    // The kernel's figure is there 40 ms after it has looked; the folder is read 250 ms after the
    // last change, and the first run begins.
    let script = format!(
        "read before _ </proc/loadavg; now=$before\n\
         while [ $now = $before ]; do read now _ </proc/loadavg; done\n\
         sleep 4.05\n\
         echo '{drop_in}' >/etc/mvm/integrations.d/step.json"
    );
    story.sh("golden", &script).await;
    // To look for the kernel's figure was work, and is to be forgotten.
    story.wait("golden", "idle", "2m");
    sleep(Duration::from_secs(30)).await;
    let busy_before = story.json(&["vm", "status", "golden"])["worker"]["last_busy_at"].clone();
    let mut highest: f64 = 0.0;
    for _ in 0..15 {
        sleep(Duration::from_secs(2)).await;
        let worker = story.json(&["vm", "status", "golden"])["worker"].clone();
        assert_eq!(worker["state"], "idle", "{worker}");
        highest = highest.max(worker["load1"].as_f64().unwrap());
    }
    assert!(highest > 0.3, "the kernel did not meet it: {highest}");
    let worker = story.json(&["vm", "status", "golden"])["worker"].clone();
    let (before, after) = (
        secs_or_none(&busy_before),
        secs_or_none(&worker["last_busy_at"]),
    );
    assert_eq!(before.is_some(), after.is_some(), "{worker}");
    if let (Some(before), Some(after)) = (before, after) {
        assert!((before - after).abs() < 1.0, "{worker}");
    }
}

fn secs_or_none(time: &Value) -> Option<f64> {
    (!time.is_null()).then(|| secs(time))
}
