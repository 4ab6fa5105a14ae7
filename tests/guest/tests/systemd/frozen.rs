//! The work of a guest with systemd stands still while it sleeps, whatever PID 1 does meanwhile, and
//! goes on as if nothing had been.

use super::now;
use mvm_guest_tests::{DRAWN, Draw, Drawn, SOON, SystemdVm, amiss, eventually, held_up};
use mvm_protocol::lifecycle::{Outcome, Ready, SleepPrep, Step, StepKind, Wake};
use mvm_vmm::{Deadline, Home, VmName, suspend};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;
use tokio::time::timeout;

/// Where the services are.
const SYSTEM: &str = "/sys/fs/cgroup/system.slice";

/// How long a snapshot lies there: what carries its time is older than that.
const PAUSE: Duration = Duration::from_secs(5);

/// What the service draws in at least 50 ms.
const SOME: usize = 20;

async fn lines_drawn(vm: &SystemdVm) -> usize {
    let count = vm.sh(&format!("wc -l <{DRAWN} || echo 0")).await;
    count.trim().parse().unwrap()
}

async fn start(vm: &SystemdVm, services: &str) {
    vm.sh(&format!("systemctl start {services}")).await;
    if services.contains("draw") {
        eventually("it draws", async || {
            (lines_drawn(vm).await > 100).then_some(())
        })
        .await;
    }
}

/// The lines of what a clone has drawn after so many.
async fn drawn_after(vm: &SystemdVm, name: &str, lines: usize) -> Vec<String> {
    let rest = eventually("it draws again", async || {
        let script = format!("tail -n +{} {DRAWN}", lines + 1);
        let rest = vm.sh_in(name, &script).await;
        (rest.lines().count() > SOME).then_some(rest)
    })
    .await;
    rest.lines().map(str::to_owned).collect()
}

/// What was said of a step.
fn details(steps: &[Step], kind: StepKind) -> Vec<&str> {
    let steps = steps.iter().filter(|it| it.step == kind);
    steps.filter_map(|it| it.detail.as_deref()).collect()
}

/// Makes it ready, and a snapshot of it, with which its VM ends; how much it had drawn by then.
async fn snapshot(vm: &SystemdVm, to: &Path) -> (Ready, usize) {
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    let ready = ready.unwrap();
    let lines = lines_drawn(vm).await;
    let deadline = Deadline::new(Duration::from_mins(1), None);
    let home = Home::at(vm.mvmctl().home());
    let name = VmName::new(vm.name()).unwrap();
    let (mut session, dir) = suspend::take(&home, &name, Some(to)).unwrap();
    let pending = session.freeze(dir, deadline).unwrap();
    pending.publish(ready.token.clone(), "test".into()).unwrap();
    session.stop(to).unwrap();
    (ready, lines)
}

#[tokio::test]
async fn clones_draw_nothing_in_common_and_their_services_live_on() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    start(&vm, "draw watched ticker").await;
    // The kernel gives its generator a new seed by itself when that is older than half the uptime.
    vm.sh("guest-probe reseed").await;
    let watched = "systemctl show -p MainPID -p ActiveState -p NRestarts watched";
    let before = vm.sh(watched).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("snapshot");
    let (ready, lines) = snapshot(&vm, &to).await;
    let frozen = ready.steps.iter().find(|it| it.step == StepKind::Freeze);
    let frozen = frozen.unwrap();
    assert_eq!(frozen.outcome, Outcome::Ok, "{frozen:?}");
    let told = frozen.detail.as_deref().unwrap();
    assert!(!told.contains("not frozen"), "{told}");
    assert!(!told.contains("in no cgroup"), "{told}");
    sleep(PAUSE);

    let mut clones = Vec::new();
    for name in ["one", "two"] {
        let since = now();
        let place = to.to_str().unwrap();
        let restore = ["vm", "restore", place, "--name", name, "--clone"];
        vm.mvmctl().ok(&restore);
        let mut drawn = drawn_after(&vm, name, lines).await;
        // It may have been stopped between drawing a number and writing it down.
        if !drawn[0].starts_with("payload ") && Draw::of(&drawn[0]).generation == 1 {
            drawn.remove(0);
        }
        clones.push(Drawn {
            since,
            lines: drawn,
        });
        if name == "one" {
            lives_on(&vm, name, &before).await;
            journal_is_whole(&vm, name).await;
        }
        vm.mvmctl().ok(&["vm", "rm", "--force", name]);
    }
    assert_eq!(amiss(&clones), (0, 0), "drawn twice, with the old clock");
}

