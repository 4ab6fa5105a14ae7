//! Connections: who stalls, who floods, and who is turned away.

#![allow(clippy::disallowed_methods, reason = "a test has threads")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Connection, Settings, assert_refused, descriptors, folder, within};
use mvm_protocol::frame::encode_json;
use serde_json::json;
use std::io::Write;
use std::time::{Duration, Instant};

fn ping() -> serde_json::Value {
    json!({"type": "ping"})
}

#[test]
fn a_client_that_stalls_after_two_bytes_blocks_no_other() {
    let agent = Agent::start(&[], &[]);
    let mut stalled: Vec<Connection> = (0..50).map(|_| agent.connection()).collect();
    for connection in &mut stalled {
        connection.stream.write_all(&[0, 0]).unwrap();
    }
    let started = Instant::now();
    for _ in 0..50 {
        assert_eq!(agent.ask(&ping()), json!({"type": "pong"}));
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_slow_check_delays_only_what_was_asked_after_it_on_its_connection() {
    let slow = json!({"name": "slow", "command": "sleep 0.7; echo done", "interval_secs": 86400});
    let agent = Agent::start(&[], &[slow]);
    let mut connection = agent.connection();
    connection.send(&json!({"type": "check", "kind": "probe", "name": "slow", "id": 1}));
    connection.send(&json!({"type": "ping", "id": 2}));
    assert_eq!(agent.ask(&ping()), json!({"type": "pong"}));
    let (first, second) = (connection.answer().unwrap(), connection.answer().unwrap());
    assert_eq!(
        (&first["id"], &first["type"]),
        (&json!(1), &json!("checked"))
    );
    assert_eq!(second, json!({"type": "pong", "id": 2}));
}

#[test]
fn a_thousand_pipelined_requests_are_answered_in_order() {
    let agent = Agent::start(&[], &[]);
    let mut connection = agent.connection();
    let mut stream = connection.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for id in 0..1000 {
            let body = json!({"type": "status", "id": id}).to_string();
            stream
                .write_all(&encode_json(body.as_bytes()).unwrap())
                .unwrap();
        }
    });
    for id in 0..1000 {
        assert_eq!(connection.answer().unwrap()["id"], id);
    }
    writer.join().unwrap();
}

#[test]
fn a_connection_over_the_limit_is_refused_with_a_reason() {
    let agent = Agent::launch(
        folder(&[], &[]),
        Settings::flags(&["--max-connections", "3"]),
    );
    let mut taken: Vec<Connection> = (0..3).map(|_| agent.connection()).collect();
    for connection in &mut taken {
        connection.ask(&ping());
    }
    let answer = agent.connection().answer().unwrap();
    assert_eq!(answer["code"], "too-many-connections");
    assert_eq!(answer["retryable"], true);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("max_connections"),
        "{answer}"
    );
    taken.pop();
    within(|| (agent.ask(&ping())["type"] == "pong").then_some(()));
}

#[test]
fn a_host_that_has_gone_takes_no_place_while_what_it_asked_for_runs() {
    let slow = json!({
        "name": "slow", "command": "sleep 600", "interval_secs": 86400, "timeout_secs": 900,
    });
    let agent = Agent::launch(
        folder(&[], &[slow]),
        Settings::flags(&["--max-connections", "3"]),
    );
    for _ in 0..3 {
        let mut connection = agent.connection();
        connection.ask(&ping());
        connection.send(&json!({"type": "check", "kind": "probe", "name": "slow"}));
    }
    within(|| (agent.ask(&ping())["type"] == "pong").then_some(()));
}

#[test]
fn out_of_descriptors_a_connection_is_refused_and_nothing_spins() {
    let settings = Settings {
        first: Some("ulimit -n 24"),
        ..Settings::default()
    };
    let agent = Agent::launch(folder(&[], &[]), settings);
    let mut held = Vec::new();
    let told = loop {
        let mut connection = agent.connection();
        connection.send(&ping());
        let answer = connection.answer().unwrap();
        if answer["type"] == "error" {
            break answer;
        }
        held.push(connection);
        assert!(held.len() < 30, "the limit is reached before");
    };
    assert_eq!(told["code"], "too-many-connections");
    let before = cpu_ticks(agent.pid());
    for _ in 0..20 {
        assert_eq!(
            agent.connection().answer().unwrap()["code"],
            "too-many-connections"
        );
    }
    // A loop at full speed over the time that these take would use far more.
    assert!(cpu_ticks(agent.pid()) - before < 50, "the agent spins");
    assert_eq!(
        held[0].ask(&ping())["type"],
        "pong",
        "who is there is served"
    );
    held.clear();
    within(|| (agent.ask(&ping())["type"] == "pong").then_some(()));
}

/// Nor does who is told that there is no room: each of them has a descriptor until it has gone.
#[test]
fn who_is_refused_does_not_use_up_what_the_agent_needs_itself() {
    let settings = Settings {
        first: Some("ulimit -n 40"),
        ..Settings::default()
    };
    let web = json!({"name": "web", "health_cmd": "true", "health_interval_secs": 86400});
    let agent = Agent::launch(folder(&[web], &[]), settings);
    let mut host = agent.connection();
    let check = json!({"type": "check", "kind": "integration", "name": "web"});
    // They stay, as one that reads nothing.
    let refused: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = agent.connect();
            // Some are closed by then, without a word.
            let _ = stream.write_all(b"CONNECT 52\n");
            stream
        })
        .collect();
    for _ in 0..20 {
        let checked = host.ask(&check);
        assert_eq!(checked["integration"]["health"], "healthy", "{checked}");
        assert_eq!(checked["integration"]["failures"], 0, "{checked}");
    }
    drop(refused);
}

