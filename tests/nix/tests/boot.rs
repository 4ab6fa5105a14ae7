//! Guests of mkGuest, booted: each format once.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, eventually};
use mvm_nix_tests::Nix;
use serde_json::Value;
use std::sync::Arc;

/// What the story's guest carries from Nix through files, shells and JSON into its processes.
const TEXT: &str =
    "it's \"quoted\" $HOME ${HOME} `id` \\ \\n 100% ünï 🦀 'x'\n second line; # no comment";

struct Guest {
    mvmctl: Arc<Mvmctl>,
    name: &'static str,
}

impl Guest {
    /// Boots the story's guest in that format.
    async fn boot(nix: &Nix, format: &'static str) -> Self {
        let all = r#"[ "initrd" "erofs" "ext4" ]"#;
        // Of the build that others look at where it can be.
        let formats = match format {
            "initrd" => all.to_owned(),
            other => format!(r#"[ "{other}" ]"#),
        };
        // One of them with the agent's dev build.
        let dev = format == "erofs";
        let image = nix.build(&format!(
            "mkGuestOf {{ inherit agentDev; }} (story // {{ formats = {formats}; dev = {dev}; }})"
        ));
        let mvmctl = Arc::new(Mvmctl::new());
        let image = image.to_str().unwrap();
        let start = ["vm", "start", format, "--image", image, "--backend", "qemu"];
        mvmctl.ok(&start);
        let guest = Self {
            mvmctl,
            name: format,
        };
        guest.wait_until_healthy();
        // What is run on demand does nothing the first time, which is the agent's own.
        eventually("each probe has been run once", async || {
            let inspect = guest.inspect()?;
            let probes = inspect["probes"].as_array()?;
            let ran = probes.iter().all(|probe| !probe["last_check"].is_null());
            (ran && !probes.is_empty()).then_some(())
        })
        .await;
        guest
    }

    fn wait_until_healthy(&self) {
        let wait = [
            "vm",
            "wait",
            self.name,
            "--for",
            "healthy",
            "--timeout",
            "60s",
        ];
        self.mvmctl.ok(&wait);
    }

    /// What a probe prints now, if it is reached and runs well.
    fn try_probe(&self, probe: &str) -> Option<String> {
        let run = self
            .mvmctl
            .run(&["vm", "check", self.name, probe, "--json"]);
        let answer: Value = serde_json::from_str(&run.stdout).ok()?;
        let probe = &answer["probe"];
        (probe["ok"] == true).then(|| probe["value"].as_str().unwrap_or_default().to_owned())
    }

    fn probe(&self, probe: &str) -> String {
        self.try_probe(probe)
            .unwrap_or_else(|| panic!("{probe} fails"))
    }

    fn inspect(&self) -> Option<Value> {
        let run = self.mvmctl.run(&["vm", "inspect", self.name, "--json"]);
        serde_json::from_str(&run.stdout).ok()
    }

    fn console(&self) -> String {
        self.mvmctl.ok(&["vm", "logs", self.name]).stdout
    }

    /// The parts of the story that every format has to tell.
    async fn tells_the_story(&self) {
        let inspect = self.inspect().unwrap();
        assert_eq!(inspect["system"]["hostname"], "story.example");
        assert_eq!(inspect["agent"]["drop_in_errors"], serde_json::json!([]));

        // The service is up as its user, in a folder of its own.
        let web = self.probe("web-user");
        assert!(web.starts_with("web "), "{web}");
        assert_eq!(self.probe("page"), "It works, says root");
        assert_eq!(
            self.probe("folders"),
            "web web 700\nother other 700\nroot root 1777"
        );
        assert_eq!(self.probe("as-user"), "other");
        assert_eq!(self.probe("by-number"), "other");
        assert_eq!(
            self.probe("links"),
            "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2"
        );
        assert_eq!(self.probe("greet"), "Good day\nnot busybox");

        for text in ["text-of-env", "text-of-pre-start"] {
            assert_eq!(self.probe(text), TEXT, "{text}");
        }
        assert_eq!(
            self.probe("text-of-command"),
            r#""it's" `id` $HOME \ ünï 🦀"#
        );
        assert_eq!(
            self.probe("text-of-probe"),
            r#"it's "quoted" $HOME `id` \ ünï 🦀"#
        );

        // A line of output is there as soon as it is whole, though none follows.
        // And so is what a user writes to the names of its streams.
        let console = self.console();
        for said in ["slow: I am up", "web: to stdout", "web: to stderr"] {
            assert!(console.lines().any(|line| line == said), "{console}");
        }

        // A service that is killed is up again, and so is the agent.
        let before = self.probe("web-pid");
        self.probe("kill-web");
        eventually("the service is up again", async || {
            self.try_probe("web-pid").filter(|pid| *pid != before)
        })
        .await;
        let agent = inspect["agent"]["pid"].clone();
        assert!(agent.is_number(), "{inspect}");
        assert_eq!(self.try_probe("kill-agent"), None, "it answered");
        eventually("the agent is up again", async || {
            self.inspect().filter(|now| now["agent"]["pid"] != agent)
        })
        .await;
        self.wait_until_healthy();

        assert_eq!(self.probe("root-is-writable"), "fine");
    }

    /// Powers off, and sees that services were given their time.
    fn powers_off(&self) {
        let stopped = self.mvmctl.ok(&["vm", "stop", self.name]);
        assert!(stopped.stderr.contains("has stopped"), "{stopped:?}");
        let console = self.console();
        for said in [
            "mvm-init: stopping services",
            // Two seconds after it was asked; and what it has started in another session.
            "slow: all is written",
            "slow: so is mine",
            "mvm-init: powering off",
            "reboot: Power down",
        ] {
            assert!(console.contains(said), "{said:?} is not in\n{console}");
        }
        assert!(!console.contains("still there, and killed"), "{console}");
        assert!(!console.contains("cannot load module"), "{console}");
    }
}

#[tokio::test]
async fn an_initrd() {
    let Some(nix) = Nix::find() else { return };
    let guest = Guest::boot(&nix, "initrd").await;
    guest.tells_the_story().await;
    assert_eq!(guest.probe("root"), "rootfs");
    // A service that cannot live is tried again, at ever longer intervals.
    let console = eventually("the fourth try is announced", async || {
        Some(guest.console()).filter(|console| console.contains("started again in 5 s"))
    })
    .await;
    let lines = console.lines().filter(|line| line.contains("dies"));
    let lines: Vec<_> = lines.map(str::to_owned).collect();
    let expected: Vec<_> = [2, 3, 5]
        .iter()
        .flat_map(|secs| {
            [
                "dies: I cannot live".to_owned(),
                format!("mvm-init: dies has ended, and is started again in {secs} s"),
            ]
        })
        .collect();
    assert_eq!(lines.get(..expected.len()), Some(&*expected), "{console}");
    // What a service has left is gone when it is started again.
    let found = eventually("the service that leaves some runs again", async || {
        let console = guest.console();
        let found = console.lines().filter(|line| line.starts_with("leaves:"));
        let found: Vec<_> = found.map(str::to_owned).collect();
        (found.len() >= 3).then_some(found)
    })
    .await;
    assert!(
        found.iter().all(|line| line == "leaves: I find 0"),
        "{found:?}"
    );
    guest.powers_off();
}

#[tokio::test]
async fn a_root_file_system_of_erofs() {
    let Some(nix) = Nix::find() else { return };
    let guest = Guest::boot(&nix, "erofs").await;
    let id = ["vm", "exec", "erofs", "--user", "web", "--", "id", "-un"];
    assert_eq!(guest.mvmctl.ok(&id).stdout, "web\n");
    guest.tells_the_story().await;
    assert_eq!(guest.probe("root"), "overlay");
    guest.powers_off();
}

#[tokio::test]
async fn a_root_file_system_of_ext4() {
    let Some(nix) = Nix::find() else { return };
    let guest = Guest::boot(&nix, "ext4").await;
    guest.tells_the_story().await;
    assert_eq!(guest.probe("root"), "overlay");

    // Two that run from one file, one with the memory of the other.
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    let snapshot = snapshot.to_str().unwrap();
    guest
        .mvmctl
        .ok(&["vm", "snapshot", "ext4", "--to", snapshot]);
    let restore = ["vm", "restore", snapshot, "--name", "copy", "--clone"];
    guest.mvmctl.ok(&restore);
    let copy = Guest {
        mvmctl: Arc::clone(&guest.mvmctl),
        name: "copy",
    };
    for guest in [&guest, &copy] {
        guest.wait_until_healthy();
        assert_eq!(guest.probe("root"), "overlay");
        // Of the memory, and of the file, which is read again when caches have been dropped.
        assert_eq!(guest.probe("page"), "It works, says root");
        assert_eq!(guest.probe("greet"), "Good day\nnot busybox");
    }
    for guest in [guest, copy] {
        guest.powers_off();
    }
}

/// What stands in the way of a boot is shown to who starts the VM.
#[test]
fn a_root_file_system_of_another_type_is_told() {
    let Some(nix) = Nix::find() else { return };
    let image = nix.build("mkGuest story");
    let folder = tempfile::tempdir().unwrap();
    for file in ["vmlinuz", "initrd-erofs", "rootfs.ext4"] {
        std::os::unix::fs::symlink(image.join(file), folder.path().join(file)).unwrap();
    }
    let manifest = r#"{"version": 1, "kernel": "vmlinuz", "initrd": "initrd-erofs",
        "rootfs": {"file": "rootfs.ext4", "type": "ext4"}, "cmdline": "init_on_free=1",
        "agent": {"version": "0.1.0", "profile": "prod", "port": 52}}"#;
    std::fs::write(folder.path().join("manifest.json"), manifest).unwrap();
    let mvmctl = Mvmctl::new();
    let image = folder.path().to_str().unwrap();
    let failed = mvmctl.run(&["vm", "start", "bad", "--image", image, "--backend", "qemu"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    let said = "mvm-init: cannot mount /dev/vda as erofs";
    assert!(failed.stderr.contains(said), "{failed:?}");
}
