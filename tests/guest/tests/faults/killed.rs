//! An agent that is killed at random moments, with a sleep, commands, a file and a folder under way.
//!
//! `MVM_TEST_KILLS` says how often, and `MVM_TEST_SEED` has other moments.

use crate::{shell, write_integrations};
use mvm_client::dev::Output;
use mvm_guest_tests::{Mvmctl, TestVm, eventually};
use mvm_protocol::lifecycle::{SleepPrep, Token, Wake, WakeCause};
use mvm_protocol::status::Lifecycle;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How often, if nobody says otherwise: what CI has time for.
const KILLS: u32 = 8;

/// When it is killed, in milliseconds since all of it was begun: by then most has ended.
const LATEST: u32 = 1200;

/// Numbers by which it goes: xorshift (Marsaglia, 2003).
struct Random(u32);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % limit
    }
}

/// What each lifecycle command does: it writes down that it begins, in which sleep, and that it is done.
const LIFE: &str = "#!/bin/sh\nread -r sleep </run/sleep\necho \"$1 $2 $sleep begins\" >>/run/log\n\
    usleep 20000\necho \"$1 $2 $sleep ends\" >>/run/log\n";

async fn prepare(vm: &TestVm) {
    let script = format!(
        "cat >/run/life <<'END'\n{LIFE}END\nchmod +x /run/life; mkdir /tmp/put; : >/run/log"
    );
    vm.sh(&script).await;
    let integrations = ["a", "b"].map(|name| {
        json!({
            "name": name,
            "checkpoint_cmd": format!("exec /run/life checkpoint {name}"),
            "restore_cmd": format!("exec /run/life restore {name}"),
        })
    });
    write_integrations(vm, &integrations).await;
}

/// A command with a child in a session of its own. Whatever becomes of it.
async fn exec(vm: &TestVm) {
    let mut session = vm.session().await;
    let script = "setsid sleep 98765 & (sleep 98765 &) ; exec sleep 98765";
    if let Ok(command) = session.exec(shell(script)).await {
        let (_input, mut output) = command.split();
        while let Ok(next) = output.next().await {
            if let Output::Exited(_) = next {
                break;
            }
        }
    }
}

/// A sleep and its wake, as far as they come.
async fn sleep(vm: &TestVm, number: u32) {
    let token = Token::new(&format!("sleep-{number}")).unwrap();
    let asked = SleepPrep {
        token: Some(token.clone()),
        ..SleepPrep::default()
    };
    if vm.session().await.sleep_prep(asked).await.is_ok() {
        let wake = Wake {
            token: Some(token),
            cause: WakeCause::Aborted,
            ..Wake::default()
        };
        let _ = vm.session().await.wake(wake).await;
    }
}

/// A file of lines that all have this round's number, and a folder of such files.
fn content(folder: &Path, round: u32) {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder.join("folder")).unwrap();
    let line = format!("{round:07}\n");
    std::fs::write(folder.join("file"), line.repeat(LINES)).unwrap();
    for number in 0..FILES {
        std::fs::write(folder.join(format!("folder/{number}")), &line).unwrap();
    }
}

/// 2 MiB.
const LINES: usize = 256 * 1024;
const FILES: usize = 300;

/// Its process, which is killed when it is over: the end of the agent may not have been told.
async fn copy(mvmctl: &Mvmctl, vm: &TestVm, from: &Path, name: &str) {
    let from = from.join(name);
    let to = format!("{}:/tmp/put/{name}", vm.address());
    let command: Command = mvmctl.command(&["vm", "cp", from.to_str().unwrap(), &to]);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let _ = child.wait().await;
}

/// What is to be seen when the next agent is up: nothing of commands, whole files, and the names of what
/// the agent keeps for itself.
const LOOK: &str = "ps -o args | grep -c '^sleep 98765'; \
    for it in /tmp/put/file /tmp/put/folder; do [ -e $it ] || continue; \
    cat $it $it/* 2>/dev/null | uniq -c | while read -r count line; do echo ${it##*/} $count; done; \
    done; ls -A /tmp/put | grep -v '^file$\\|^folder$' | sed 's/.*/beside &/'; \
    ls -A /run/mvm/puts 2>/dev/null | sed 's/.*/record &/'; \
    ls -A /run/mvm | grep -vx 'busy.d\\|generation\\|journal.json\\|lock\\|puts\\|.reserve\\|.restore' \
    | sed 's/.*/kept &/'; \
    ls -d /sys/fs/cgroup/agent/*/run-* 2>/dev/null | wc -l; true";

async fn looks_well(vm: &TestVm) {
    let mut last = String::new();
    let well = async || {
        last = vm.sh(LOOK).await;
        let mut lines: Vec<&str> = last.lines().collect();
        let none_left = lines.remove(0) == "0";
        // Of the checks that run now and then.
        let few_cgroups = lines.pop()?.parse::<u32>().ok()? <= 4;
        let whole = [format!("file {LINES}"), format!("folder {FILES}")];
        let all_whole = lines.iter().all(|line| whole.iter().any(|it| it == line));
        (none_left && few_cgroups && all_whole).then_some(())
    };
    // The message says what was seen last.
    let well = tokio::time::timeout(Duration::from_secs(10), eventually("all is well", well));
    let well = well.await.is_ok();
    assert!(well, "{last}");
}

/// For each checkpoint command that was begun a restore command runs to its end, and no two do.
fn debts_are_paid_once(log: &str) {
    let mut sleeps: BTreeMap<(&str, &str), (u32, u32)> = BTreeMap::new();
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [command, name, sleep, what] = words[..] else {
            panic!("{line}");
        };
        let counts = sleeps.entry((sleep, name)).or_default();
        match (command, what) {
            ("checkpoint", "begins") => counts.0 += 1,
            ("restore", "ends") => counts.1 += 1,
            _ => {}
        }
    }
    for (sleep, (begun, restored)) in sleeps {
        assert!(
            begun <= 1 && restored >= begun && restored <= 1,
            "{sleep:?}: {log}"
        );
    }
}