/// Whatever hosts have open, the agent checks, and the guest sleeps and wakes.
#[test]
fn hosts_do_not_use_up_what_the_agent_needs_itself() {
    let settings = Settings {
        first: Some("ulimit -n 96"),
        ..Settings::default()
    };
    let web = json!({"name": "web", "health_cmd": "true", "health_interval_secs": 86400,
        "checkpoint_cmd": "true", "restore_cmd": "true"});
    let agent = Agent::launch(folder(&[web], &[]), settings);
    let mut held = Vec::new();
    loop {
        let mut connection = agent.connection();
        connection.send(&ping());
        let answer = connection.answer().unwrap();
        if answer["type"] == "error" {
            assert_refused(&answer, "too-many-connections", "all connections are taken");
            break;
        }
        held.push(connection);
        assert!(held.len() < 96, "the limit is reached before");
    }
    let host = &mut held[0];
    let checked = host.ask(&json!({"type": "check", "kind": "integration", "name": "web"}));
    assert_eq!(
        checked["integration"]["last_check"]["exit_code"], 0,
        "{checked}"
    );
    assert_eq!(host.ask(&json!({"type": "reload"}))["integrations"], 1);
    assert_eq!(host.ask(&json!({"type": "sleep-prep"}))["type"], "ready");
    let awake = host.ask(&json!({"type": "wake", "cause": "aborted"}));
    assert_eq!(awake["type"], "awake", "{awake}");
    let failed = awake["steps"].as_array().unwrap();
    assert!(
        failed.iter().all(|step| step["outcome"] != "failed"),
        "{awake}"
    );
}

/// Who uses select(2) may not expect more.
#[test]
fn what_is_started_may_have_as_many_descriptors_as_the_agent_was_given() {
    let settings = Settings {
        first: Some("ulimit -S -n 500"),
        ..Settings::default()
    };
    let probe = json!({"name": "limit", "command": "ulimit -n", "interval_secs": 86400});
    let agent = Agent::launch(folder(&[], &[probe]), settings);
    assert_eq!(agent.probe("limit")["value"], "500");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let own = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let own: u64 = own
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(own > 500, "{limits}");
}

/// What cannot be looked at is not gone: neither drop-ins nor what holds the guest busy.
#[test]
fn without_descriptors_nothing_is_forgotten() {
    let drop_in = |name| json!({"name": name, "health_cmd": "true", "health_interval_secs": 86400});
    let dir = folder(&[drop_in("a"), drop_in("b")], &[]);
    let settings = json!({"busy_signals": ["inhibit"], "sample_interval_secs": 0.1});
    std::fs::write(dir.path().join("agent.json"), settings.to_string()).unwrap();
    let agent = Agent::launch(dir, Settings::default());
    let own = std::process::id().to_string();
    std::fs::write(agent.path("run/busy.d/test"), own).unwrap();
    let mut host = agent.connection();
    let status = json!({"type": "status"});
    within(|| (host.ask(&status)["worker"]["state"] == "busy").then_some(()));
    agent.limit_descriptors(4);
    let answer = host.ask(&json!({"type": "reload"}));
    assert_refused(&answer, "busy", "Too many open files");
    std::fs::write(
        agent.path("integrations.d/c.json"),
        drop_in("c").to_string(),
    )
    .unwrap();
    let until = host.ask(&status)["uptime_secs"].as_f64().unwrap() + 1.5;
    within(|| {
        let status = host.ask(&status);
        assert_eq!(status["worker"]["state"], "busy", "{status}");
        assert_eq!(
            status["integrations"].as_array().unwrap().len(),
            2,
            "{status}"
        );
        (status["uptime_secs"].as_f64().unwrap() > until).then_some(())
    });
    let check = json!({"type": "check", "kind": "integration", "name": "a"});
    let checked = host.ask(&check)["integration"].take();
    let last = checked["last_check"]["output"].as_str().unwrap();
    assert!(last.contains("Too many open files"), "{checked}");
    assert_eq!(checked["health"], "healthy");
    agent.limit_descriptors(1024);
    within(|| {
        let loaded = host.ask(&status)["integrations"].as_array().unwrap().len();
        (loaded == 3).then_some(())
    });
    std::fs::remove_file(agent.path("run/busy.d/test")).unwrap();
    within(|| (host.ask(&status)["worker"]["state"] == "idle").then_some(()));
}

#[test]
fn a_burst_of_connections_is_served_and_leaves_nothing() {
    let agent = Agent::start(&[], &[]);
    agent.ask(&ping());
    within(|| (descriptors(agent.pid()) <= 18).then_some(()));
    let before = descriptors(agent.pid());
    let mut burst: Vec<Connection> = (0..500).map(|_| agent.connection()).collect();
    for connection in &mut burst {
        assert_eq!(connection.ask(&ping())["type"], "pong");
    }
    drop(burst);
    within(|| (descriptors(agent.pid()) <= before).then_some(()));
}

#[test]
fn the_socket_is_its_owners_alone_and_a_leftover_is_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let agent = Agent::start(&[], &[]);
    let mode = std::fs::metadata(agent.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (dir, settings) = agent.crash();
    assert!(
        dir.path().join("run/agent.sock").exists(),
        "so that the test can fail"
    );
    let agent = Agent::launch(dir, settings);
    assert_eq!(agent.ask(&ping())["type"], "pong");
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
