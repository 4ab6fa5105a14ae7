//! How a VM ended that nobody stopped.

use crate::test_host::{Backend, TestHost};
use std::fs;
use std::time::{Duration, Instant};

/// How long a follower may take to notice, on a busy machine. Without being told it takes 15 s until
/// three heartbeats are missing.
const AT_ONCE: Duration = Duration::from_secs(5);

pub(crate) fn how_a_vm_ended_is_told_by_every_command(backend: &Backend) {
    for (deed, how, in_short, words) in [
        (
            "power-off",
            "powered-off",
            "ended (powered off)",
            "its guest powered off",
        ),
        (
            "restart",
            "restarted",
            "ended (restarted)",
            "its guest restarted",
        ),
        (
            "panic",
            "panicked",
            "ended (panicked)",
            "Kernel panic - not syncing: sysrq triggered crash",
        ),
        (
            "kill",
            "unknown",
            "ended (killed?)",
            "neither console nor log says why (killed?)",
        ),
    ] {
        let host = TestHost::with_web(backend);
        let mut followers = ["vm wait web --for busy", "vm events web", "vm events"]
            .map(|line| (line, host.begin(line)));
        host.await_watchers(followers.len());
        let begun = Instant::now();
        if deed == "kill" {
            host.kill("web");
        } else {
            fs::write(host.file("web", "guest-does"), deed).unwrap();
        }
        for (line, follower) in &mut followers {
            let code = follower.wait().unwrap().code();
            let expected = if *line == "vm events" { 4 } else { 3 };
            assert_eq!(code, Some(expected), "{line}: {deed}");
        }
        let took = begun.elapsed();
        assert!(took < AT_ONCE, "{deed}: {took:?}");
        for (line, follower) in followers {
            let said = follower.wait_with_output().unwrap().stderr;
            let said = String::from_utf8(said).unwrap();
            assert!(
                said.contains("the VM has ended by itself: "),
                "{line}: {said}"
            );
            assert!(said.contains(words), "{line}: {said}");
        }
        let listed = host.run("vm ls");
        assert_eq!(listed.code, Some(4), "{listed:?}");
        assert!(listed.stdout.contains(in_short), "{listed:?}");
        let listed: serde_json::Value =
            serde_json::from_str(&host.run("vm ls --json").stdout).unwrap();
        assert_eq!(listed[0]["state"], "ended");
        assert_eq!(listed[0]["ended"]["how"], how);
        for line in [
            "vm status web",
            "vm ping web",
            "vm exec web -- true",
            "vm wait web --for ready",
        ] {
            let run = host.run(line);
            assert_eq!(run.code, Some(3), "{line}: {run:?}");
            assert!(run.stderr.contains(words), "{line}: {run:?}");
        }
        let status = host.run("vm status web --json").stdout;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["error"]["code"], "vm-ended");
        assert_eq!(status["error"]["retryable"], false);
        // It is nobody's fault any more once it was stopped, and can be started again.
        host.ok("vm stop web");
        assert_eq!(host.state(), "stopped");
        let stopped = host.run("vm status web --json").stdout;
        let stopped: serde_json::Value = serde_json::from_str(&stopped).unwrap();
        assert_eq!(stopped["error"]["code"], "not-running");
        fs::remove_file(host.file("web", "guest-does")).ok();
        host.ok("vm start web");
        assert_eq!(host.lifecycle("web"), "running");
    }
}
