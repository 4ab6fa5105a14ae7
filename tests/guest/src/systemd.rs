//! The guest with systemd: a Debian from Debian's packages, with the agent, its unit and its
//! integration as a user installs them (`examples/debian/image`), and the agent's dev build.
//!
//! It is booted once a run by `mvmctl vm start`, and kept by `mvmctl vm snapshot` when its boot is
//! over. Each test restores it, as a clone or not.

use crate::base::Shared;
use crate::eventually;
use crate::image::{executable, helper};
use crate::mvmctl::Mvmctl;
use crate::parts::Parts;
use crate::remote::{self, REMOTE_PORT};
use mvm_client::{Deadlines, Endpoint, Session};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::timeout;

/// What each lifecycle command does: it writes down that it ran. With a `/run/kill-checkpoint-b` the
/// checkpoint of `b` kills the agent, its parent, and stays. A restore command's parent is its witness,
/// and that one's the agent.
const LIFE: &str = r#"#!/bin/sh
if rm "/run/kill-$1-$2" 2>/dev/null; then
    echo "$1 $2 cut short" >>/run/life.log
    agent=$PPID
    [ "$1" = restore ] && agent=$(cut -d ' ' -f 4 /proc/$PPID/stat)
    kill -9 $agent
    exec sleep 98765
fi
env >/run/life.env
echo "$1 $2" >>/run/life.log
"#;

/// Runs what a test sends, whatever the agent is doing: in a slice of its own, so that the others'
/// stands still as a whole while the guest sleeps.
const REMOTE: &str = "[Service]
Slice=remote.slice
ExecStart=/usr/bin/guest-probe serve PORT
Restart=always
RestartSec=1
";

/// Services that a story may start: their names, and what is in their units.
const SERVICES: [(&str, &str); 4] = [
    ("draw", "ExecStart=/usr/bin/guest-probe draw /run/drawn"),
    (
        "watched",
        "Type=notify\nWatchdogSec=30\nExecStart=/usr/bin/guest-probe watched",
    ),
    // Counts into the journal.
    (
        "ticker",
        "SyslogIdentifier=ticker\n\
         ExecStart=/bin/sh -c 'while n=$$((n + 1)); do echo $$n; sleep 0.2; done'",
    ),
    // A filesystem on a disk, and the process that serves it.
    (
        "served",
        "ExecStartPre=/sbin/modprobe brd\nExecStartPre=/sbin/modprobe fuse\n\
         ExecStart=/usr/bin/guest-probe fuse /mnt /dev/ram0",
    ),
];

/// What takes long to start under emulation and is in nobody's way.
const MASKED: [&str; 8] = [
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "e2scrub_reap.service",
    "getty@tty1.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-pstore.service",
];

/// How long something may take that systemd or dpkg has a hand in: emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// What it is called on the host.
const NAME: &str = "debian";

/// A guest with systemd, up and running. It ends with its owner.
#[derive(Debug)]
pub struct SystemdVm {
    mvmctl: Mvmctl,
    /// Where the guest was kept, if it was.
    kept: Option<Shared>,
    /// What `vm start` or `vm restore` printed.
    begun: Value,
}

impl SystemdVm {
    /// The guest that was kept, restored as the only one; `None` where none can be had and none is
    /// required.
    pub fn restored() -> Option<Self> {
        Self::restore(&[])
    }

    /// A clone of it.
    pub fn cloned() -> Option<Self> {
        Self::restore(&["--clone"])
    }

