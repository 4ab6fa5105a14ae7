//! `cargo xtask test`: everything that CI runs, or one rung of it.

use crate::build;
use crate::dist;
use crate::need::{self, GuestParts};
use crate::sh::{Cmd, Failure, Result, say};
use std::path::Path;

/// One part of the tests that can be run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rung {
    /// The layout of the code.
    Fmt,
    /// Lints, as errors, of every build that there is.
    Clippy,
    /// Licences, sources and duplicates of what we depend on.
    Deny,
    /// Examples in the documentation, and its links.
    Doc,
    /// Units, properties, transcripts, vectors, generated files, in-memory pairs.
    Unit,
    /// `mvmctl` as a user starts it.
    Cli,
    /// Debian packages, installed, used, upgraded and purged.
    Packages,
    /// Real microVMs.
    Guest,
    /// mkGuest, the NixOS module, the flake: by Nix, without a network.
    Nix,
    /// The Python client, with a real agent.
    Python,
}

const RUNGS: [(&str, Rung); 10] = [
    ("fmt", Rung::Fmt),
    ("clippy", Rung::Clippy),
    ("deny", Rung::Deny),
    ("doc", Rung::Doc),
    ("unit", Rung::Unit),
    ("cli", Rung::Cli),
    ("packages", Rung::Packages),
    ("guest", Rung::Guest),
    ("nix", Rung::Nix),
    ("python", Rung::Python),
];

/// Those that one run of nextest can cover, and the packages of each. `None`: what no other names.
const NEXTEST: [(Rung, Option<&str>); 5] = [
    (Rung::Unit, None),
    (Rung::Cli, Some("mvmctl")),
    (Rung::Packages, Some("mvm-package-tests")),
    (Rung::Guest, Some("mvm-guest-tests")),
    (Rung::Nix, Some("mvm-nix-tests")),
];

pub(crate) fn run(names: &[&str]) -> Result<()> {
    let rungs = selected(names)?;
    let wants = |rung| rungs.contains(&rung);

    // What is missing is installed first: nobody waits ten minutes to learn that root is needed.
    let boots = wants(Rung::Guest) || wants(Rung::Nix);
    let guest = boots.then(need::guest_parts).transpose()?;
    if wants(Rung::Guest) || wants(Rung::Packages) {
        need::terminal()?;
    }
    if wants(Rung::Packages) {
        need::lintian()?;
        need::shells()?;
    }
    // One of the guests has the agent by its package.
    let packed = wants(Rung::Packages) || wants(Rung::Guest);
    let debian = packed.then(need::debian).transpose()?;
    let newer = wants(Rung::Guest).then(need::newer_kernel).transpose()?;
    if wants(Rung::Nix) {
        need::nix()?;
    }
    let nextest = NEXTEST.iter().any(|(rung, _)| wants(*rung));
    if nextest {
        need::NEXTEST.installed()?;
    }
    let mypy = wants(Rung::Python).then(need::mypy).transpose()?;
    let wants_prometheus = wants(Rung::Unit) || wants(Rung::Cli);
    let prometheus = wants_prometheus.then(need::prometheus).transpose()?;
    if wants_prometheus {
        need::scripts()?;
    }
    if wants(Rung::Fmt) {
        Cmd::new("cargo").args(["fmt", "--all", "--check"]).run()?;
    }
    if wants(Rung::Deny) {
        deny()?;
    }
    if wants(Rung::Clippy) {
        clippy()?;
    }
    if wants(Rung::Doc) {
        doc()?;
    }
    if wants(Rung::Unit) {
        dev_tests()?;
    }
    if let Some(mypy) = mypy {
        python(&mypy)?;
    }
    if nextest {
        // The last thing that is printed is nextest's summary of all tests.
        tests(
            &rungs,
            guest.as_ref(),
            prometheus.as_ref(),
            debian.as_deref(),
            newer.as_ref(),
        )?;
    } else {
        say("Passed.");
    }
    Ok(())
}

fn selected(names: &[&str]) -> Result<Vec<Rung>> {
    if names.is_empty() {
        return Ok(RUNGS.iter().map(|(_, rung)| *rung).collect());
    }
    let find = |name: &&str| {
        let known = RUNGS.iter().find(|(known, _)| known == name);
        known.map(|(_, rung)| *rung).ok_or_else(|| {
            let known: Vec<&str> = RUNGS.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            Failure(format!("no rung is called `{name}`: {known}"))
        })
    };
    names.iter().map(find).collect()
}

fn deny() -> Result<()> {
    let program = need::DENY.installed()?;
    Cmd::new(program)
        .args(["--workspace", "check", "bans", "licenses", "sources"])
        .run()
}

fn clippy() -> Result<()> {
    let clippy = || Cmd::new("cargo").args(["clippy", "--all-targets"]);
    let strict = ["--", "-D", "warnings"];
    clippy().arg("--workspace").args(strict).run()?;
    let dev = ["--package", "mvm-guest-agent", "--features", "dev"];
    clippy().args(dev).args(strict).run()
}

