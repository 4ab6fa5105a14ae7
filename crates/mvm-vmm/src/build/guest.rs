//! What makes a guest of the files: init's table, its scripts, and a few files of `/etc`.
//!
//! PID 1 is busybox's init. It starts the agent and the services and starts them again when they
//! end, it reaps whatever loses its parent, and powers off on Ctrl-Alt-Delete, which is how a VMM
//! asks for it.
//!
//! mkGuest (`nix/image.nix`) writes the same layout, from the same scripts; a test compares the two.

use super::modules::Module;
use super::tree::{Node, Tree};
use super::{BuildError, Service};

/// Where the agent is in the guest.
pub(super) const AGENT: &str = "/usr/bin/mvm-guest-agent";

/// Those in its `/etc/passwd`.
pub(super) const USERS: [&str; 2] = ["root", "nobody"];

/// Where init's scripts are.
const INIT: &str = "/etc/mvm-init";

/// What init runs, each saying in its head when and why; and what those read in, without `#!`.
const SCRIPTS: [(&str, &str); 6] = [
    ("agent", include_str!("../../../../packaging/guest/agent")),
    (
        "load-modules",
        include_str!("../../../../packaging/guest/load-modules"),
    ),
    (
        "processes",
        include_str!("../../../../packaging/guest/processes"),
    ),
    (
        "service",
        include_str!("../../../../packaging/guest/service"),
    ),
    (
        "shutdown",
        include_str!("../../../../packaging/guest/shutdown"),
    ),
    (
        "sysinit",
        include_str!("../../../../packaging/guest/sysinit"),
    ),
];

/// What `--with-network-payload` adds: the script, and the integration that runs it.
const NETWORK_PAYLOAD: [(&str, u32, &str); 2] = [
    (
        "/etc/mvm-init/network-payload",
        0o755,
        include_str!("../../../../packaging/guest/network-payload"),
    ),
    (
        "/etc/mvm/integrations.d/network.json",
        0o644,
        include_str!("../../../../packaging/guest/network.json"),
    ),
];

/// The busybox applets that init and its scripts call; and `env`, which the first line of many a
/// script calls.
pub(super) const APPLETS: &[&str] = &[
    "awk", "cat", "chmod", "chown", "env", "find", "hostname", "init", "insmod", "ip", "killall",
    "ln", "mkdir", "mkfifo", "mount", "poweroff", "rm", "setsid", "sh", "sleep", "su", "sync",
    "usleep",
];

/// Adds everything that is the same in all guests but for its parameters.
pub(super) fn add(
    tree: &mut Tree,
    hostname: &str,
    modules: &[Module],
    services: &[Service],
) -> Result<(), BuildError> {
    for (path, mode) in [
        ("/dev", 0o755),
        ("/mnt", 0o755),
        ("/proc", 0o555),
        ("/root", 0o700),
        ("/run", 0o755),
        ("/sys", 0o555),
        ("/tmp", 0o1777),
        ("/var/tmp", 0o1777),
        ("/etc/mvm/integrations.d", 0o755),
        ("/etc/mvm/probes.d", 0o755),
    ] {
        tree.add(path, Node::Folder { mode })?;
    }
    // Init's first output goes here, before /dev is mounted.
    for (path, mode, major, minor) in [("/dev/console", 0o600, 5, 1), ("/dev/null", 0o666, 1, 3)] {
        tree.add(path, Node::Device { mode, major, minor })?;
    }
    for (path, to) in [("/init", "/bin/busybox"), ("/var/run", "/run")] {
        tree.add(path, Node::Link { to: to.into() })?;
    }
    // Busybox has put it there, unless it was told to know no /usr.
    if !tree.has("/usr/bin/env") {
        let to = "/bin/busybox".to_owned();
        tree.add("/usr/bin/env", Node::Link { to })?;
    }
    tree.add_file("/etc/hostname", 0o644, format!("{hostname}\n"))?;
    tree.add_file(
        "/etc/hosts",
        0o644,
        format!("127.0.0.1 localhost {hostname}\n"),
    )?;
    tree.add_file(
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    tree.add_file(
        "/etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    )?;
    tree.add_file("/etc/inittab", 0o644, inittab(services))?;
    for (name, script) in SCRIPTS {
        let mode = if script.starts_with("#!") {
            0o755
        } else {
            0o644
        };
        tree.add_file(&format!("{INIT}/{name}"), mode, script)?;
    }
    for Module { name, content, .. } in modules {
        let path = format!("/lib/modules/{name}.ko");
        tree.add_file(&path, 0o644, content.as_slice())?;
    }
    let list: Vec<_> = modules.iter().map(Module::line).collect();
    tree.add_file(&format!("{INIT}/modules"), 0o644, list.concat())?;
    tree.add_file(&format!("{INIT}/folders"), 0o644, "")?;
    for Service { name, command } in services {
        let folder = format!("{INIT}/services/{name}");
        tree.add_file(&format!("{folder}/run"), 0o644, format!("{command}\n"))?;
        tree.add_file(&format!("{folder}/user"), 0o644, "root\n")?;
    }
    Ok(())
}

/// Has a restored guest take its network from its payload.
pub(super) fn add_network_payload(tree: &mut Tree) -> Result<(), BuildError> {
    for (path, mode, content) in NETWORK_PAYLOAD {
        tree.add_file(path, mode, content)?;
    }
    Ok(())
}

fn inittab(services: &[Service]) -> String {
    let services: Vec<_> = services
        .iter()
        .map(|service| format!("::respawn:{INIT}/service {}\n", service.name))
        .collect();
    format!(
        "# What init runs: see its scripts.\n\
         ::sysinit:{INIT}/sysinit\n\
         ::respawn:{INIT}/agent\n\
         {}\
         ::ctrlaltdel:/bin/busybox poweroff\n\
         ::shutdown:{INIT}/shutdown\n",
        services.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script that calls an applet which is not asked for would fail in the guest alone.
    #[test]
    fn the_applets_that_scripts_call_are_asked_for() {
        for (name, script) in SCRIPTS {
            let code = script.lines().filter(|line| !line.starts_with('#'));
            for line in code {
                for called in line.split("$bb ").skip(1) {
                    let applet = called.split([' ', ')', '"']).next().unwrap_or_default();
                    assert!(APPLETS.contains(&applet), "{name} calls {applet}");
                }
            }
        }
    }

    #[test]
    fn the_table_starts_the_agent_and_each_service() {
        let service = Service {
            name: "web".into(),
            command: "httpd -f".into(),
        };
        assert_eq!(
            inittab(&[service]),
            "# What init runs: see its scripts.\n\
             ::sysinit:/etc/mvm-init/sysinit\n\
             ::respawn:/etc/mvm-init/agent\n\
             ::respawn:/etc/mvm-init/service web\n\
             ::ctrlaltdel:/bin/busybox poweroff\n\
             ::shutdown:/etc/mvm-init/shutdown\n"
        );
    }
}