/// Journald, D-Bus and logind answer, and systemd's watchdog has killed nobody.
async fn lives_on(vm: &SystemdVm, name: &str, before: &str) {
    let script = "systemctl show -p MainPID -p ActiveState -p NRestarts watched; \
         systemctl --failed --quiet; \
         busctl call org.freedesktop.login1 /org/freedesktop/login1 \
         org.freedesktop.login1.Manager ListSeats; \
         busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus \
         NameHasOwner s org.freedesktop.login1; \
         echo I am here | systemd-cat -t story; journalctl --sync; \
         journalctl --boot --identifier story --output cat";
    let seen = vm.sh_in(name, script).await;
    let expected = format!(
        "{before}a(so) 1 \"seat0\" \"/org/freedesktop/login1/seat/seat0\"\nb true\nI am here\n"
    );
    assert_eq!(seen, expected);
    assert!(before.contains("NRestarts=0") && before.contains("ActiveState=active"));
    // It is still asked: the time of its last word goes on.
    let script = "systemctl show --value -p WatchdogTimestampMonotonic watched";
    let first = vm.sh_in(name, script).await;
    eventually("it says again that it lives", async || {
        (vm.sh_in(name, script).await != first).then_some(())
    })
    .await;
}

/// Nothing that was said around the snapshot is lost; and where the clock was set, the agent has said
/// why.
async fn journal_is_whole(vm: &SystemdVm, name: &str) {
    let script = "journalctl --sync; journalctl --output short-unix -t ticker -t mvm-guest-agent";
    let journal = vm.sh_in(name, script).await;
    let (mut last, mut said) = (None, String::new());
    // The longest time between two, in seconds, and what the agent said in it.
    let mut gap = (0.0, String::new());
    // Another boot id is told in a line of its own.
    for line in journal.lines().filter(|line| !line.starts_with("-- ")) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let [time, _, who, text] = words[..] else {
            panic!("{line}")
        };
        if !who.starts_with("ticker") {
            said.push_str(text);
            continue;
        }
        let (time, number): (f64, u64) = (time.parse().unwrap(), text.parse().unwrap());
        if let Some((before, last)) = last.replace((time, number)) {
            assert_eq!(number, last + 1, "{journal}");
            if time - before > gap.0 {
                gap = (time - before, said);
            }
        }
        said = String::new();
    }
    assert!(last.is_some_and(|(_, number)| number > 10), "{journal}");
    assert!(gap.0 > PAUSE.as_secs_f64(), "{gap:?}\n{journal}");
    assert!(gap.1.contains("lifecycle: waking"), "{gap:?}\n{journal}");
}

