//! How a VM has ended that nobody stopped.
//!
//! A VMM is nobody's child any more, so its exit status is lost to init. What is left is what was
//! written: the guest's kernel says on the console that it powers off or panics, and the VMM says in
//! its log that a signal came, that it cannot go on, or which request of the guest's ended it. A
//! program that is killed with SIGKILL writes nothing; neither does one that the kernel ends for want
//! of memory. Nothing is claimed beyond that. A guest can write what it likes to its console: where the
//! VMM says something itself (QEMU traces why it shuts down), that counts for more.

use mvm_protocol::object::in_one_line;
use std::fmt;

/// How much of the end of a log is looked at, in bytes. Behind a panic come some KiB of its trace.
pub(crate) const TAIL: u64 = 64 * 1024;

/// How much of a line is repeated, in characters.
const MOST: usize = 200;

/// How a VM has ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its guest powered off.
    PoweredOff,
    /// Its guest restarted, which ends a VM.
    Restarted,
    /// Its guest's kernel panicked; what it said.
    Panicked(String),
    /// Its VMM could not go on; what that said.
    Crashed(String),
    /// A signal ended its VMM; what that said.
    Killed(String),
    /// This machine was booted anew.
    HostRestarted,
    /// Nothing says how.
    Unknown,
}

impl Ending {
    /// For programs: kebab-case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PoweredOff => "powered-off",
            Self::Restarted => "restarted",
            Self::Panicked(_) => "panicked",
            Self::Crashed(_) => "crashed",
            Self::Killed(_) => "killed",
            Self::HostRestarted => "host-restarted",
            Self::Unknown => "unknown",
        }
    }

    /// In a word or two.
    pub fn in_short(&self) -> &'static str {
        match self {
            Self::PoweredOff => "powered off",
            Self::Restarted => "restarted",
            Self::Panicked(_) => "panicked",
            Self::Crashed(_) => "crashed",
            Self::Killed(_) => "killed",
            Self::HostRestarted => "host restarted",
            Self::Unknown => "killed?",
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("its guest powered off"),
            Self::Restarted => f.write_str("its guest restarted, which ends a VM"),
            Self::Panicked(said) => write!(f, "its guest's kernel panicked: {said}"),
            Self::Crashed(said) => write!(f, "it crashed: {said}"),
            Self::Killed(said) => write!(f, "it was killed: {said}"),
            Self::HostRestarted => f.write_str("this machine was restarted"),
            Self::Unknown => {
                f.write_str("its process is gone, and neither console nor log says why (killed?)")
            }
        }
    }
}

/// How it ended, by the ends of the guest's console and of the VMM's log. Where both are one (Firecracker,
/// `local`), the second is empty.
pub(crate) fn of_logs(console: &str, log: &str) -> Ending {
    let panicked = || last(console, &["Kernel panic - not syncing: "]).map(Ending::Panicked);
    let shutdown = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(QEMU_SHUTDOWN));
    match shutdown.map(str::trim) {
        Some(QEMU_GUEST_SHUTDOWN) => return Ending::PoweredOff,
        Some(QEMU_GUEST_RESET) => return panicked().unwrap_or(Ending::Restarted),
        Some(QEMU_QUIT) => {
            return Ending::Killed("something told QEMU to quit, at its control socket".into());
        }
        _ => {}
    }
    if let Some(ending) = panicked() {
        return ending;
    }
    for (says, ending) in [
        (KILLED, Ending::Killed as fn(String) -> Ending),
        (CRASHED, Ending::Crashed),
    ] {
        if let Some(said) = last(log, says).or_else(|| last(console, says)) {
            return ending(said);
        }
    }
    if last(console, POWERED_OFF).is_some() {
        Ending::PoweredOff
    } else if last(console, RESTARTED).is_some() {
        Ending::Restarted
    } else {
        Ending::Unknown
    }
}

/// The kernel's words when it powers off, or halts where there is nothing to power off.
const POWERED_OFF: &[&str] = &["reboot: Power down", "reboot: System halted"];