/// How often, and at which moments.
fn kills() -> (u32, Random) {
    let given = |variable| Some(std::env::var(variable).ok()?.parse::<u32>().unwrap());
    let kills = given("MVM_TEST_KILLS").unwrap_or(KILLS);
    // Not 0, of which no other number comes.
    let seed = given("MVM_TEST_SEED").unwrap_or(0x2545_f491).max(1);
    eprintln!("{kills} kills, seed {seed}");
    (kills, Random(seed))
}

#[tokio::test]
async fn an_agent_that_is_killed_at_any_moment_keeps_what_it_has_promised() {
    let Some(vm) = TestVm::dev() else { return };
    let (kills, mut random) = kills();
    let mvmctl = Mvmctl::new();
    let folder = tempfile::tempdir().unwrap();
    prepare(&vm).await;
    for round in 1..=kills {
        content(folder.path(), round);
        vm.sh(&format!("echo {round} >/run/sleep; rm -rf /tmp/put/folder"))
            .await;
        let (what, moment) = (random.below(4), random.below(LATEST));
        // The agent alone, or what it has made of itself as well.
        let whom = if random.below(4) == 0 {
            "pidof mvm-guest-agent"
        } else {
            "for it in $(pidof mvm-guest-agent); do grep -q '^PPid:.1$' /proc/$it/status && echo $it; done"
        };
        let kill = format!("usleep {moment}000; kill -9 $({whom})");
        let all = async {
            tokio::join!(
                exec(&vm),
                async {
                    if what == 0 || what == 3 {
                        sleep(&vm, round).await;
                    }
                },
                async {
                    if what == 1 || what == 3 {
                        copy(&mvmctl, &vm, folder.path(), "file").await;
                    }
                },
                async {
                    if what == 2 || what == 3 {
                        copy(&mvmctl, &vm, folder.path(), "folder").await;
                    }
                },
            )
        };
        tokio::select! {
            // It is told that the agent is gone, or it is not: vhost-device-vsock may keep that to itself.
            _ = async { tokio::join!(all, std::future::pending::<()>()) } => {}
            () = async {
                vm.sh(&kill).await;
                vm.wait_for_agent(usize::try_from(round).unwrap());
            } => {}
        }
        eventually("the guest runs", async || {
            let status = vm.session().await.status().await.unwrap();
            (status.lifecycle == Lifecycle::Running).then_some(())
        })
        .await;
        looks_well(&vm).await;
        let log = vm.sh("cat /run/log").await;
        debts_are_paid_once(&log);
    }
}

/// Writes down that it is tried, and in which sleep; refuses as long as it is told to.
const PERSONALIZE: &str = "read -r sleep </run/sleep; echo \"$sleep\" >>/run/log; usleep 50000; \
    [ ! -e /run/refuse ]";

/// Whether the guest's work stands still.
async fn is_frozen(vm: &TestVm) -> bool {
    let events = vm.sh("cat /sys/fs/cgroup/services/web/cgroup.events").await;
    events.lines().any(|line| line == "frozen 1")
}

#[tokio::test]
async fn a_guest_that_is_not_personalized_stays_frozen_whenever_its_agent_is_killed() {
    let Some(vm) = TestVm::dev() else { return };
    let (kills, mut random) = kills();
    vm.sh(": >/run/log").await;
    let own = json!({"name": "own", "personalize_cmd": PERSONALIZE});
    write_integrations(&vm, &[own]).await;
    for round in 1..=kills {
        vm.sh(&format!("echo {round} >/run/sleep; : >/run/refuse"))
            .await;
        let token = Token::new(&format!("sleep-{round}")).unwrap();
        let asked = SleepPrep {
            token: Some(token.clone()),
            ..SleepPrep::default()
        };
        vm.session().await.sleep_prep(asked).await.unwrap();
        let restored = Wake {
            token: Some(token),
            cause: WakeCause::Restored,
            ..Wake::default()
        };
        // In every other round when it is known that the guest is held.
        let is_held = round % 2 == 0;
        let moment = if is_held { 0 } else { random.below(LATEST / 2) };
        let kill = format!("usleep {moment}000; kill -9 $(pidof mvm-guest-agent)");
        let killed = async {
            vm.sh(&kill).await;
            vm.wait_for_agent(usize::try_from(round).unwrap());
        };
        if is_held {
            vm.session().await.wake(restored).await.unwrap_err();
            killed.await;
        } else {
            tokio::select! {
                _ = async { tokio::join!(
                    async { vm.session().await.wake(restored).await },
                    std::future::pending::<()>(),
                ) } => {}
                () = killed => {}
            }
        }
        // It runs if the agent that was killed had not heard of a restore.
        let called_off = Wake {
            cause: WakeCause::Aborted,
            ..Wake::default()
        };
        let runs = vm.session().await.wake(called_off).await.is_ok();
        let tried = vm.sh(&format!("grep -cx {round} /run/log; true")).await;
        let was_tried = tried.trim() != "0";
        assert!(!(runs && (is_held || was_tried)), "{round}: it runs");
        assert_eq!(is_frozen(&vm).await, !runs, "{round}");
        vm.sh("rm /run/refuse").await;
        if !runs {
            vm.session().await.wake(Wake::default()).await.unwrap();
            assert!(!is_frozen(&vm).await, "{round}: it does not run");
            let last = vm.sh("tail -n 1 /run/log").await;
            assert_eq!(last.trim(), round.to_string());
        }
    }
}
