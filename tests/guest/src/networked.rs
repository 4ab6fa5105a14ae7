//! The guest with a network card, which takes its network from its payload when it is restored.

use crate::image::{Guest, REMOTE_CGROUP, build_guest, executable, remote};
use crate::parts::Parts;
use mvm_vmm::build::{Built, Service};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Gives the guest its first address, and then says on the console which generation and address there
/// are, whenever one of them is another: the generation is read first.
const SAY: &str = r#"
    ip link set eth0 up
    ip address add 10.99.0.100/24 dev eth0
    while :; do
        generation=$(cat /run/mvm/generation 2>/dev/null || echo 0)
        now="$generation $(ip -o -4 address show dev eth0 | awk '{ print $4 }')"
        [ "$now" = "$said" ] || echo "has $now"
        said=$now
        usleep 10000
    done"#;

/// Builds its image in a folder, which has to be there.
pub fn build_networked(parts: &Parts, folder: &Path) -> Built {
    let service = |name: &str, command: &str| Service {
        name: name.into(),
        command: command.into(),
    };
    let guest = Guest {
        agent: json!({"freeze_exempt": [REMOTE_CGROUP]}),
        integrations: Vec::new(),
        probes: Vec::new(),
        services: vec![
            service("say", SAY),
            service("web", "exec httpd -f -p 8080 -h /www"),
            remote(),
        ],
        modules: Vec::new(),
        dev: false,
        network_payload: true,
        files: vec![("It works\n", "/www/index.html")],
    };
    build_guest(parts, folder, guest)
}

/// A program that is run as QEMU, and adds a network card with that back end (a `-netdev` without its
/// id) to each VM; it is written to a folder.
pub fn qemu_with_card(folder: &Path, name: &str, back_end: &str) -> PathBuf {
    let script = folder.join(name);
    let text = format!(
        "#!/bin/sh\n\
         case \" $*\" in\n\
         *' -qmp unix:qmp,'*) set -- \"$@\" -netdev '{back_end},id=net' \
         -device virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile= ;;\n\
         esac\n\
         exec qemu-system-x86_64 \"$@\"\n"
    );
    fs::write(&script, text).expect("write a script");
    executable(script)
}
