//! Jobs: started, listed, followed, ended.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, dev};
use serde_json::{Value, json};
use std::process::Stdio;

fn serve(peer: &mut Peer, request: &Value) {
    match request["type"].as_str().unwrap() {
        "exec" => {
            assert_eq!(request["detach"], true);
            peer.reply(
                request,
                json!({"type": "job-started", "job": 7, "pid": 321}),
            );
        }
        "jobs" => peer.reply(request, jobs()),
        "attach" if request["job"] != 7 => peer.refuse(request, "not-found", "no job 8"),
        "attach" => {
            peer.exec_started(request);
            peer.data(1, b"kept\n");
            if request["follow"] == false {
                peer.reply(
                    request,
                    json!({"type": "job-started", "job": 7, "pid": 321}),
                );
                return;
            }
            peer.data(2, b"new\n");
            peer.reply(
                request,
                json!({
                    "type": "exec-exited", "exit_code": 5, "signal": null, "timed_out": false,
                    "truncated": true,
                }),
            );
        }
        "job-signal" => {
            assert_eq!(request["signal"], "KILL");
            peer.reply(
                request,
                json!({"type": "job-signaled", "job": request["job"]}),
            );
        }
        other => panic!("{other}"),
    }
}

fn jobs() -> Value {
    let job = |job: u64, argv: &[&str], state: &str, ended_at: Option<&str>| {
        json!({
            "job": job, "argv": argv, "pid": 300 + job, "state": state,
            "started_at": "2026-11-24T06:00:00.000Z", "ended_at": ended_at, "exit_code": null,
            "signal": null, "timed_out": false, "output_bytes": 2048,
        })
    };
    let end = Some("2026-11-24T06:01:30.000Z");
    let mut failed = job(2, &["false"], "ended", end);
    failed["exit_code"] = 1.into();
    let mut killed = job(3, &["sleep", "9"], "ended", end);
    killed["signal"] = "KILL".into();
    let mut late = job(4, &["sleep", "9"], "ended", end);
    late["timed_out"] = true.into();
    let mut done = job(5, &["true"], "ended", end);
    done["exit_code"] = 0.into();
    json!({"type": "jobs", "jobs": [
        job(1, &["sh", "-c", "while :; do date; sleep 1; done"], "running", None),
        failed, killed, late, done,
        job(6, &["tail", "-f", "/x\u{1b}[2J"], "held", None),
        job(7, &["x"], "some-state-of-tomorrow", None),
    ]})
}

fn host() -> Host {
    Host::with("web", dev(serve))
}

#[test]
fn a_job_is_started_by_its_number() {
    let host = host();
    let ran = host.mvmctl("vm exec -d web -- sleep 9").exits(0).silently();
    assert_eq!(ran.stdout, "7\n");
    let ran = host
        .mvmctl("vm exec --detach --json web -- sleep 9")
        .exits(0);
    assert_eq!(ran.json(), json!({"vm": "web", "job": 7, "pid": 321}));
}

#[test]
fn jobs_are_listed() {
    let host = host();
    let shown = host.mvmctl("vm jobs web").exits(0).silently().stdout;
    let lines: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|it| !it.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        lines[0],
        ["JOB", "STATE", "AGE", "TOOK", "PRINTED", "COMMAND"]
    );
    let states: Vec<_> = lines.iter().skip(1).map(|row| row[1]).collect();
    assert_eq!(
        states,
        [
            "running",
            "exit 1",
            "signal KILL",
            "timed out",
            "ok",
            "held",
            "some-state-of-tomorrow"
        ]
    );
    assert_eq!((lines[1][3], lines[2][3]), ("-", "1m30s"));
    assert_eq!(lines[1][5], "sh -c 'while :; do date; sleep 1; done'");
    assert!(!shown.contains('\x1b'), "{shown:?}");
    let data = host.mvmctl("vm jobs web --json").exits(0).json();
    assert_eq!(
        (&data["vm"], &data["jobs"][1]["exit_code"]),
        (&"web".into(), &1.into())
    );
}

#[test]
fn a_job_is_followed_to_its_end() {
    let host = host();
    let ran = host.mvmctl("vm attach web 7").exits(5);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("kept\n", "new\noutput before this was not kept\n")
    );
    let ran = host
        .mvmctl("vm attach --no-follow web 7")
        .exits(0)
        .silently();
    assert_eq!(ran.stdout, "kept\n");
    host.mvmctl("vm attach web 8")
        .exits(125)
        .says("no job 8")
        .says("mvmctl vm jobs web");
    host.mvmctl("vm attach web seven").exits(2);
}

#[test]
fn an_interrupt_leaves_the_job_alone() {
    let host = Host::with(
        "web",
        dev(|peer, request| {
            peer.exec_started(request);
            peer.data(1, b"up");
            peer.until_closed();
        }),
    );
    let mut command = host.command("vm attach web 7");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut up = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    Ran::from(child.wait_with_output().unwrap())
        .exits(130)
        .says("job 7 is no longer followed, and runs on")
        .says("mvmctl vm kill web 7");
}

#[test]
fn a_job_is_sent_a_signal() {
    let host = host();
    for name in ["KILL", "sigkill", "9"] {
        host.mvmctl(&format!("vm kill web 7 {name}"))
            .exits(0)
            .silently();
    }
    let told = host.mvmctl("vm kill --json web 7 KILL").exits(0).json();
    assert_eq!(told, json!({"vm": "web", "job": 7}));
    host.mvmctl("vm kill web 7 BOO")
        .exits(2)
        .says("no such signal");
}
