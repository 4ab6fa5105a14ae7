//! Jobs in a guest, and what a sleep does to them.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, TestVm, eventually};
use serde_json::Value;

struct Jobs {
    mvmctl: Mvmctl,
    vm: String,
}

impl Jobs {
    fn start(&self, script: &str) -> String {
        let arguments = ["vm", "exec", "-d", &self.vm, "--", "sh", "-c", script];
        self.mvmctl.ok(&arguments).stdout.trim().to_owned()
    }

    fn job(&self, number: &str) -> Value {
        let listed = self.mvmctl.ok(&["vm", "jobs", &self.vm, "--json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        let jobs = listed["jobs"].as_array().unwrap();
        let number: u64 = number.parse().unwrap();
        let one = jobs.iter().find(|job| job["job"] == number);
        one.unwrap().clone()
    }

    /// What it has printed so far.
    fn printed(&self, number: &str) -> String {
        self.mvmctl
            .ok(&["vm", "attach", "--no-follow", &self.vm, number])
            .stdout
    }

    async fn until_more(&self, number: &str) {
        let before = self.printed(number).len();
        eventually("it prints", async || {
            (self.printed(number).len() > before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_job_stands_still_while_the_guest_sleeps() {
    let Some(vm) = TestVm::dev() else { return };
    let jobs = Jobs {
        mvmctl: Mvmctl::new(),
        vm: vm.address(),
    };
    let ticking = jobs.start("i=0; while :; do i=$((i + 1)); echo $i; sleep 0.1; done");
    let failed = jobs.start("echo gone; exit 4");
    assert_eq!((ticking.as_str(), failed.as_str()), ("1", "2"));
    jobs.until_more(&ticking).await;
    eventually("it has ended", async || {
        (jobs.job(&failed)["exit_code"] == 4).then_some(())
    })
    .await;
    jobs.mvmctl.ok(&["vm", "sleep", &jobs.vm]);
    assert_eq!(jobs.job(&ticking)["state"], "held");
    let before = jobs.printed(&ticking);
    let refused = jobs.mvmctl.run(&["vm", "exec", &jobs.vm, "--", "true"]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("try again later"), "{refused:?}");
    assert_eq!(jobs.printed(&ticking), before);
    jobs.mvmctl.ok(&["vm", "wake", &jobs.vm]);
    jobs.until_more(&ticking).await;
    let listed = jobs.mvmctl.ok(&["vm", "jobs", &jobs.vm]).stdout;
    assert!(
        listed.contains("running") && listed.contains("exit 4"),
        "{listed}"
    );
    // From its first line on, without a gap.
    let lines: Vec<u32> = jobs
        .printed(&ticking)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    let counted: Vec<u32> = (1..).take(lines.len()).collect();
    assert_eq!(lines, counted);
    jobs.mvmctl.ok(&["vm", "kill", &jobs.vm, &ticking, "KILL"]);
    let ended = jobs.mvmctl.run(&["vm", "attach", &jobs.vm, &ticking]);
    assert_eq!(ended.code, Some(137), "{ended:?}");
    let again = jobs.mvmctl.run(&["vm", "attach", &jobs.vm, &failed]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(4), "gone\n"));
}

/// The held ones are ended, as all that an agent leaves is, and hold up nobody.
#[tokio::test]
async fn an_agent_that_is_killed_while_a_job_is_held_comes_back() {
    let Some(vm) = TestVm::dev() else { return };
    let jobs = Jobs {
        mvmctl: Mvmctl::new(),
        vm: vm.address(),
    };
    let many = "i=0; while [ $i -lt 100 ]; do sleep 54321 & i=$((i + 1)); done; wait";
    jobs.start(many);
    eventually("all of it runs", async || {
        let count = vm.sh("ps -o args | grep -c '^sleep 54321' || true").await;
        (count.trim() == "100").then_some(())
    })
    .await;
    jobs.mvmctl.ok(&["vm", "sleep", &jobs.vm]);
    vm.sh("kill -9 $(pidof mvm-guest-agent)").await;
    vm.wait_for_agent(1);
    let again = jobs
        .mvmctl
        .ok(&["vm", "exec", &jobs.vm, "--", "echo", "hi"]);
    assert_eq!(again.stdout, "hi\n");
    eventually("nothing of it is left", async || {
        let left = vm.sh("ps -o args | grep '^sleep 54321'; true").await;
        left.is_empty().then_some(())
    })
    .await;
}