/// PID 1 is not frozen: it thaws a slice when it stops or restarts a unit in it. The last sync before
/// `ready` is held up here by a filesystem that a frozen service serves.
#[tokio::test]
async fn what_systemd_thaws_is_noticed_and_frozen_again() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    vm.sh(
        "cd /run/systemd/system; for name in stopped restarted started; do \
         printf '[Service]\\nExecStart=/bin/sleep infinity\\n' >$name.service; done; \
         systemctl daemon-reload",
    )
    .await;
    start(&vm, "draw served stopped restarted").await;

    let mut session = vm.session().await;
    let (ready, drawn) = held_up(session.sleep_prep(SleepPrep::default()), async {
        let script = format!("cat {SYSTEM}/cgroup.freeze");
        stands_still(&vm).await;
        let before = lines_drawn(&vm).await;
        vm.sh(
            "systemctl --no-block stop stopped; systemctl --no-block restart restarted; \
                 systemctl --no-block start started",
        )
        .await;
        eventually("systemd thaws the slice", async || {
            (vm.sh(&script).await == "0\n").then_some(())
        })
        .await;
        eventually("the new one has a cgroup", async || {
            let script = format!("[ -e {SYSTEM}/started.service ] && echo yes || true");
            (vm.sh(&script).await == "yes\n").then_some(())
        })
        .await;
        // What is frozen by itself draws nothing, though its slice was thawed.
        assert_eq!(lines_drawn(&vm).await, before);
        vm.sh(&format!("echo 0 >{SYSTEM}/served.service/cgroup.freeze"))
            .await;
        before
    })
    .await;
    let ready = ready.unwrap();
    let told = details(&ready.steps, StepKind::Freeze);
    assert_eq!(told.len(), 2, "{told:?}");
    for words in [
        "thawed by somebody else and frozen again: /system.slice, ",
        "/system.slice/served.service",
        "new, and frozen: /system.slice/started.service",
    ] {
        assert!(told[1].contains(words), "{words}: {told:?}");
    }
    assert!(!told[1].contains("not frozen"), "{told:?}");
    let script = format!("cat {SYSTEM}/cgroup.freeze {SYSTEM}/started.service/cgroup.freeze");
    assert_eq!(vm.sh(&script).await, "1\n1\n");
    assert_eq!(lines_drawn(&vm).await, drawn);

    // Who asks over D-Bus now waits in vain: what a personalize command must not do.
    let ask = "timeout 2 busctl call org.freedesktop.login1 /org/freedesktop/login1 \
         org.freedesktop.login1.Manager ListSeats >/dev/null 2>&1; echo $?";
    assert_eq!(vm.sh(ask).await, "124\n", "its time was up");

    // Nor goes what it thaws afterwards on before the wake's new seed.
    vm.sh("systemctl --no-block restart restarted").await;
    let script = format!("cat {SYSTEM}/cgroup.freeze");
    eventually("systemd thaws the slice", async || {
        (vm.sh(&script).await == "0\n").then_some(())
    })
    .await;
    let awake = vm.session().await.wake(Wake::default()).await.unwrap();
    let told = details(&awake.steps, StepKind::Freeze);
    let again = "thawed by somebody else and frozen again: /system.slice";
    assert!(told.len() == 1 && told[0].starts_with(again), "{awake:?}");
    assert_eq!(awake.steps[0].step, StepKind::Freeze, "{awake:?}");
    drawn_after(&vm, vm.name(), drawn).await;
    eventually("systemd's jobs are done", async || {
        let script = "systemctl is-active stopped restarted started draw served || true";
        let states = vm.sh(script).await;
        (states == "inactive\nactive\nactive\nactive\nactive\n").then_some(())
    })
    .await;
    let left = vm.sh("cat /sys/fs/cgroup/*.slice/cgroup.freeze").await;
    assert!(!left.contains('1'), "{left}");
}

/// Waits until the guest's work is frozen.
async fn stands_still(vm: &SystemdVm) {
    eventually("it is frozen", async || {
        let script = format!("grep -c 'frozen 1' {SYSTEM}/served.service/cgroup.events || true");
        (vm.sh(&script).await == "1\n").then_some(())
    })
    .await;
}

/// Who is not frozen and logs must not wait for a journald that is.
#[tokio::test]
async fn a_journal_that_stands_still_does_not_hold_up_the_agent() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    // Each is told of at each reload, in a line of 200 bytes and more.
    vm.sh("cd /etc/mvm/integrations.d; long=$(printf %0180d 0); \
         for n in 1 2 3 4 5 6 7 8 9; do echo no >$n-$long.json; done")
        .await;
    let journald = format!("{SYSTEM}/systemd-journald.service");
    vm.sh(&format!("echo 1 >{journald}/cgroup.freeze")).await;
    let reloads = async {
        let mut session = vm.session().await;
        for _ in 0..RELOADS {
            session.reload().await.unwrap();
        }
    };
    timeout(SOON * 3, reloads).await.expect("an end");
    // And a whole sleep.
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    assert!(ready.unwrap().steps.iter().all(super::is_ok));
    let mut session = vm.session().await;
    let wake = session.wake(Wake::default());
    timeout(SOON, wake).await.expect("an end").unwrap();
    vm.sh(&format!("echo 0 >{journald}/cgroup.freeze")).await;
    let script =
        "journalctl --sync; journalctl --unit mvm-guest-agent --output cat | grep -c rejected";
    let told: usize = vm.sh(script).await.trim().parse().unwrap();
    assert!(told > 100, "what fitted is there: {told}");
    assert!(told < RELOADS * 9, "what did not is dropped: {told}");
}

/// More than fits into the socket to journald.
const RELOADS: usize = 600;
