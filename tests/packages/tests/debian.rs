//! The packages as their users have them: installed, used, upgraded, removed, purged.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mvm_package_tests::{Packages, told};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// What is there once and not before.
fn more(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    after.difference(before).cloned().collect()
}

#[test]
fn the_agent_comes_and_goes() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let debian = packages.debian();
    let before = debian.listing();
    let machine = debian.sh("sha256sum /etc/machine-id /etc/hostname 2>/dev/null || true");
    debian.install(&packages.deb("mvm-guest-agent", 1));
    let said = debian.sh("mvm-guest-agent --version; mvm-guest-agent --check-config /etc/mvm");
    assert!(said.starts_with("mvm-guest-agent "), "{said}");
    assert!(said.contains("(prod)"), "{said}");
    let unit = "/usr/lib/systemd/system/mvm-guest-agent.service";
    let enabled = "systemctl is-enabled mvm-guest-agent";
    assert_eq!(debian.sh(enabled), "enabled\n");
    debian.sh(&format!(
        "grep -qx Slice=mvm.slice {unit}; dpkg --verify mvm-guest-agent"
    ));
    for folder in ["/etc/mvm/integrations.d", "/etc/mvm/probes.d"] {
        let owner = debian.sh(&format!("dpkg -S {folder}; stat -c '%a %u:%g' {folder}"));
        assert_eq!(owner, format!("mvm-guest-agent: {folder}\n755 0:0\n"));
    }
    let conffiles = debian.sh("dpkg-query -W -f '${Conffiles}' mvm-guest-agent");
    for file in ["integrations.d/journald.json", "probes.d/README"] {
        assert!(conffiles.contains(file), "{conffiles}");
    }

    // An upgrade keeps what an administrator has changed, and has said.
    debian.sh(
        "echo '{\"name\": \"journald\"}' >/etc/mvm/integrations.d/journald.json; \
         systemctl disable mvm-guest-agent",
    );
    debian.install(&packages.deb("mvm-guest-agent", 2));
    let kept = debian.sh("cat /etc/mvm/integrations.d/journald.json");
    assert_eq!(kept, "{\"name\": \"journald\"}\n");
    let is_enabled = debian.try_sh(enabled);
    assert_eq!(String::from_utf8_lossy(&is_enabled.stdout), "disabled\n");
    let version = debian.sh("dpkg-query -W -f '${Version}' mvm-guest-agent");
    assert!(version.ends_with("-2"), "{version}");

    // Somebody's own drop-in is nobody else's to remove.
    debian.sh("echo '{\"name\": \"own\"}' >/etc/mvm/integrations.d/own.json");
    debian.sh("mkdir /run/mvm; echo 7 >/run/mvm/generation");
    debian.sh("dpkg -r mvm-guest-agent");
    debian.sh("test ! -e /usr/bin/mvm-guest-agent; test -e /etc/mvm/integrations.d/journald.json");
    debian.sh("test -e /run/mvm/generation");
    debian.sh("dpkg -P mvm-guest-agent 2>&1");
    let left = more(&before, &debian.listing());
    let own: Vec<_> = left.iter().filter(|it| it.contains(" /etc/mvm")).collect();
    assert_eq!(own.len(), 3, "{left:#?}");
    debian.sh("rm -r /etc/mvm");
    assert_eq!(more(&before, &debian.listing()), [""; 0]);
    assert_eq!(more(&debian.listing(), &before), [""; 0]);
    let after = debian.sh("sha256sum /etc/machine-id /etc/hostname 2>/dev/null || true");
    assert_eq!(machine, after);
}

