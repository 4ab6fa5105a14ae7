//! What can be amiss between a name and an answer: the words, the hint, the data and the code.

use crate::host::{Host, answering, nobody, silent};
use mvm_fake_agent::{FakeAgent, Peer, old, well};
use serde_json::json;
use std::os::unix::net::UnixListener;

#[test]
fn usage() {
    let host = Host::with("web", well);
    for arguments in [
        "",
        "vm",
        "vm status --no-such-flag",
        "vm status web --timeout 5",
        "vm status web --timeout 0s",
        "vm status web --timeout 2562047788015215h",
        "vm status web -o xml",
        "vm status web --json -o yaml",
        "vm status web --parallel 0",
        "vm inspect",
        "vm wait web",
        "vm wait web --for sleepy",
        "vm check web",
        "completion tcsh",
    ] {
        let ran = host.mvmctl(arguments).exits(2);
        assert!(
            !ran.stderr.is_empty() && ran.stdout.is_empty(),
            "{arguments}: {ran:?}"
        );
    }
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn names_that_cannot_be() {
    let host = Host::with("web", well);
    host.mvmctl("vm status /run/v.sock")
        .exits(2)
        .says("unix:/run/v.sock");
    host.mvmctl("vm status ../web").exits(2).says("unix:../web");
    for command in ["status", "ping", "events"] {
        // Wherever it stands among the others, and whatever is amiss with those.
        for names in ["web we!rd", "we!rd web", "nope web we!rd", "web vsock:2"] {
            let ran = host
                .mvmctl(&format!("vm {command} {names} --json"))
                .exits(2)
                .says("64 letters");
            assert_eq!(ran.json()["error"]["code"], "bad-name");
        }
    }
    host.mvmctl("vm ping vsock:2").exits(2).says("3 or more");
    assert_eq!(
        host.accepted("web"),
        0,
        "a fault of the command line stops it all"
    );
}

#[test]
fn a_typo_gets_the_nearest_name() {
    let host = Host::with("web-1", well).and("db", well);
    let ran = host
        .mvmctl("vm status wbe-1")
        .exits(3)
        .says("did you mean `web-1`?");
    assert_eq!(ran.stdout, "");
    host.mvmctl("vm status mail").exits(3).says("mvmctl vm ls");
}

#[test]
fn a_failure_of_the_one_vm_is_data_too() {
    let host = Host::new();
    let ran = host
        .mvmctl("vm inspect web --json")
        .exits(3)
        .says("error: web: no VM has that name");
    let folder = host.path().join("vms");
    assert_eq!(
        ran.json(),
        json!({"vm": "web", "error": {
            "code": "no-such-vm",
            "message": format!("no VM has that name in {}", folder.display()),
            "retryable": false,
            "hint": "`mvmctl vm ls` shows those that there are; $MVM_HOME says where they are looked for",
        }})
    );
}

#[test]
fn what_does_not_run_is_never_dialled() {
    let host = Host::with("web", well).own("web", "qemu", "stopped");
    host.mvmctl("vm ping web")
        .exits(3)
        .says("web: the VM is stopped")
        .says("mvmctl vm start web");
    // Nor is one of which another says so.
    let host = host.record("web", r#"{"state":"stopped"}"#);
    host.mvmctl("vm ping web")
        .exits(3)
        .says("web: the VM is stopped")
        .says("something else runs it");
    host.mvmctl("vm ls").exits(0);
    host.mvmctl("vm status").exits(0);
    host.mvmctl("vm events").exits(0);
    let host = host.record("web", r#"{"state":"asleep"}"#);
    host.mvmctl("vm status web")
        .exits(3)
        .says("web: the VM is asleep");
    let host = host.record("web", "{half");
    host.mvmctl("vm ping web")
        .exits(3)
        .says("vm.json: ")
        .says("v.sock");
    host.mvmctl("vm ls").exits(4);
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn faults_of_the_socket() {
    let host = Host::new()
        .record("missing", "{}")
        .record("plain", "{}")
        .record("stale", "{}");
    std::fs::write(host.socket("plain"), "").unwrap();
    drop(UnixListener::bind(host.socket("stale")).unwrap());
    let code = |name: &str| {
        let ran = host.mvmctl(&format!("vm ping {name} --json")).exits(3);
        assert!(ran.stderr.contains("hint: "), "{ran:?}");
        ran.json()["error"]["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code("missing"), "no-socket");
    assert_eq!(code("plain"), "not-a-socket");
    assert_eq!(code("stale"), "stale-socket");
}

#[test]
fn faults_behind_the_socket() {
    let host = Host::with("nobody", nobody)
        .and("silent", silent)
        .and("mute", |peer| {
            peer.shake_hands();
            peer.until_closed();
        })
        .and("closes", Peer::shake_hands)
        .and("http", |peer| {
            peer.expect_connect();
            peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        });
    let fails = |name: &str, code: &str, says: &str| {
        let ran = host
            .mvmctl(&format!("vm ping {name} --json --timeout 300ms"))
            .exits(3)
            .says(says)
            .says("hint: ");
        assert_eq!(ran.json()["error"]["code"], code);
    };
    fails(
        "nobody",
        "nobody-listening",
        "nobody listens on port 52 in the guest",
    );
    fails("silent", "timed-out", "no OK within 300ms");
    fails("mute", "timed-out", "no answer within 300ms");
    fails(
        "closes",
        "closed",
        "closed the connection before the answer",
    );
    fails(
        "http",
        "not-an-agent",
        "is no agent: \"HTTP/1.1 400 Bad Request",
    );
}

#[test]
fn the_default_deadline_for_a_handshake_is_two_seconds() {
    let host = Host::with("silent", silent);
    host.mvmctl("vm ping silent")
        .exits(3)
        .says("no OK within 2s");
}

#[test]
fn what_an_agent_refuses_is_an_answer() {
    let refusal = |code: &str, retryable: bool| json!({"type": "error", "code": code, "message": "for a reason", "retryable": retryable});
    let host = Host::with("busy", answering(refusal("busy", true)))
        .and("newer", answering(refusal("on-fire", false)))
        .and("full", |peer| {
            // Unasked and without a number, as agents do that have no room.
            peer.shake_hands();
            peer.answer(&json!({
                "type": "error", "code": "too-many-connections", "message": "512 are open",
                "retryable": true,
            }));
        });
    let ran = host
        .mvmctl("vm status busy --json")
        .exits(1)
        .says("the agent answers: for a reason");
    assert_eq!(ran.json()["error"]["code"], "busy");
    assert_eq!(ran.json()["error"]["retryable"], true);
    host.mvmctl("vm status newer").exits(1).says("for a reason");
    host.mvmctl("vm status full")
        .exits(1)
        .says("512 are open")
        .says("try again later");
    // It answered: that is reachable.
    let listed = host.mvmctl("vm ls").exits(4).stdout;
    assert!(
        listed.contains("busy   -        yes        unknown    unknown  unknown"),
        "{listed}"
    );
}

#[test]
fn an_agent_older_than_the_request() {
    let host = Host::with("old", old);
    host.mvmctl("vm inspect old")
        .exits(1)
        .says("version 0.0.9, does not know `inspect`")
        .says("update the agent");
    for command in ["vm events old", "vm wait old --for healthy"] {
        host.mvmctl(command)
            .exits(1)
            .says("version 0.0.9, does not know `watch`")
            .says("update the agent");
    }
}

#[test]
fn settings_add_vms_that_others_started() {
    let host = Host::with("web", well);
    let jailer = host.path().join("jailer");
    let _agent = FakeAgent::at(&jailer.join("db/root/v.sock"), well);
    let config = host.path().join("mvmctl.toml");
    let discover = format!("discover = [\"{}/*/root/v.sock\"]", jailer.display());
    std::fs::write(&config, discover).unwrap();
    assert_eq!(host.mvmctl("vm ls -o name").exits(0).stdout, "db\nweb\n");
    host.mvmctl("vm ping db").exits(0);
    host.mvmctl("vm ping bd")
        .exits(3)
        .says("did you mean `db`?");
    std::fs::write(&config, "discover = 7").unwrap();
    host.mvmctl("vm ls")
        .exits(2)
        .says("mvmctl.toml: line 1")
        .says("--config");
    host.mvmctl("vm ls --config /nonexistent/x.toml")
        .exits(2)
        .says("/nonexistent/x.toml");
}

#[test]
fn what_cannot_be_looked_at_is_told_and_the_rest_shown() {
    let host = Host::with("web-1", well);
    let closed = host.path().join("closed");
    std::os::unix::fs::symlink(&closed, &closed).unwrap();
    let discover = format!("discover = [\"{}/*/v.sock\"]", closed.display());
    std::fs::write(host.path().join("mvmctl.toml"), discover).unwrap();
    let folder = format!("cannot look for VMs in {}", closed.display());
    for command in ["vm ls", "vm status", "vm ping -o name", "vm ls -o yaml"] {
        let ran = host
            .mvmctl(command)
            .exits(0)
            .says(&format!("warning: {folder}: "))
            .says("hint: become a user who may read the folder");
        assert!(ran.stdout.contains("web-1"), "{ran:?}");
    }
    let listed = host.mvmctl("vm ls --json").exits(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let examined = host.mvmctl("doctor --json").json();
    let findings = examined["findings"].as_array().unwrap();
    let told = |finding: &&serde_json::Value| {
        let message = finding["message"].as_str().unwrap();
        message.contains(&folder) && finding["level"] == "warning"
    };
    assert_eq!(findings.iter().filter(told).count(), 1, "{findings:#?}");
    // One that is named is found, or not, without a warning about others.
    host.mvmctl("vm status web-1").exits(0).silently();
    host.mvmctl("vm status wbe-1")
        .exits(3)
        .says("no VM has that name")
        .says(&folder)
        .says("did you mean `web-1`?");
}

#[test]
fn what_is_wrong_does_not_get_among_the_bytes_of_others() {
    let host = Host::with("web", well);
    for command in [
        "vm cp nope:/x - --json",
        "vm cp web:/x - -o yaml",
        "vm connect --stdio nope 22 --json",
    ] {
        let ran = host.mvmctl(command);
        assert!(ran.code != 0 && ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains("error: "), "{ran:?}");
    }
}

#[test]
fn a_vm_that_others_started_has_its_console_there() {
    let host = Host::with("web", well);
    host.mvmctl("vm logs web")
        .exits(1)
        .says("mvmctl did not start it")
        .says("its VMM has the console");
}

/// A VM that `discover` finds, and the records and sockets of others in our own folder.
#[test]
fn a_vm_that_something_else_runs_is_told_as_such_by_every_command() {
    let host = Host::with("bare", well)
        .and("foreign", well)
        .record("foreign", r#"{"state":"running","backend":"nomad"}"#);
    let jailed = host.path().join("jailer/web");
    std::fs::create_dir_all(&jailed).unwrap();
    let agent = FakeAgent::at(&jailed.join("v.sock"), well);
    let pattern = host.path().join("jailer/*/v.sock");
    let settings = format!("discover = [{pattern:?}]");
    std::fs::write(host.path().join("mvmctl.toml"), settings).unwrap();
    let own = format!("(process {})", std::process::id());
    for vm in ["web", "bare", "foreign"] {
        for (line, hint) in [
            ("vm stop NAME", "whatever started it has to stop it"),
            ("vm rm NAME", "whatever started it has to end it"),
            ("vm rm --force NAME", "whatever started it has to end it"),
            ("vm logs NAME", "its VMM has the console"),
            (
                "vm snapshot NAME",
                "between `mvmctl vm sleep NAME` and `mvmctl vm wake NAME`",
            ),
            ("vm start NAME --backend local", "choose another name"),
            ("vm restore /nonexistent --name NAME", "choose another name"),
        ] {
            let ran = host.mvmctl(&line.replace("NAME", vm)).exits(1);
            assert!(
                !ran.stderr.contains("no VM has that name"),
                "{line}: {ran:?}"
            );
            ran.says(&format!("{vm}: mvmctl did not start it: "))
                .says(&own)
                .says("v.sock")
                .says(&hint.replace("NAME", vm));
        }
        host.mvmctl(&format!("vm status {vm}")).exits(0);
    }
    let stopped = host.mvmctl("vm stop web --json").exits(1).json();
    assert_eq!(stopped["error"]["code"], "not-ours");
    assert_eq!(agent.accepted(), 1, "for its status alone");
    let listed = host.mvmctl("vm ls --json").exits(0).json();
    let states: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| &vm["state"])
        .collect();
    assert_eq!(states, ["not-ours"; 3]);
}

#[test]
fn a_full_disk_is_told() {
    let host = Host::with("web", well);
    for arguments in [
        "vm ls",
        "vm ls --json",
        "vm status web -o yaml",
        "vm ping web -o name",
        "vm inspect web",
        "vm events web",
        "vm wait web --for ready --json",
        "doctor",
        "completion fish",
        "man",
        "--help",
        "help vm exec",
        "vm --help",
        "--version",
    ] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let output = host.command(arguments).stdout(full).output().unwrap();
        crate::host::Ran::from(output)
            .exits(1)
            .says("cannot write to standard output: No space left");
    }
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut completing = host.command("");
    let output = completing.env("COMPLETE", "bash").stdout(full).output();
    assert!(!output.unwrap().status.success());
}
