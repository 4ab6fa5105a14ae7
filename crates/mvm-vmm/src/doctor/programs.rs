//! The programs that VMs and images are made with: there, of which version, and whether they do.

use super::{Finding, Level};
use crate::error::Error;
use crate::firecracker::{cuts_off, loses_vsock};
use crate::locate::{
    AGENT, AGENT_DEV, BUSYBOX, CLOUD_HYPERVISOR, FIRECRACKER, Program, QEMU, VHOST_DEVICE_VSOCK,
};
use crate::microvm::open_kvm;
use std::thread;

/// What was found of them.
pub(super) struct Programs {
    pub(super) findings: Vec<Finding>,
    /// Whether there is a QEMU in which KVM can be tried.
    pub(super) qemu_does: bool,
}

/// A program, and what became of looking at it.
struct Looked {
    program: &'static Program,
    /// Its version and where it is.
    found: Result<String, Error>,
}

impl Looked {
    fn at(program: &'static Program) -> Self {
        let found = program.find().and_then(|path| {
            let version = program.version(&path)?;
            Ok(format!("{version} ({})", path.display()))
        });
        Self { program, found }
    }

    fn does(&self) -> bool {
        self.found.is_ok()
    }

    /// One that is missed if it is not there; `what_for` is what cannot be done without it.
    fn needed(self, subject: &str, level: Level, what_for: &str) -> Finding {
        match self.found {
            Ok(found) => Finding::ok(subject, found),
            Err(error) => Finding {
                subject: subject.to_owned(),
                level,
                message: format!("{error}; {what_for}"),
                fix: Some(error.hint()),
            },
        }
    }

    /// One that is not missed, unless it is there and does not do, or was named and is not there.
    fn optional(self, subject: &str, what_for: &str) -> Finding {
        let is_named = std::env::var_os(self.program.variable).is_some_and(|name| !name.is_empty());
        match self.found {
            Err(Error::MissingProgram { .. }) if !is_named => {
                Finding::ok(subject, format!("not installed; {what_for}"))
            }
            _ => self.needed(subject, Level::Warning, what_for),
        }
    }
}

/// Looks at all of them. Each is run, all at once: one that hangs costs its deadline, and no more than
/// one such time is waited.
pub(super) fn examine() -> Programs {
    let [
        qemu,
        vsock,
        firecracker,
        cloud_hypervisor,
        agent,
        agent_dev,
        busybox,
    ] = look([
        &QEMU,
        &VHOST_DEVICE_VSOCK,
        &FIRECRACKER,
        &CLOUD_HYPERVISOR,
        &AGENT,
        &AGENT_DEV,
        &BUSYBOX,
    ]);
    let by_kvm = (firecracker.does() || cloud_hypervisor.does()) && open_kvm().is_ok();
    let level = if by_kvm || (qemu.does() && vsock.does()) {
        Level::Warning
    } else {
        Level::Problem
    };
    let by_qemu = "--backend qemu needs it";
    let no_agent = "`mvmctl image build` and --backend local need it, or one of --agent";
    let qemu_does = qemu.does();
    let findings = vec![
        qemu.needed("qemu", level, by_qemu),
        vsock.needed("vhost-device-vsock", level, by_qemu),
        with_flaws(firecracker.optional("firecracker", "--backend firecracker alone needs it")),
        cloud_hypervisor.optional(
            "cloud-hypervisor",
            "--backend cloud-hypervisor alone needs it",
        ),
        agent.needed("agent", Level::Warning, no_agent),
        agent_dev.optional("agent-dev", "`mvmctl image build --dev` alone needs it"),
        busybox.needed("busybox", Level::Warning, "`mvmctl image build` needs it"),
    ];
    Programs {
        findings,
        qemu_does,
    }
}

fn look<const N: usize>(programs: [&'static Program; N]) -> [Looked; N] {
    thread::scope(|scope| {
        programs
            .map(|program| scope.spawn(|| Looked::at(program)))
            .map(|looking| match looking.join() {
                Ok(looked) => looked,
                Err(panicked) => std::panic::resume_unwind(panicked),
            })
    })
}

fn with_flaws(finding: Finding) -> Finding {
    match firecracker_flaw(&finding.message).filter(|_| finding.level == Level::Ok) {
        None => finding,
        Some((flaw, fix)) => Finding::amiss(
            Level::Warning,
            &finding.subject,
            format!("{}: {flaw}", finding.message),
            fix,
        ),
    }
}

/// What is wrong with the version of Firecracker that a text names, and what to do about it.
fn firecracker_flaw(text: &str) -> Option<(&'static str, &'static str)> {
    const INSTALL: &str = "install Firecracker 1.16.1 or later";
    let version @ (major, minor, micro) = parse_version(text)?;
    let name = format!("{major}.{minor}.{micro}");
    if loses_vsock(&name) {
        Some((
            "loses vsock for good when a VM is restored; no snapshot is taken with it",
            INSTALL,
        ))
    } else if cuts_off(&name) {
        Some((
            "cuts a guest off, for hosts, that is paused and resumed without a snapshot (its #6100); \
             what mvmctl does to a VM avoids that",
            "have nothing else pause and resume its VMs, or install a version in which it is mended; \
             `mvmctl vm wake NAME` has a guest reached again",
        ))
    } else if version < (1, 16, 1) {
        Some(("can lose vsock for good when a VM is restored", INSTALL))
    } else {
        None
    }
}

/// The first `1.2.3` in a text.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let mut number = || -> Option<u32> {
            let digits: String = parts
                .next()?
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            digits.parse().ok()
        };
        Some((number()?, number()?, number()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(parse_version("Firecracker v1.16.0 (/x)"), Some((1, 16, 0)));
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian)"),
            Some((7, 2, 22))
        );
        assert_eq!(parse_version("v2.0.1-dirty"), Some((2, 0, 1)));
        assert_eq!(parse_version("no version"), None);
    }

    #[test]
    fn versions_of_firecracker_with_a_broken_vsock_device() {
        let flaw = |text| firecracker_flaw(text);
        let broken = flaw("Firecracker v1.16.0 (/usr/bin/firecracker)");
        assert!(broken.is_some_and(|(flaw, _)| flaw.contains("no snapshot is taken")));
        assert!(flaw("Firecracker v1.15.2").is_some());
        let (cuts_off, fix) = flaw("Firecracker v1.16.1 (/x)").unwrap();
        assert!(cuts_off.contains("#6100") && fix.contains("vm wake"));
        assert_eq!(flaw("Firecracker v1.17.0"), None);
        assert_eq!(flaw("not installed, and not needed"), None);
    }
}
