//! The guest of the stories.
//!
//! What a story looks at are probes that are run on demand, as a host would. The agent runs each by
//! itself as well, when it starts and when the guest wakes: so what a story does to the guest goes by
//! the service `remote`, which runs scripts that it is sent.

use crate::parts::Parts;
use crate::remote::REMOTE_PORT;
use mvm_vmm::build::{Build, Built, Service, build};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its agent dials this port of the host when it listens.
pub(crate) const NOTIFY_PORT: u32 = 1052;

/// Stays down as long as there is a `/run/web-down`.
const WEB: &str = "while [ -e /run/web-down ]; do sleep 0.1; done; \
     exec httpd -f -p 127.0.0.1:8080 -h /www";

/// Where the service is that runs scripts: also while the guest sleeps.
pub(crate) const REMOTE_CGROUP: &str = "/services/remote";

/// A day: these run at the agent's start, after a wake and on demand.
const NEVER: u32 = 86_400;

fn agent() -> Value {
    json!({
        "notify_port": NOTIFY_PORT,
        "sample_interval_secs": 1,
        "freeze_exempt": [REMOTE_CGROUP],
    })
}

fn integrations() -> Vec<Value> {
    vec![
        json!({
            "name": "web",
            // Without wget's own -T: in Debian's static busybox it ends in SIGSEGV.
            "health_cmd": "wget -q -O /dev/null http://127.0.0.1:8080/",
            "health_interval_secs": 0.5,
            "health_timeout_secs": 5,
        }),
        json!({
            "name": "hung",
            "health_cmd": "echo begun; setsid sleep 12345 & sleep 12346",
            "health_interval_secs": NEVER,
            "health_timeout_secs": 4,
        }),
    ]
}

fn probes() -> Vec<Value> {
    let probe = |name: &str, command: &str| json!({"name": name, "command": command, "interval_secs": NEVER});
    vec![
        probe("disk", "df -P /tmp | awk 'NR == 2 {print $5}'"),
        // Its connections and listeners; what a check that runs by chance has open is no socket. Not
        // by the agent's name: what it has forked has that too, until it is another program.
        probe("agent-sockets", "ls -l /proc/$PPID/fd | grep -c socket:"),
        probe("sleepers", "ps -o args | grep -c '^sleep 1234' || true"),
        probe("dial-loopback", "guest-probe dial 1 52"),
        probe("dial-host", "guest-probe dial 2 52"),
        // In place of the agent, as it were.
        probe("listen", "guest-probe serve 5252 2>&1 || true"),
    ]
}

/// What sets a guest apart from others.
#[derive(Debug)]
pub(crate) struct Guest {
    /// `agent.json`
    pub(crate) agent: Value,
    pub(crate) integrations: Vec<Value>,
    pub(crate) probes: Vec<Value>,
    pub(crate) services: Vec<Service>,
    /// Kernel modules beyond those of each guest.
    pub(crate) modules: Vec<String>,
    /// Whether its agent is a dev build.
    pub(crate) dev: bool,
    /// Whether it takes its network from its payload.
    pub(crate) network_payload: bool,
    /// Text files, and their paths in the guest.
    pub(crate) files: Vec<(&'static str, &'static str)>,
}

/// The service that runs scripts: [`crate::remote`].
pub(crate) fn remote() -> Service {
    Service {
        name: "remote".into(),
        command: format!("exec guest-probe serve {REMOTE_PORT}"),
    }
}

/// Builds the image of the stories' guest in a folder, which has to be there.
pub fn build_image(parts: &Parts, folder: &Path) -> Built {
    build_guest(parts, folder, story(false))
}

/// The same with the agent's dev build.
pub fn build_dev_image(parts: &Parts, folder: &Path) -> Built {
    build_guest(parts, folder, story(true))
}

fn story(dev: bool) -> Guest {
    Guest {
        agent: agent(),
        integrations: integrations(),
        probes: probes(),
        services: vec![
            Service {
                name: "web".into(),
                command: WEB.into(),
            },
            remote(),
        ],
        modules: ["vsock_loopback", "fuse"].map(str::to_owned).into(),
        dev,
        network_payload: false,
        files: vec![("It works\n", "/www/index.html")],
    }
}

/// Builds a guest's image in a folder, which has to be there.
pub(crate) fn build_guest(parts: &Parts, folder: &Path, guest: Guest) -> Built {
    let etc = folder.join("etc");
    write(&etc.join("agent.json"), &guest.agent);
    for (kind, drop_ins) in [
        ("integrations.d", guest.integrations),
        ("probes.d", guest.probes),
    ] {
        for drop_in in drop_ins {
            let name = drop_in["name"].as_str().unwrap_or_default();
            write(&etc.join(kind).join(format!("{name}.json")), &drop_in);
        }
    }
    let mut add = vec![(helper(folder), "/usr/bin/guest-probe".to_owned())];
    for (number, (text, dest)) in guest.files.into_iter().enumerate() {
        let file = folder.join(format!("file-{number}"));
        fs::write(&file, text).expect("write a file");
        add.push((file, dest.to_owned()));
    }
    build(&Build {
        out: folder.join("image"),
        agent: Some(if guest.dev {
            parts.dev_agent.clone()
        } else {
            parts.agent.clone()
        }),
        dev: guest.dev,
        kernel: Some(parts.kernel.clone()),
        modules: Some(parts.modules.clone()),
        more_modules: guest.modules,
        busybox: Some(parts.busybox.clone()),
        etc: Some(etc),
        services: guest.services,
        add,
        network_payload: guest.network_payload,
        hostname: "story".into(),
    })
    .unwrap_or_else(|error| panic!("cannot build the image: {error}"))
}

/// The program of `src/bin/guest-probe.rs`, without need of libraries.
pub(crate) fn helper(folder: &Path) -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/guest-probe.rs");
    let program = folder.join("guest-probe");
    let status = Command::new("rustc")
        .args(["--edition", "2024", "-C", "target-feature=+crt-static"])
        .args(["-C", "opt-level=s", "-C", "strip=symbols", source, "-o"])
        .arg(&program)
        .status()
        .expect("run rustc");
    assert!(status.success(), "rustc cannot build {source}");
    program
}

pub(crate) fn executable(path: PathBuf) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set a script's mode");
    path
}

fn write(path: &Path, value: &Value) {
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder).expect("make a folder");
    fs::write(path, value.to_string()).expect("write a drop-in");
}