    /// Another guest, which is booted: its agent is installed by its Debian package, and later
    /// revisions of that are in `/debs`.
    pub fn packaged() -> Option<Self> {
        let parts = Parts::find()?;
        let debian = Parts::debian()?;
        let packages = Parts::packages()?;
        let mvmctl = Mvmctl::new();
        let folder = mvmctl.home().join("made");
        let debs = folder.join("add/debs");
        fs::create_dir_all(&debs).expect("make a folder");
        let mut first = None;
        for file in fs::read_dir(packages).expect("list packages") {
            let file = file.expect("a package").path();
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("mvm-guest-agent_") {
                continue;
            }
            if name.contains("-1_") {
                first = Some(file.clone());
            } else {
                fs::copy(&file, debs.join(&*name)).expect("copy a package");
            }
        }
        let first = first.expect("the agent's package");
        let mut arguments = parts.arguments(&first);
        arguments[0] = Path::new("--deb");
        build(&arguments, &debian, &folder, &folder.join("image"));
        let begun = start(&mvmctl, &folder.join("image"));
        Some(Self {
            mvmctl,
            kept: None,
            begun,
        })
    }

    fn restore(more: &[&str]) -> Option<Self> {
        let parts = Parts::find()?;
        let debian = Parts::debian()?;
        let shared = Shared::of_this_run("systemd", |folder| make(&parts, &debian, folder));
        let mvmctl = Mvmctl::new();
        let snapshot = shared.folder.join("snapshot");
        let snapshot = snapshot.to_str().expect("a path");
        let restore = ["vm", "restore", snapshot, "--name", NAME, "--json"];
        let restored = mvmctl.ok(&[&restore[..], more].concat());
        Some(Self {
            mvmctl,
            kept: Some(shared),
            begun: serde_json::from_str(&restored.stdout).expect("JSON"),
        })
    }

    /// What `vm restore` printed.
    pub fn restored_as(&self) -> &Value {
        &self.begun
    }

    fn kept(&self, file: &str) -> PathBuf {
        let shared = self.kept.as_ref().expect("a guest that was kept");
        shared.folder.join(file)
    }

    /// What the guest that was booted has written to its console.
    pub fn console_of_the_boot(&self) -> String {
        let bytes = fs::read(self.kept("console.log")).expect("read a console");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the guest knew of itself before it was kept, as [`Self::identity`] gives it.
    pub fn identity_before(&self) -> [String; 3] {
        let text = fs::read_to_string(self.kept("identity")).expect("read it");
        three(&text)
    }

    /// Its machine-id, boot id (both without dashes) and host name, as all but the agent see them.
    pub async fn identity(&self) -> [String; 3] {
        three(&self.sh(IDENTITY).await)
    }

    /// The program, in whose home this VM is.
    pub fn mvmctl(&self) -> &Mvmctl {
        &self.mvmctl
    }

    /// Its name there.
    pub fn name(&self) -> &'static str {
        NAME
    }

    /// A conversation with its agent, which has to be there.
    pub async fn session(&self) -> Session {
        match self.try_session().await {
            Ok(session) => session,
            Err(error) => panic!("{error}"),
        }
    }

    /// A conversation with its agent.
    pub async fn try_session(&self) -> Result<Session, mvm_client::Error> {
        let endpoint = Endpoint::unix(self.socket());
        Session::connect(&endpoint, &Deadlines::default()).await
    }

    /// Waits for an agent that is another than the one with that process id.
    pub async fn agent_after(&self, before: u32) {
        eventually("another agent answers", async || {
            let mut session = self.try_session().await.ok()?;
            let agent = session.inspect().await.ok()?.agent;
            (agent.pid != before).then_some(())
        })
        .await;
    }

    /// Runs a script in the guest, whatever its agent is doing, and gives what it printed.
    pub async fn sh(&self, script: &str) -> String {
        self.sh_in(NAME, script).await
    }

    /// Runs a script in a guest that was restored from this one.
    pub async fn sh_in(&self, vm: &str, script: &str) -> String {
        let socket = self.mvmctl.file(vm, "v.sock");
        let run = remote::run(&socket, script);
        timeout(PATIENCE, run).await.expect("an end of the script")
    }

    fn socket(&self) -> PathBuf {
        self.mvmctl.file(NAME, "v.sock")
    }
}

const IDENTITY: &str = "cat /etc/machine-id; tr -d - </proc/sys/kernel/random/boot_id; hostname";