fn doc() -> Result<()> {
    Cmd::new("cargo")
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    Cmd::new("cargo")
        .args(["test", "--workspace", "--doc", "--quiet"])
        .run()
}

/// The dev build of the agent, whose tests are more than those of the prod build.
fn dev_tests() -> Result<()> {
    nextest()?
        .args(["--package", "mvm-guest-agent", "--features", "dev"])
        .run()
        .map_err(failed)
}

/// The Python client's types, and its tests against the vectors, the dev build of the agent and agents that misbehave.
fn python(mypy: &Path) -> Result<()> {
    let client = build::root().join("clients/python");
    let python = || Cmd::new("python3").dir(&client);
    python()
        .args(["-m", "mypy"])
        .env("PYTHONPATH", mypy)
        .run()?;
    python()
        .args(["-W", "error::ResourceWarning", "-m", "unittest"])
        .args(["discover", "-s", "tests"])
        .env("PYTHONPATH", client.join("src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MVM_TEST_DEV_AGENT", build::static_dev_agent()?)
        .env("MVM_TEST_FAKE_AGENT", build::fake_agent()?)
        .run()
}

pub(crate) fn nextest() -> Result<Cmd> {
    let profile = if is_ci() { "ci" } else { "default" };
    Ok(Cmd::new(need::NEXTEST.installed()?).args(["nextest", "run", "--profile", profile]))
}

/// Nextest's summary is the last word, and says more than the command would.
fn failed(_: Failure) -> Failure {
    Failure("not all tests passed: see nextest's summary above".into())
}

fn tests(
    rungs: &[Rung],
    guest: Option<&GuestParts>,
    prometheus: Option<&need::Prometheus>,
    debian: Option<&Path>,
    newer: Option<&need::Kernel>,
) -> Result<()> {
    let mut nextest = nextest()?.arg("--workspace");
    if let Some(prometheus) = prometheus {
        nextest = nextest
            .env("MVM_TEST_PROMTOOL", &prometheus.promtool)
            .env("MVM_TEST_PROMETHEUS", &prometheus.server);
    }
    if let Some(parts) = guest {
        let agent = build::static_agent()?;
        let dev = build::static_dev_agent()?;
        nextest = parts.told(nextest, &agent, &dev);
    }
    if let Some(debian) = debian {
        // As it is wanted by those tests that install packages.
        let packages = dist::for_tests(&build::static_agent()?, &build::static_dev_agent()?)?;
        nextest = nextest
            .env("MVM_TEST_DEBIAN", debian)
            .env("MVM_TEST_PACKAGES", packages)
            .env("MVM_REQUIRE_VM", "1");
    }
    if let Some(newer) = newer {
        nextest = nextest
            .env("MVM_TEST_NEWER_KERNEL", &newer.image)
            .env("MVM_TEST_NEWER_MODULES", &newer.modules);
    }
    // Nix's store for this run, which all its tests share.
    let store = rungs
        .contains(&Rung::Nix)
        .then(|| need::Scratch::of_process(&build::target_dir()?, "nix"))
        .transpose()?;
    if let Some(store) = &store {
        nextest = nextest.env("MVM_TEST_NIX", store.path());
    }
    let filter = filter(rungs);
    if let Some(filter) = filter {
        nextest = nextest.args(["-E", &filter]);
    }
    nextest.run().map_err(failed)
}

/// Nextest's expression for some of the rungs, `None` for all.
fn filter(rungs: &[Rung]) -> Option<String> {
    let wanted: Vec<_> = NEXTEST
        .iter()
        .filter(|(rung, _)| rungs.contains(rung))
        .collect();
    if wanted.len() == NEXTEST.len() {
        return None;
    }
    let named = || NEXTEST.iter().filter_map(|(_, package)| *package);
    let rest = named().map(|package| format!("not package({package})"));
    let rest = format!("({})", rest.collect::<Vec<_>>().join(" and "));
    let terms = wanted.iter().map(|(_, package)| match package {
        Some(package) => format!("package({package})"),
        None => rest.clone(),
    });
    Some(terms.collect::<Vec<_>>().join(" or "))
}

fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_in_one_rung() {
        assert_eq!(filter(&[Rung::Cli]).as_deref(), Some("package(mvmctl)"));
        assert_eq!(
            filter(&[Rung::Unit, Rung::Guest]).as_deref(),
            Some(
                "(not package(mvmctl) and not package(mvm-package-tests) and not \
                 package(mvm-guest-tests) and not package(mvm-nix-tests)) or \
                 package(mvm-guest-tests)"
            )
        );
        assert_eq!(filter(&NEXTEST.map(|(rung, _)| rung)), None);
    }

    #[test]
    fn a_rung_is_asked_for_by_name() {
        assert_eq!(selected(&["doc"]).ok(), Some(vec![Rung::Doc]));
        assert_eq!(selected(&[]).ok().map(|all| all.len()), Some(RUNGS.len()));
        let failure = selected(&["docs"]).unwrap_err();
        assert!(failure.0.contains("`docs`: fmt, clippy"), "{failure}");
    }
}
