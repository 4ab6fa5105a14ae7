//! Two clones on one network, each with the addresses of its payload before its services go on.

use crate::story::Story;
use mvm_guest_tests::{Mvmctl, build_networked, eventually, qemu_with_card};
use serde_json::{Value, json};
use std::fs;

fn network(number: u32) -> Value {
    json!({"network": {
        "mac": format!("52:54:00:12:34:{number:02}"),
        "mtu": 1400,
        "addresses": [format!("10.99.0.{number}/24"), format!("fd00:99::{number}/64")],
        "gateways": ["10.99.0.254", "fd00:99::254"],
        "nameservers": ["10.99.0.253", "fd00:99::253"],
        "search": ["example.org", "example.net"],
    }})
}

/// What the service has said, and what the network is like; `eth0` throughout.
const LOOK: &str = "ip -o address show dev eth0 | awk '{ print $4 }'; \
    ip route show | grep ^default; ip -6 route show | grep ^default; \
    cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu /etc/resolv.conf";

#[tokio::test]
async fn clones_have_their_own_addresses_before_their_services_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut mvmctl = Mvmctl::new();
    // Cards on a wire, whose ends are there before the guest runs. QEMU 7.2 makes the server of a `stream`
    // beside, and crashes if the guest sends something before that listens.
    let end = |number: u32| {
        let path = folder.path().join(format!("wire-{number}"));
        path.display().to_string()
    };
    let qemu = |number: u32| {
        let (own, other) = (end(number), end(3 - number));
        let wire =
            format!("dgram,local.type=unix,local.path={own},remote.type=unix,remote.path={other}");
        qemu_with_card(folder.path(), &format!("qemu-{number}"), &wire)
    };
    mvmctl.use_qemu(qemu(1));
    let Some(mut story) = Story::run_by(mvmctl, build_networked).await else {
        return;
    };
    let snapshot = story.place("snapshot");
    eventually("it has its first address", async || {
        let console = story.mvmctl.ok(&["vm", "logs", "golden"]).stdout;
        console.contains("say: has 0 10.99.0.100/24").then_some(())
    })
    .await;
    story
        .mvmctl
        .ok(&["vm", "snapshot", "golden", "--stop", "--to", &snapshot]);

    // A clone without a network of its own does not come up, and says why.
    let restore = ["vm", "restore", &snapshot, "--clone", "--name"];
    let held = story.mvmctl.run(&[&restore[..], &["held"]].concat());
    assert_eq!(held.code, Some(1), "{held:?}");
    assert!(
        held.stderr.contains("the payload has no \"network\""),
        "{held:?}"
    );
    story.mvmctl.ok(&["vm", "rm", "--force", "held"]);

    let payload = story.place("payload");
    for number in [1, 2] {
        story.mvmctl.use_qemu(qemu(number));
        fs::write(&payload, network(number).to_string()).unwrap();
        let vm = format!("clone-{number}");
        story
            .mvmctl
            .ok(&[&restore[..], &[&*vm, "--payload", &payload]].concat());
        let said = eventually("it says its address", async || {
            let console = story.mvmctl.ok(&["vm", "logs", &vm]).stdout;
            let said: Vec<_> = console
                .lines()
                .filter(|line| line.contains("say: has 1"))
                .map(str::to_owned)
                .collect();
            (!said.is_empty()).then_some(said)
        })
        .await;
        assert_eq!(said, [format!("say: has 1 10.99.0.{number}/24")]);
        let seen = story.sh(&vm, LOOK).await;
        let seen: Vec<&str> = seen
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("fe80:"))
            .collect();
        assert_eq!(
            seen,
            [
                &*format!("10.99.0.{number}/24"),
                &format!("fd00:99::{number}/64"),
                "default via 10.99.0.254 dev eth0",
                "default via fd00:99::254 dev eth0  metric 1024",
                &format!("52:54:00:12:34:{number:02}"),
                "1400",
                "nameserver 10.99.0.253",
                "nameserver fd00:99::253",
                "search example.org example.net",
            ]
        );
    }
    for (vm, other) in [("clone-1", "10.99.0.2"), ("clone-2", "[fd00:99::1]")] {
        let page = story
            .sh(vm, &format!("wget -q -O - http://{other}:8080/"))
            .await;
        assert_eq!(page, "It works\n", "{vm} asks {other}");
    }
}