#[test]
fn mvmctl_comes_and_goes() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let debian = packages.debian();
    let before = debian.listing();
    debian.install(&packages.deb("mvmctl", 1));
    debian.sh("mvmctl --help >/dev/null; mvmctl --version; dpkg --verify mvmctl");
    // The agents for images are found, but are no commands of this host.
    debian.sh("! command -v mvm-guest-agent");
    for agent in ["mvm-guest-agent", "mvm-guest-agent-dev"] {
        debian.sh(&format!(
            "/usr/lib/mvm/{agent} --version | grep '^mvm-guest-agent '"
        ));
    }
    let doctor = debian.try_sh("mvmctl doctor");
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        doctor.contains("(/usr/lib/mvm/mvm-guest-agent)"),
        "{doctor}"
    );
    for unit in ["mvm-fleet.service", "mvm@.service", "mvm-follow@.timer"] {
        let state = debian.try_sh(&format!("systemctl is-enabled {unit}"));
        assert_eq!(
            String::from_utf8_lossy(&state.stdout),
            "disabled\n",
            "{unit}"
        );
    }

    let page = debian.sh("gunzip -c /usr/share/man/man1/mvmctl-vm-run.1.gz");
    assert!(page.contains(".TH"), "{page}");

    debian.install(&packages.deb("mvmctl", 2));
    debian.sh("systemctl enable mvm@web.service; mkdir -p /var/lib/mvm/vms/web");
    debian.sh("dpkg -r mvmctl; test -e /etc/mvm/vms/README; test -d /var/lib/mvm/vms/web");
    // VMs are not the package's to remove; what is empty is no VM.
    debian.sh("mkdir -p /var/lib/mvm/vms/old; echo '{}' >/var/lib/mvm/vms/web/vm.json");
    let said = debian.sh("dpkg -P mvmctl 2>&1; find /var/lib/mvm -type f; ls /var/lib/mvm/vms");
    assert!(said.contains("/var/lib/mvm is kept, with"), "{said}");
    assert!(
        said.ends_with("/var/lib/mvm/vms/web/vm.json\nweb\n"),
        "{said}"
    );
    debian.sh("rm /var/lib/mvm/vms/web/vm.json");
    debian.install(&packages.deb("mvmctl", 1));
    debian.sh("dpkg -P mvmctl 2>&1");
    assert_eq!(more(&before, &debian.listing()), [""; 0]);
    assert_eq!(more(&debian.listing(), &before), [""; 0]);
}

/// In the chroot, where the programs and the pages that they name are.
#[test]
fn systemd_takes_the_units_where_they_are_installed() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let debian = packages.debian();
    for package in ["mvm-guest-agent", "mvmctl"] {
        debian.install(&packages.deb(package, 1));
    }
    let units = debian.sh("dpkg -L mvm-guest-agent mvmctl | grep '/systemd/system/.'");
    assert_eq!(units.lines().count(), 5, "{units}");
    for unit in units.lines() {
        // A template is verified as an instance of it. A setting that is unknown is a warning alone.
        let instance = unit.replace("@.", "@web.");
        let verify = format!("systemd-analyze verify --man=no {instance} 2>&1");
        assert_eq!(debian.sh(&verify), "", "{unit}");
        let text = debian.sh(&format!("cat {unit}"));
        let pages = text
            .lines()
            .filter_map(|line| line.strip_prefix("Documentation=man:"));
        for page in pages {
            let (name, section) = page.split_once('(').unwrap();
            let section = section.trim_end_matches(')');
            debian.sh(&format!(
                "test -e /usr/share/man/man{section}/{name}.{section}.gz"
            ));
        }
    }
}

/// What lintian says of a program that is not static, as overrides of the package say that it is.
const OF_A_DEBUG_BUILD: &str = "undeclared-elf-prerequisites,missing-dependency-on-libc";

/// `cargo xtask dist` asks it about the packages as they are published.
#[test]
fn lintian_has_nothing_to_say() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let said = told(
        &Command::new("lintian")
            .args(["--fail-on", "error,warning", "--tag-display-limit", "0"])
            // The tests' own build of mvmctl is not static.
            .args(["--suppress-tags", OF_A_DEBUG_BUILD])
            .arg("--allow-root")
            .args(["mvm-guest-agent", "mvmctl"].map(|package| packages.deb(package, 1)))
            .output()
            .unwrap(),
    );
    assert_eq!(said, "");
}

/// Each flag that `--help` lists is in the page that is written by hand, or in the settings that it
/// points to.
#[test]
fn the_agents_page_has_each_flag_that_is_no_setting() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let read = |path: &str| fs::read_to_string(format!("{root}/{path}")).unwrap();
    let page = read("packaging/mvm-guest-agent.8");
    let settings = read("docs/agent.md");
    let Some(packages) = Packages::find() else {
        return;
    };
    let debian = packages.debian();
    debian.install(&packages.deb("mvm-guest-agent", 1));
    let help = debian.sh("mvm-guest-agent --help");
    let flags = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("--"));
    let mut seen = 0;
    for flag in flags {
        let flag = flag.split([' ', ',']).next().unwrap();
        let setting = format!("| `{}` |", flag.replace('-', "_"));
        assert!(
            page.contains(&format!("--{flag}")) || settings.contains(&setting),
            "--{flag}"
        );
        seen += 1;
    }
    assert!(seen > 10, "{help}");
}
