//! Checks that never lie: real commands, with cgroups and without.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, As, NOBODY, Settings, children, descriptors, folder, processes, within};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// No processes.
const NONE: [u32; 0] = [];

/// An integration that runs on request alone, but for its first check.
fn integration(name: &str, command: &str) -> Value {
    json!({"name": name, "health_cmd": command, "health_interval_secs": 86400})
}

fn probe(name: &str, command: &str) -> Value {
    json!({"name": name, "command": command, "interval_secs": 86400})
}

/// A text for a command line that no other process has.
fn unique(name: &str) -> String {
    format!(
        "{name}-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    )
    .replace(['(', ')'], "")
}

#[test]
fn a_hung_check_is_unhealthy_and_its_whole_tree_gone() {
    for user in [As::Tester, As::Nobody] {
        let mark = unique("hung");
        // One child in the same group, one in a session of its own, one that also lost its parent.
        let command = format!(
            "sh -c 'sleep 600; : {mark}' & setsid sh -c 'sleep 600; : {mark}' & \
             (setsid sh -c 'sleep 600; : {mark}' &); wait"
        );
        let mut hung = integration("hung", &command);
        hung["health_timeout_secs"] = json!(0.3);
        let agent = Agent::launch(folder(&[hung], &[]), Settings::user(user));
        let entry = agent.check("hung");
        assert_eq!(entry["health"], "unhealthy", "{entry}");
        assert_eq!(entry["last_check"]["timed_out"], true, "{entry}");
        assert_eq!(entry["last_check"]["exit_code"], Value::Null, "{entry}");
        assert_eq!(processes(&mark), NONE, "{user:?}");
        assert_eq!(children(agent.pid()), NONE, "no zombie is left");
    }
}

#[test]
fn a_command_that_ignores_term_is_killed() {
    let mut stubborn = integration(
        "stubborn",
        "trap '' TERM; sleep 600 & while :; do wait; done",
    );
    stubborn["health_timeout_secs"] = json!(0.2);
    let agent = Agent::start(&[stubborn], &[]);
    let check = agent.check("stubborn")["last_check"].take();
    assert_eq!(
        (&check["timed_out"], &check["signal"]),
        (&json!(true), &json!("KILL")),
        "{check}"
    );
    let took = check["duration_ms"].as_u64().unwrap();
    assert!(
        (450..2000).contains(&took),
        "TERM, a quarter of a second, KILL: {check}"
    );
}

#[test]
fn a_flood_of_output_then_exit_1_is_unhealthy() {
    let command = "head -c 200000 /dev/zero | tr '\\0' x; echo the end; exit 1";
    let agent = Agent::start(&[integration("flood", command)], &[]);
    let entry = agent.check("flood");
    let check = &entry["last_check"];
    assert_eq!(
        (&entry["health"], &check["exit_code"]),
        (&json!("unhealthy"), &json!(1))
    );
    assert_eq!(check["truncated"], true);
    let output = check["output"].as_str().unwrap();
    assert!(
        output.len() <= 4096 && output.ends_with("xthe end"),
        "{output}"
    );
}

#[test]
fn a_child_that_keeps_the_pipe_open_does_not_delay_the_check() {
    for user in [As::Tester, As::Nobody] {
        let mark = unique("holder");
        let command = format!("setsid sh -c 'sleep 600; : {mark}' & echo done");
        let agent = Agent::launch(
            folder(&[integration("holder", &command)], &[]),
            Settings::user(user),
        );
        let entry = agent.check("holder");
        let check = &entry["last_check"];
        assert_eq!(
            (&entry["health"], &check["output"]),
            (&json!("healthy"), &json!("done"))
        );
        assert!(check["duration_ms"].as_u64().unwrap() < 5000, "{check}");
        assert_eq!(
            processes(&mark),
            NONE,
            "what it left running is killed with it"
        );
    }
}

#[test]
fn a_helper_of_a_running_check_survives_the_end_of_others() {
    // Without cgroups the helper, an orphan, becomes the agent's own child while its check waits.
    let dir = folder(&[], &[]);
    let path = dir.path().join("run").join("done").display().to_string();
    let patient = integration(
        "patient",
        &format!(
            "(setsid sh -c 'sleep 0.5; echo helped > {path}' &); \
                  until test -s {path}; do sleep 0.02; done; cat {path}"
        ),
    );
    let quick = json!({"name": "quick", "health_cmd": "true", "health_interval_secs": 0.02});
    for entry in [patient, quick] {
        let file = format!("integrations.d/{}.json", entry["name"].as_str().unwrap());
        std::fs::write(dir.path().join(file), entry.to_string()).unwrap();
    }
    let agent = Agent::launch(dir, Settings::user(As::Nobody));
    let entry = within(|| {
        let status = agent.status();
        let entries = status["integrations"].as_array()?;
        entries
            .iter()
            .find(|it| it["name"] == "patient" && it["checks"] == 1)
            .cloned()
    });
    assert_eq!(entry["last_check"]["output"], "helped", "{entry}");
}

/// It tells nobody whose it is, but it is younger than the one and older than the other.
#[test]
fn a_helper_without_an_environment_survives_and_does_not_outlive_its_check() {
    let dir = folder(&[], &[]);
    let helper = unique("bare");
    let shown = format!("a-{helper}");
    let done = dir.path().join("run").join("done").display().to_string();
    let patient = integration(
        "patient",
        &format!(
            // Its own command line is not to have the helper's mark.
            "mark={helper}; (env -i setsid /bin/sh -c \"sleep 600; : a-$mark\" &); \
             until test -e {done}; do sleep 0.02; done"
        ),
    );
    let quick = json!({"name": "quick", "health_cmd": "true", "health_interval_secs": 0.02});
    for entry in [patient, quick] {
        let file = format!("integrations.d/{}.json", entry["name"].as_str().unwrap());
        std::fs::write(dir.path().join(file), entry.to_string()).unwrap();
    }
    let agent = Agent::launch(dir, Settings::user(As::Nobody));
    let checks = |name| {
        let status = agent.status();
        let entries = status["integrations"].as_array().unwrap();
        let entry = entries.iter().find(|it| it["name"] == name);
        entry.map_or(0, |entry| entry["checks"].as_u64().unwrap())
    };
    within(|| (!processes(&shown).is_empty()).then_some(()));
    let before = checks("quick");
    within(|| (checks("quick") > before + 5).then_some(()));
    assert_ne!(processes(&shown), NONE, "ended with another's check");
    std::fs::write(&done, "").unwrap();
    within(|| (checks("patient") == 1).then_some(()));
    within(|| processes(&shown).is_empty().then_some(()));
}

#[test]
fn a_helper_survives_its_own_execs() {
    // In the middle of execve a process has no environment, and so nothing that tells whose it is.
    let dir = folder(&[], &[]);
    let done = dir.path().join("run").join("done").display().to_string();
    let helper = dir.path().join("helper").display().to_string();
    let script = format!(
        "#!/bin/sh\nif test $1 = 0; then echo helped > {done}; else exec {helper} $(($1 - 1)); fi\n"
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let patient = integration(
        "patient",
        &format!("(setsid {helper} 500 &); until test -s {done}; do sleep 0.02; done; cat {done}"),
    );
    let quick = (0..10).map(|number| {
        json!({"name": format!("quick-{number}"), "health_cmd": "true", "health_interval_secs": 0.02})
    });
    for entry in quick.chain([patient]) {
        let file = format!("integrations.d/{}.json", entry["name"].as_str().unwrap());
        std::fs::write(dir.path().join(file), entry.to_string()).unwrap();
    }
    let agent = Agent::launch(dir, Settings::user(As::Nobody));
    let patient = within(|| {
        let status = agent.status();
        let entries = status["integrations"].as_array()?;
        let mut entries = entries.iter();
        entries
            .find(|it| it["name"] == "patient" && it["checks"] == 1)
            .cloned()
    });
    assert_eq!(patient["last_check"]["output"], "helped", "{patient}");
}

/// It tells nobody whose it is, and began while an older check was under way.
#[test]
fn what_has_no_environment_goes_with_its_check_though_an_older_one_runs() {
    for user in [As::Tester, As::Nobody] {
        let mark = unique("bare");
        let shown = format!("a-{mark}");
        let slow = integration("slow", "sleep 600");
        let command = format!("mark={mark}; (env -i setsid /bin/sh -c \"sleep 600; : a-$mark\" &)");
        let agent = Agent::launch(folder(&[slow], &[]), Settings::user(user));
        within(|| (children(agent.pid()).len() == 1).then_some(()));
        let quick = integration("quick", &command).to_string();
        std::fs::write(agent.path("integrations.d/quick.json"), quick).unwrap();
        agent.ask(&json!({"type": "reload"}));
        for _ in 0..3 {
            assert_eq!(agent.check("quick")["health"], "healthy");
            assert_eq!(processes(&shown), NONE, "{user:?}");
        }
        assert_eq!(agent.status()["integrations"][1]["checks"], 0, "slow runs");
    }
}

/// A cgroup of a test's own, beside all others; the root without a name.
struct Elsewhere(std::path::PathBuf);

impl Elsewhere {
    fn new(name: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let path = std::path::Path::new(mount.split_whitespace().nth(4)?).join(name);
        if !name.is_empty() {
            std::fs::create_dir(&path).ok()?;
        }
        let procs = std::fs::File::options()
            .append(true)
            .open(path.join("cgroup.procs"));
        procs.is_ok().then_some(Self(path))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn what_moved_to_another_cgroup_goes_with_its_command() {
    for name in [String::new(), unique("elsewhere")] {
        let Some(elsewhere) = Elsewhere::new(&name) else {
            let required = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
            assert!(!required, "no cgroup v2 can be written");
            eprintln!("SKIPPED, NOTHING WAS TESTED: no cgroup v2 can be written");
            return;
        };
        let mark = unique("moved");
        let procs = elsewhere.0.join("cgroup.procs").display().to_string();
        let command = format!("echo $$ > {procs} && (setsid sh -c 'sleep 600; : {mark}' &)");
        let mut moved = integration("moved", &command);
        moved["checkpoint_cmd"] = json!(command);
        moved["restore_cmd"] = json!(command);
        let agent = Agent::start(&[moved], &[probe("moving", &command)]);
        for _ in 0..3 {
            assert_eq!(agent.check("moved")["health"], "healthy");
            assert_eq!(processes(&mark), NONE, "of a check");
            assert_eq!(agent.probe("moving")["ok"], true);
            assert_eq!(processes(&mark), NONE, "of a probe");
        }
        let ready = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
        assert_eq!(ready["type"], "ready", "{ready}");
        assert_eq!(processes(&mark), NONE, "of a checkpoint");
        let awake = agent.ask(&json!({"type": "wake", "token": "t", "cause": "aborted"}));
        assert_eq!(awake["type"], "awake", "{awake}");
        // The first check after a wake comes soon, and may run just now.
        within(|| processes(&mark).is_empty().then_some(()));
        within(|| children(agent.pid()).is_empty().then_some(()));
        let was_moved = integration("moved", &format!("{command}; sleep 600")).to_string();
        std::fs::write(agent.path("integrations.d/moved.json"), was_moved).unwrap();
        agent.ask(&json!({"type": "reload"}));
        within(|| (!processes(&mark).is_empty()).then_some(()));
        // As one that was killed leaves it to the next.
        let agent = {
            let (dir, settings) = agent.crash();
            std::fs::remove_file(dir.path().join("integrations.d/moved.json")).unwrap();
            std::fs::remove_file(dir.path().join("probes.d/moving.json")).unwrap();
            Agent::launch(dir, settings)
        };
        within(|| processes(&mark).is_empty().then_some(()));
        drop(agent);
    }
}

#[test]
fn one_slow_check_delays_nothing_else() {
    let slow = integration("slow", "sleep 600");
    let quick = json!({"name": "quick", "health_cmd": "true", "health_interval_secs": 0.05});
    let agent = Agent::start(&[slow, quick], &[probe("value", "echo 42%")]);
    let started = Instant::now();
    within(|| {
        let status = agent.status();
        (status["integrations"][0]["checks"].as_u64()? >= 5).then_some(())
    });
    let status = agent.status();
    assert_eq!(
        status["integrations"][1]["checks"], 0,
        "the slow one still runs: {status}"
    );
    assert_eq!(agent.probe("value")["value"], "42%");
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "before the slow one's time is up"
    );
}

#[test]
fn ends_are_told_exactly() {
    let agent = Agent::start(
        &[
            integration("three", "exit 3"),
            integration("segv", "kill -SEGV $$"),
            integration("absent", "no-such-command-here"),
            integration("nobody-there", "true"),
            json!({"name": "no-user", "health_cmd": "true", "user": "no-such-user"}),
            integration("invalid", "printf 'a\\377b'"),
        ],
        &[],
    );
    let last = |name: &str| agent.check(name)["last_check"].take();
    assert_eq!(last("three")["exit_code"], 3);
    let segv = last("segv");
    assert_eq!(
        (&segv["exit_code"], &segv["signal"]),
        (&Value::Null, &json!("SEGV"))
    );
    assert_eq!(last("absent")["exit_code"], 127);
    assert_eq!(last("invalid")["output"], "a\u{fffd}b");
    let entry = agent.check("no-user");
    assert_eq!(entry["health"], "unhealthy");
    let output = entry["last_check"]["output"].as_str().unwrap();
    assert!(
        output.starts_with("not started: no user `no-such-user`"),
        "{output}"
    );
}

#[test]
fn a_lack_of_processes_does_not_count_as_a_failure() {
    let settings = Settings {
        user: As::Nobody,
        first: Some("ulimit -u 0"),
        ..Settings::default()
    };
    let agent = Agent::launch(folder(&[integration("poor", "true")], &[]), settings);
    let entry = agent.check("poor");
    assert_eq!(
        entry["health"], "starting",
        "it says nothing of the service: {entry}"
    );
    assert_eq!(entry["consecutive_failures"], 0);
    assert!(entry["failures"].as_u64().unwrap() >= 1);
    let output = entry["last_check"]["output"].as_str().unwrap();
    assert!(output.starts_with("not started: fork: "), "{output}");
}

#[test]
fn a_command_runs_as_its_user_with_its_own_groups_and_nothing_of_the_agents() {
    let mut who = probe(
        "who",
        "id -u; id -g; id -G; pwd; ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj",
    );
    who["user"] = json!(NOBODY.to_string());
    let agent = Agent::start(&[], &[who]);
    let entry = agent.probe("who");
    // Descriptors: three and the one by which `ls` reads the folder.
    let oom = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let expected = format!("{NOBODY}\n{NOBODY}\n{NOBODY}\n/\n4\n{}", oom.trim());
    assert_eq!(entry["value"], expected, "{entry}");
}

#[test]
fn a_json_probe_has_a_json_value_and_a_broken_one_none() {
    let mut good = probe("good", "echo '{\"a\":[1,2]}'; echo noise >&2");
    let mut bad = probe("bad", "echo '{'");
    for probe in [&mut good, &mut bad] {
        probe["output"] = json!("json");
    }
    let agent = Agent::start(&[], &[good, bad]);
    let (good, bad) = (agent.probe("good"), agent.probe("bad"));
    assert_eq!(
        (&good["ok"], &good["value"]),
        (&json!(true), &json!({"a": [1, 2]}))
    );
    assert_eq!((&bad["ok"], &bad["value"]), (&json!(false), &Value::Null));
    assert_eq!(
        agent.status()["health"],
        "healthy",
        "a probe never changes the guest's health"
    );
}

#[test]
fn a_restarted_agent_kills_what_a_killed_one_left() {
    for user in [As::Tester, As::Nobody] {
        let mark = unique("left");
        let hung = integration(
            "hung",
            &format!("setsid sh -c 'sleep 600; : {mark}' & sleep 600"),
        );
        let agent = Agent::launch(folder(&[hung], &[]), Settings::user(user));
        within(|| (processes(&mark).len() >= 2).then_some(()));
        let (dir, settings) = agent.crash();
        assert!(!processes(&mark).is_empty(), "so that the test can fail");
        std::fs::remove_file(dir.path().join("integrations.d/hung.json")).unwrap();
        let agent = Agent::launch(dir, settings);
        within(|| processes(&mark).is_empty().then_some(()));
        assert_eq!(agent.status()["lifecycle"], "running");
    }
}

#[test]
fn a_stopped_agent_ends_its_commands_and_removes_its_socket() {
    for user in [As::Tester, As::Nobody] {
        let mark = unique("stop");
        let hung = integration(
            "hung",
            &format!("setsid sh -c 'sleep 600; : {mark}' & sleep 600"),
        );
        let mut agent = Agent::launch(folder(&[hung], &[]), Settings::user(user));
        within(|| (processes(&mark).len() >= 2).then_some(()));
        agent.signal(rustix::process::Signal::TERM);
        assert!(agent.wait().success());
        assert_eq!(processes(&mark), NONE);
        assert!(!agent.socket().exists());
    }
}

#[test]
fn many_checks_leak_nothing() {
    for user in [As::Tester, As::Nobody] {
        let orphan = "setsid sleep 600 & (sleep 0.01 &); exit 1";
        let busy = json!({"name": "busy", "health_cmd": orphan, "health_interval_secs": 0.01});
        let agent = Agent::launch(
            folder(&[busy], &[probe("p", "echo 1")]),
            Settings::user(user),
        );
        let checks = |at_least: u64| {
            within(|| {
                let checks = agent.status()["integrations"][0]["checks"].as_u64()?;
                (checks >= at_least).then_some(())
            });
        };
        checks(5);
        agent.probe("p");
        std::fs::remove_file(agent.path("integrations.d/busy.json")).unwrap();
        agent.ask(&json!({"type": "reload"}));
        within(|| children(agent.pid()).is_empty().then_some(()));
        let before = descriptors(agent.pid());
        let file = agent.path("integrations.d/busy.json");
        let busy = json!({"name": "busy", "health_cmd": orphan, "health_interval_secs": 0.01});
        std::fs::write(&file, busy.to_string()).unwrap();
        agent.ask(&json!({"type": "reload"}));
        checks(100);
        std::fs::remove_file(&file).unwrap();
        agent.ask(&json!({"type": "reload"}));
        within(|| children(agent.pid()).is_empty().then_some(()));
        within(|| (descriptors(agent.pid()) <= before).then_some(()));
    }
}
