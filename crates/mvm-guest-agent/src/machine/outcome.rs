//! How a step that changes the guest ends.

use std::io;

/// What a step came to.
pub(crate) type StepResult = Result<Option<String>, NotDone>;

/// Why a step was not taken, or not to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotDone {
    /// It was not tried, or may not be.
    Skipped(String),
    /// It was tried in vain.
    Failed(String),
    /// Its time was up.
    TimedOut(String),
}

impl NotDone {
    /// What the kernel's refusal means: who may not do a thing has not failed at it.
    pub(crate) fn from_error(what: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::PermissionDenied {
            Self::Skipped(format!("{what}: not permitted"))
        } else {
            Self::Failed(format!("{what}: {error}"))
        }
    }
}
