//! What makes a guest of the files: init's table, its scripts, and a few files of `/etc`.
//!
//! PID 1 is busybox's init. It starts the agent and the services and starts them again when they
//! end, it reaps whatever loses its parent, and powers off on Ctrl-Alt-Delete, which is how a VMM
//! asks for it.

use super::tree::{Node, Tree};
use super::{BuildError, Service};

/// Where the agent is in the guest.
pub(super) const AGENT: &str = "/usr/bin/mvm-guest-agent";

/// Where init's scripts are.
const INIT: &str = "/etc/mvm-init";

/// The busybox applets that init and its scripts call.
pub(super) const APPLETS: &[&str] = &[
    "hostname", "init", "insmod", "ip", "mkdir", "mkfifo", "mount", "poweroff", "rm", "sed", "sh",
    "sync",
];

/// Adds everything that is the same in all guests but for its parameters.
pub(super) fn add(
    tree: &mut Tree,
    hostname: &str,
    modules: &[String],
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
    tree.add_file(&format!("{INIT}/sysinit"), 0o755, SYSINIT)?;
    tree.add_file(&format!("{INIT}/shutdown"), 0o755, SHUTDOWN)?;
    let list: Vec<_> = modules.iter().map(|name| format!("{name}\n")).collect();
    tree.add_file(&format!("{INIT}/modules"), 0o644, list.concat())?;
    for service in services {
        let path = format!("{INIT}/services/{}", service.name);
        tree.add_file(&path, 0o755, service_script(service))?;
    }
    Ok(())
}

fn inittab(services: &[Service]) -> String {
    let services: Vec<_> = services
        .iter()
        .map(|service| format!("::respawn:{INIT}/services/{}\n", service.name))
        .collect();
    format!(
        "# Written by `mvmctl image build`.\n\
         ::sysinit:{INIT}/sysinit\n\
         ::respawn:{AGENT}\n\
         {}\
         ::ctrlaltdel:/sbin/poweroff\n\
         ::shutdown:{INIT}/shutdown\n",
        services.concat()
    )
}

/// Runs before all else. `/dev` has to be there before anything is redirected to `/dev/null`.
const SYSINIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t devtmpfs -o nosuid devtmpfs /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o nosuid,noexec,gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /run
mount -t tmpfs -o nosuid,nodev tmpfs /tmp
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "mvm-init: cannot load module $module"
done </etc/mvm-init/modules
ip link set lo up
hostname -F /etc/hostname
mkdir -p /run/mvm-init
"#;

/// Runs when init is about to power off, and ends all processes afterwards.
const SHUTDOWN: &str = "#!/bin/sh
echo 'mvm-init: powering off'
sync
";

/// Init's child becomes the service itself, so that init sees it end. Its output goes through a
/// named pipe to a `sed` that puts the name before each line; that one is forked twice, so that it
/// is no child of the service, which may not expect any.
fn service_script(service: &Service) -> String {
    let name = &service.name;
    let command = quote(&service.command);
    format!(
        r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
out=/run/mvm-init/{name}
rm -f "$out"
mkfifo -m 600 "$out"
( sed 's/^/{name}: /' <"$out" & )
exec /bin/sh -c {command} </dev/null >"$out" 2>&1
"#
    )
}

/// One word for a shell, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_command_survives_quoting() {
        for text in ["a b", "it's", "$HOME `id` \"x\" \\", "ü\n#", "''"] {
            let output = Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", quote(text)))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
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
            "# Written by `mvmctl image build`.\n\
             ::sysinit:/etc/mvm-init/sysinit\n\
             ::respawn:/usr/bin/mvm-guest-agent\n\
             ::respawn:/etc/mvm-init/services/web\n\
             ::ctrlaltdel:/sbin/poweroff\n\
             ::shutdown:/etc/mvm-init/shutdown\n"
        );
    }
}
