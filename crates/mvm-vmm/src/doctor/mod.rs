//! What on this machine is in the way of starting VMs, and how to mend it.
//!
//! Nothing is started but a trial of KVM, and the programs for what they say of their versions. No VM
//! is dialled, but for sockets of others' of which nothing else tells whether somebody is there.

mod machine;
mod programs;
mod vms;

use crate::deadline::Deadline;
use mvm_registry::Home;

use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be, or no matter.
    Ok,
    /// VMs can be started, but something is amiss.
    Warning,
    /// No VM can be started.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self {
            subject: subject.to_owned(),
            level: Level::Ok,
            message: message.into(),
            fix: None,
        }
    }

    /// Something to be mended, and how.
    pub fn amiss(
        level: Level,
        subject: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            level,
            fix: Some(fix.into()),
            ..Self::ok(subject, message)
        }
    }
}

/// A VM that is not in `$MVM_HOME`, by its socket.
#[derive(Debug, Clone)]
pub struct DiscoveredVm {
    /// Its name.
    pub name: String,
    /// Where its vsock socket is.
    pub socket: PathBuf,
}

/// Looks at everything. The deadline is for the trial of KVM; what else may hang has a deadline of its
/// own.
pub fn examine(home: &Home, discovered: &[DiscoveredVm], deadline: Deadline<'_>) -> Vec<Finding> {
    let programs = programs::examine();
    let kvm = machine::kvm(home, programs.qemu_does, deadline);
    let mut findings = vec![kvm, machine::vhost_vsock()];
    findings.extend(programs.findings);
    findings.extend([machine::kernel(), machine::home_folder(home)]);
    findings.extend(vms::own(home));
    findings.extend(discovered.iter().filter_map(vms::discovered));
    findings
}

/// Whether nothing stands in the way of starting a VM.
pub fn can_start_vms(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.level != Level::Problem)
}

/// How long the trial of KVM may take.
pub const TRIAL: Duration = Duration::from_secs(15);
