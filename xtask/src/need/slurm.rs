//! Slurm, which the test of engines runs VMs by.

use super::apt::{download, unpack_into, with_fresh_lists};
use super::{Package, Scratch, cache, is_debian, packages};
use crate::sh::{Cmd, Failure, Result, say};
use std::path::PathBuf;

/// What the test asks and looks with.
const TOOLS: [Package; 3] = [
    Package {
        name: "curl",
        program: "curl",
        why: "asks Prometheus and the fleets' servers",
    },
    Package {
        name: "jq",
        program: "jq",
        why: "reads what they answer",
    },
    Package {
        name: "iproute2",
        program: "ip",
        why: "makes hosts of network namespaces",
    },
];

/// The controller, what runs on each node, the commands, the plugins; and by what they trust each other.
const PACKAGES: [&str; 5] = [
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "munge",
];

/// The folder with Debian's Slurm. The packages would start their daemons for the whole machine, so they
/// are unpacked into our cache, with the libraries that are missing.
pub(crate) fn slurm() -> Result<PathBuf> {
    packages(&TOOLS)?;
    let home = cache()?.join("slurm");
    if home.join("usr/sbin/slurmctld-wlm").is_file() {
        return Ok(home);
    }
    if !is_debian() {
        return Err(Failure(format!(
            "Slurm is missing. Unpack what Debian 12 calls {} into {}",
            PACKAGES.join(" and "),
            home.display()
        )));
    }
    say(format!(
        "Slurm is missing. It runs VMs on two hosts. Unpacking Debian's into {}, which takes about \
         ten seconds.",
        home.display()
    ));
    let scratch = Scratch::new(&cache()?.join(format!("slurm-{}", std::process::id())))?;
    with_fresh_lists(&PACKAGES, || {
        let would = Cmd::new("apt-get")
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(PACKAGES)
            .output()?;
        let packages: Vec<&str> = PACKAGES.into_iter().chain(also(&would)).collect();
        download(&scratch, &packages, &[])
    })?;
    unpack_into(&home, &scratch)?;
    Ok(home)
}

/// What apt would install besides, by what it says when it only simulates.
fn also(would: &str) -> impl Iterator<Item = &str> {
    let lines = would.lines().filter_map(|line| line.strip_prefix("Inst "));
    let names = lines.filter_map(|rest| rest.split(' ').next());
    names.filter(|name| !PACKAGES.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_are_missing_are_taken_along() {
        let would = "Reading package lists...\nInst libhwloc15 (2.9.0-1 Debian:12 [amd64])\n\
                     Inst munge (0.5.15-2 Debian:12 [amd64])\nConf munge (0.5.15-2 Debian:12 [amd64])\n";
        assert_eq!(also(would).collect::<Vec<_>>(), ["libhwloc15"]);
    }
}