fn three(text: &str) -> [String; 3] {
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.try_into().expect("three lines")
}

/// Boots the guest and keeps it.
fn make(parts: &Parts, debian: &Path, folder: &Path) {
    let image = folder.join("image");
    build(&parts.arguments(&parts.dev_agent), debian, folder, &image);
    let mvmctl = Mvmctl::new();
    start(&mvmctl, &image);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let socket = mvmctl.file(NAME, "v.sock");
    let identity = runtime.block_on(async {
        // Degraded would be by a unit that failed.
        let over = remote::run(&socket, "systemctl is-system-running --wait");
        timeout(PATIENCE, over).await.expect("an end of its boot");
        let mark = "echo before the snapshot | systemd-cat -t story; journalctl --sync";
        remote::run(&socket, mark).await;
        remote::run(&socket, IDENTITY).await
    });
    fs::write(folder.join("identity"), identity).expect("write it down");
    fs::copy(mvmctl.file(NAME, "console.log"), folder.join("console.log"))
        .expect("copy its console");
    let snapshot = folder.join("snapshot");
    let snapshot = snapshot.to_str().expect("a path");
    mvmctl.ok(&["vm", "snapshot", NAME, "--stop", "--to", snapshot]);
}

/// Boots an image, and gives what `vm start` printed.
fn start(mvmctl: &Mvmctl, image: &Path) -> Value {
    let image = image.to_str().expect("a path");
    let start = ["vm", "start", NAME, "--image", image, "--backend", "qemu"];
    let more = ["--memory", "256", "--timeout", "3m", "--json"];
    let started = mvmctl.ok(&[&start[..], &more].concat());
    serde_json::from_str(&started.stdout).expect("JSON")
}

fn build(arguments: &[&Path], debian: &Path, folder: &Path, image: &Path) {
    let add = folder.join("add");
    let put = |path: &str, text: &str| {
        let path = add.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(&path, text).expect("write a file");
        path
    };
    put("etc/hostname", "story\n");
    executable(put("usr/bin/life", LIFE));
    for name in ["a", "b", "c"] {
        let integration = json!({
            "name": name,
            "health_cmd": "true",
            "checkpoint_cmd": format!("exec life checkpoint {name}"),
            "restore_cmd": format!("exec life restore {name}"),
        });
        let path = format!("etc/mvm/integrations.d/{name}.json");
        put(&path, &integration.to_string());
    }
    // By the second, systemd is told something in the agent's name, if it takes that.
    for (name, command) in [("env", "env"), ("notify", "systemd-notify READY=1; true")] {
        let probe = json!({"name": name, "command": command, "interval_secs": 86_400});
        put(&format!("etc/mvm/probes.d/{name}.json"), &probe.to_string());
    }
    let system = "etc/systemd/system";
    let remote = REMOTE.replace("PORT", &REMOTE_PORT.to_string());
    put(&format!("{system}/remote.service"), &remote);
    for (name, unit) in SERVICES {
        let path = format!("{system}/{name}.service");
        put(&path, &format!("[Service]\n{unit}\n"));
    }
    // The scripts of the stories run while the guest sleeps as well.
    put(
        "etc/mvm/agent.json",
        r#"{"freeze_exempt": ["/remote.slice"]}"#,
    );
    let wanted = add.join(system).join("multi-user.target.wants");
    fs::create_dir(&wanted).expect("make a folder");
    symlink("../remote.service", wanted.join("remote.service")).expect("make a link");
    for unit in MASKED {
        symlink("/dev/null", add.join(system).join(unit)).expect("make a link");
    }
    let probe = helper(folder);
    fs::copy(&probe, add.join("usr/bin/guest-probe")).expect("copy a program");

    let script = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/debian/image"
    ));
    let output = Command::new(script)
        .arg("--root")
        .arg(debian)
        .arg("--out")
        .arg(image)
        .args(arguments)
        .arg("--add")
        .arg(&add)
        .output()
        .expect("run a script");
    assert!(
        output.status.success(),
        "{}: {}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
