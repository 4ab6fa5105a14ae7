//! `cargo xtask aarch64`: the static programs, built for aarch64 on x86-64, and the unit tests of that
//! build under QEMU's user emulation. Where this machine's kernel or QEMU cannot do what a test takes,
//! it is left out, and the chore says so.

use crate::build::Target;
use crate::need;
use crate::sh::{Result, say};
use crate::test;

/// What is built of all, besides libraries and programs with the tests in them: tests beside the
/// sources that start none of our own programs, which this machine's kernel could not.
const WHOLE: [&str; 4] = [
    "mvm-protocol",
    "mvm-client",
    "mvm-fleet",
    "mvm-fuzz-targets",
];
const WITHIN: [&str; 8] = [
    "mvm-guest-agent",
    "mvm-registry",
    "mvm-conformance",
    "mvm-vmm",
    "mvmctl",
    "mvm-fake-agent",
    "mvm-fake-fleet",
    "mvm-fake-vmm",
];

/// Tests that are left out, by nextest's expressions, and why.
const LEFT_OUT: [(&str, &str); 6] = [
    (
        "test(=machine::fork::tests::a_copy_is_born_in_its_cgroup)",
        "QEMU's user emulation has no clone3(2), and so no CLONE_INTO_CGROUP",
    ),
    (
        "test(=machine::vsock::tests::a_process_is_kept_from_vsock_and_from_nothing_else) or \
         test(=machine::vsock::tests::whoever_may_not_filter_gives_up_more_rights_for_it)",
        "QEMU's user emulation has no seccomp(2): a filter would be asked about QEMU's own calls",
    ),
    (
        "test(=inventory::tests::asked::one_that_runs_is_asked_of_its_vmm_before_it_is_dialled)",
        "QEMU's /proc/self/stat has the start of the thread that reads it, and not of the process",
    ),
    (
        "test(=process::tests::what_was_not_recorded_never_runs) or \
         test(=raw_terminal::tests::a_panic_gives_the_terminal_back)",
        "it starts its own program anew, which is aarch64's: this machine's kernel executes none",
    ),
    (
        "test(=snapshot::digest::tests::holes_are_zeros_and_digging_changes_no_byte)",
        "hashes gigabytes, which takes minutes when emulated",
    ),
    (
        "test(=core::lifecycle::search::explore::every_interleaving_keeps_every_promise) or \
         test(=core::lifecycle::search::explore::a_notice_that_thaws_a_clone_that_is_held_is_found)",
        "an exhaustive search, which takes minutes when emulated, and touches nothing of a machine",
    ),
];

pub(crate) fn run() -> Result<()> {
    need::NEXTEST.installed()?;
    let target = need::aarch64()?;
    for agent in [target.agent()?, target.dev_agent()?] {
        target.run(&agent).arg("--version").run()?;
    }
    say("Left out of the tests:");
    for (tests, why) in LEFT_OUT {
        eprintln!("    {why}:\n        {tests}");
    }
    tests(&target, &packages(&WHOLE))?;
    let within = [packages(&WITHIN), vec!["--lib", "--bins"]].concat();
    tests(&target, &within)?;
    let dev = [
        "--package",
        "mvm-guest-agent",
        "--bins",
        "--features",
        "dev",
    ];
    tests(&target, &dev)?;
    // It takes longer than all the rest.
    target.run(&target.mvmctl()?).arg("--version").run()
}

fn tests(target: &Target, options: &[&str]) -> Result<()> {
    let nextest = test::nextest()?.args(options);
    target.told(nextest, "").args(["-E", &kept()]).run()
}

fn packages<'a>(names: &[&'a str]) -> Vec<&'a str> {
    names.iter().flat_map(|name| ["--package", name]).collect()
}

/// Nextest's expression for all tests that are not left out.
fn kept() -> String {
    let left_out = LEFT_OUT.map(|(tests, _)| tests);
    format!("not ({})", left_out.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use crate::sh::Cmd;

    /// One that has another name by now, or is in another module, would be run, and fail, in a chore
    /// that is run now and then.
    #[test]
    fn what_is_left_out_is_there() {
        let names = LEFT_OUT.iter().flat_map(|(tests, _)| tests.split(" or "));
        for test in names {
            let path = test.strip_prefix("test(=").unwrap();
            let path: Vec<&str> = path.trim_end_matches(')').split("::").collect();
            let name = path.last().unwrap();
            let files = Cmd::new("grep")
                .args(["--recursive", "--files-with-matches", "--word-regexp"])
                .arg(format!("fn {name}"))
                .arg("crates")
                .dir(build::root())
                .output();
            let files = files.unwrap_or_default();
            let is_its_module = |file| path.contains(&module_of(file));
            assert!(files.lines().any(is_its_module), "{test}: {files}");
        }
        assert!(kept().starts_with("not (test(=machine::fork::"));
    }

    /// What a file is called whose tests are in it or beside it.
    fn module_of(file: &str) -> &str {
        let mut parts = file.trim_end_matches(".rs").rsplit('/');
        let own = parts.next().unwrap_or_default();
        match own {
            "mod" | "tests" => parts.next().unwrap_or_default(),
            _ => own.trim_end_matches("_tests"),
        }
    }
}
