//! `exec` of a dev build, with real commands.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::dev::{exec, shell, with};
use common::{Agent, As, Settings, assert_refused, children, folder, processes, within};
use serde_json::{Value, json};

fn both(tell: impl Fn(&Agent)) {
    for user in [As::Tester, As::Nobody] {
        let agent = Agent::launch(folder(&[], &[]), Settings::user(user));
        tell(&agent);
    }
}

#[test]
fn output_and_exit_code_come_as_they_are() {
    let agent = Agent::start(&[], &[]);
    let ran = agent.exec(&with(
        shell("echo out; echo err >&2; exit 3"),
        json!({"id": 9}),
    ));
    assert_eq!(
        (ran.text().as_str(), ran.errors().as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(ran.started["type"], "exec-started");
    let pid = ran.started["pid"].as_u64().unwrap();
    assert!(pid > 1);
    assert_eq!(ran.started["id"], 9);
    let expected = json!({
        "type": "exec-exited", "exit_code": 3, "signal": null,
        "timed_out": false, "truncated": false, "id": 9,
    });
    assert_eq!(ran.last, expected);
    let ran = agent.exec(&shell("kill -SEGV $$"));
    assert_eq!(ran.end(), (None, Some("SEGV")));
    let ran = agent.exec(&shell("printf 'a\\377b'"));
    assert_eq!(ran.stdout, b"a\xffb");
}

#[test]
fn start_failures_have_distinct_codes() {
    let agent = Agent::start(&[], &[]);
    let script = agent.path("run/no-shebang");
    std::fs::write(&script, "echo never").unwrap();
    let plain = agent.path("run/plain");
    std::fs::write(&plain, "echo never").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let [script, plain] = [script, plain].map(|path| path.display().to_string());
    let long = "x".repeat(200_000);
    for (request, code, message) in [
        (exec(&["no-such-program"]), "not-found", "`no-such-program`"),
        (
            exec(&["/no/such/program"]),
            "not-found",
            "`/no/such/program`",
        ),
        (exec(&["/etc"]), "not-allowed", "`/etc`"),
        (exec(&[&plain]), "not-allowed", "Permission denied"),
        (exec(&[&script]), "not-allowed", "Exec format error"),
        (
            with(exec(&["true"]), json!({"cwd": "/no/such"})),
            "not-found",
            "folder `/no/such`",
        ),
        (
            with(exec(&["true"]), json!({"cwd": "/etc/passwd"})),
            "not-allowed",
            "folder `/etc/passwd`: Not a directory",
        ),
        (
            with(exec(&["true"]), json!({"user": "nemo"})),
            "not-found",
            "no user `nemo`",
        ),
        (exec(&["true", &long]), "failed", "Argument list too long"),
        (exec(&[]), "bad-request", "argv"),
        (
            with(exec(&["true"]), json!({"cwd": "tmp"})),
            "bad-request",
            "cwd",
        ),
    ] {
        let ran = agent.exec(&request);
        assert_refused(&ran.last, code, message);
    }
    assert_eq!(children(agent.pid()), [0; 0], "nothing is left of them");
}

#[test]
fn a_user_has_its_own_permissions_and_home() {
    let agent = Agent::start(&[], &[]);
    let as_nobody = json!({"user": "nobody", "env": {"K": "v w"}, "cwd": "/tmp"});
    let ran = agent.exec(&with(
        shell("id -u; id -G; pwd; echo $USER $HOME; echo $K; cat /proc/self/oom_score_adj"),
        as_nobody,
    ));
    assert_eq!(
        ran.text(),
        "65534\n65534\n/tmp\nnobody /nonexistent\nv w\n0\n"
    );
    let dir = agent.path("run");
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let state = ["grep", "NoNewPrivs", "/proc/self/status"];
    let ran = agent.exec(&with(exec(&state), json!({"user": "nobody"})));
    assert_eq!(ran.text(), "NoNewPrivs:\t1\n");
    let cwd = json!({"user": "nobody", "cwd": dir.to_str().unwrap()});
    let ran = agent.exec(&with(exec(&["true"]), cwd));
    assert_eq!(ran.last["code"], "not-allowed", "{}", ran.last);
    let agent = Agent::launch(folder(&[], &[]), Settings::user(As::Nobody));
    let ran = agent.exec(&with(exec(&["true"]), json!({"user": "root"})));
    assert_eq!(ran.last["code"], "not-allowed", "{}", ran.last);
}

#[test]
fn a_process_that_keeps_the_pipes_open_is_killed_and_delays_no_exit() {
    both(|agent| {
        let ran = agent.exec(&shell("sleep 1001.5 & echo hi"));
        assert_eq!((ran.text().as_str(), ran.end()), ("hi\n", (Some(0), None)));
        assert_eq!(processes("sleep 1001.5"), [0; 0]);
        let ran = agent.exec(&shell("setsid sh -c 'sleep 1002.5; :' & echo hi; exit 4"));
        assert_eq!((ran.text().as_str(), ran.end()), ("hi\n", (Some(4), None)));
        assert_eq!(processes("sleep 1002.5"), [0; 0]);
        // Who goes on printing is cut off after a second, and that is told. One that gets no CPU for
        // 100 ms, as on a busy machine, does not go on: that is a silence, which ends the output.
        let ran = within(|| {
            let ran = agent.exec(&shell("(while :; do echo more; done) & exit 0"));
            assert_eq!(children(agent.pid()), [0; 0]);
            (ran.last["truncated"] == true).then_some(ran)
        });
        assert!(ran.text().contains("more"));
        let ran = agent.exec(&shell("(sleep 0.5; while :; do echo late; done) & exit 0"));
        assert_eq!(
            (ran.text().as_str(), &ran.last["truncated"]),
            ("", &json!(false)),
            "nobody waits for who is silent"
        );
        assert_eq!(children(agent.pid()), [0; 0]);
    });
}

#[test]
fn a_closed_connection_kills_the_whole_process_tree() {
    both(|agent| {
        let mut connection = agent.connection();
        let text = "setsid sleep 1003.5 & sleep 1003.5 & echo up; sleep 1003.5";
        connection.begin(&shell(text));
        connection.until("up");
        within(|| (processes("sleep 1003.5").len() == 4).then_some(()));
        drop(connection);
        within(|| processes("sleep 1003.5").is_empty().then_some(()));
        within(|| children(agent.pid()).is_empty().then_some(()));
    });
}

#[test]
fn an_agent_that_stops_says_so_to_those_whose_commands_it_ends() {
    let mut agent = Agent::start(&[], &[]);
    let mut connection = agent.connection();
    connection.begin(&shell("echo up; sleep 1003.6"));
    connection.until("up");
    agent.signal(rustix::process::Signal::TERM);
    let last = connection.rest().last;
    assert_refused(&last, "busy", "the agent is stopping");
    assert!(agent.wait().success());
    assert_eq!(processes("sleep 1003.6"), [0; 0]);
}

/// The tests' agents have a `NOTIFY_SOCKET` of their own.
#[test]
fn a_command_does_not_speak_for_the_agent() {
    let agent = Agent::start(&[], &[]);
    let ran = agent.exec(&exec(&["env"]));
    assert!(ran.text().contains("PATH="), "{}", ran.text());
    assert!(!ran.text().contains("NOTIFY_SOCKET"), "{}", ran.text());
    let given = json!({"env": {"NOTIFY_SOCKET": "given"}});
    let ran = agent.exec(&with(exec(&["env"]), given));
    assert!(ran.text().contains("NOTIFY_SOCKET=given"), "{}", ran.text());
}

#[test]
fn the_connection_serves_on_and_late_frames_are_dropped() {
    let agent = Agent::start(&[], &[]);
    let mut connection = agent.connection();
    let request = with(exec(&["true"]), json!({"stdin": true}));
    assert_eq!(connection.exec(&request).end(), (Some(0), None));
    connection.data(0, b"too late");
    connection.send(&json!({"type": "signal", "signal": "TERM"}));
    connection.send(&json!({"type": "stdin-close"}));
    assert_eq!(
        connection.ask(&json!({"type": "ping"})),
        json!({"type": "pong"})
    );
    connection.data(0, b"and now it belongs to nothing");
    assert_eq!(connection.json()["code"], "bad-request");
    // A request that comes too early waits for its turn.
    connection.send(&shell("echo first"));
    connection.send(&json!({"type": "ping", "id": 2}));
    let mut rest = connection.json();
    assert_eq!(rest["type"], "exec-started");
    assert_eq!(connection.rest().text(), "first\n");
    rest = connection.json();
    assert_eq!(rest, json!({"type": "pong", "id": 2}));
}

#[test]
fn out_of_descriptors_a_command_is_refused_as_busy_and_nothing_leaks() {
    let settings = Settings {
        first: Some("ulimit -n 40"),
        ..Settings::default()
    };
    let agent = Agent::launch(folder(&[], &[]), settings);
    let mut host = agent.connection();
    let mut held = Vec::new();
    let refused = loop {
        let mut other = agent.connection();
        other.send(&json!({"type": "ping"}));
        assert_eq!(other.json()["type"], "pong");
        held.push(other);
        let ran = host.exec(&exec(&["true"]));
        if ran.last["type"] == "error" {
            break ran.last;
        }
    };
    assert_eq!(refused["code"], "busy", "{refused}");
    assert_eq!(refused["retryable"], true);
    for _ in 0..50 {
        assert_eq!(host.exec(&exec(&["true"])).last["code"], "busy");
    }
    held.clear();
    within(|| (host.exec(&exec(&["true"])).end() == (Some(0), None)).then_some(()));
}

#[test]
fn it_can_be_switched_off() {
    let agent = Agent::launch(folder(&[], &[]), Settings::flags(&["--exec", "false"]));
    for kind in common::DEV_REQUESTS {
        let answer = agent.ask(&json!({"type": kind}));
        assert_refused(&answer, "not-allowed", "exec: false");
    }
    let hello = agent.ask(&json!({"type": "hello"}));
    assert_eq!(hello["profile"], "dev");
    let capable = |hello: &Value| {
        let all = hello["capabilities"].as_array().unwrap();
        all.iter().any(|name| name == "exec")
    };
    assert!(!capable(&hello));
    assert!(capable(
        &Agent::start(&[], &[]).ask(&json!({"type": "hello"}))
    ));
}