/// The kernel's words when it restarts.
const RESTARTED: &[&str] = &["reboot: Restarting system", "reboot: machine restart"];

/// What QEMU traces when something has it end: a number of its `ShutdownCause` (qapi/run-state.json).
const QEMU_SHUTDOWN: &str = "qemu_system_shutdown_request reason=";

/// It was told to quit.
const QEMU_QUIT: &str = "2";

/// The guest powered off.
const QEMU_GUEST_SHUTDOWN: &str = "6";

/// The guest restarted; a kernel that panics does too.
const QEMU_GUEST_RESET: &str = "7";

/// QEMU's words when a signal ends it.
const KILLED: &[&str] = &["terminating on signal "];

/// What VMMs say that cannot go on: Rust programs (Firecracker, Cloud Hypervisor, the agent), then
/// Firecracker on a signal such as SIGSEGV, then QEMU.
const CRASHED: &[&str] = &[
    "panicked at ",
    "Shutting down VM after intercepting signal ",
    "Bail out! ",
    "Assertion `",
    "qemu: fatal: ",
    "KVM internal error",
    "error: kvm run failed",
];

/// The last line in which one of the words stands, cut short and without anything that a terminal
/// would obey.
fn last(text: &str, words: &[&str]) -> Option<String> {
    let line = text
        .lines()
        .rev()
        .find(|line| words.iter().any(|word| line.contains(word)))?;
    let first: String = line.trim().chars().take(MOST).collect();
    Some(in_one_line(&first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_says_how_it_ended() {
        for (console, log, expected) in [
            (
                "mvm-guest-agent: listening on vsock:52\r\n[   12.345678] reboot: Power down\r\n",
                "",
                Ending::PoweredOff,
            ),
            ("reboot: Restarting system", "", Ending::Restarted),
            (
                "",
                "qemu_system_shutdown_request reason=6\n",
                Ending::PoweredOff,
            ),
            (
                "reboot: Restarting system",
                "qemu_system_shutdown_request reason=7\n",
                Ending::Restarted,
            ),
            (
                "Kernel panic - not syncing: Attempted to kill init!",
                "qemu_system_shutdown_request reason=7\n",
                Ending::Panicked("Kernel panic - not syncing: Attempted to kill init!".into()),
            ),
            // The VMM is believed before its guest.
            (
                "Kernel panic - not syncing: said a joker\n",
                "qemu_system_shutdown_request reason=6\n",
                Ending::PoweredOff,
            ),
            (
                "",
                "qemu_system_shutdown_request reason=2\n",
                Ending::Killed("something told QEMU to quit, at its control socket".into()),
            ),
            (
                "[    1.2] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.2] CPU: 0\r\n\
                 [    1.3] Rebooting in 1 seconds..",
                "",
                Ending::Panicked(
                    "[    1.2] Kernel panic - not syncing: sysrq triggered crash".into(),
                ),
            ),
            (
                "boot",
                "qemu-system-x86_64: terminating on signal 15 from pid 7 (kill)\n",
                Ending::Killed(
                    "qemu-system-x86_64: terminating on signal 15 from pid 7 (kill)".into(),
                ),
            ),
            (
                "",
                "thread 'vmm' panicked at src/vmm.rs:7:\nno\x1b[2J",
                Ending::Crashed("thread 'vmm' panicked at src/vmm.rs:7:".into()),
            ),
            ("boot", "warning: nothing", Ending::Unknown),
            ("", "", Ending::Unknown),
        ] {
            assert_eq!(of_logs(console, log), expected, "{console:?}, {log:?}");
        }
    }

    #[test]
    fn a_guest_can_neither_fill_the_screen_nor_command_it() {
        let flood = format!("Kernel panic - not syncing: \x1b[2J{}", "é".repeat(100_000));
        let Ending::Panicked(said) = of_logs(&flood, "") else {
            panic!("it panicked");
        };
        assert_eq!(said.chars().count(), MOST);
        assert!(!said.contains('\x1b'));
    }
}
