//! What becomes of a command: its outcome or failure, in words and as an exit code. The one place
//! that knows exit codes.

use crate::commands::Context;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::process::ExitCode;

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Done, and what was seen is well.
    Done,
    /// The agent answered, and the answer is bad.
    Bad,
    /// Of several VMs some failed, or their answer is bad.
    SomeFailed,
}

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It was done and went wrong, or was refused.
    Failed,
    /// The command line asks for something that cannot be.
    Usage,
    /// There is no such VM, or its agent cannot be reached.
    Unreachable,
}

/// Why a command could not do its work: what was tried, why it failed and what to do next.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// The VM that it is about, as the user named it.
    pub(crate) vm: Option<String>,
    pub(crate) kind: Kind,
    /// For programs: kebab-case.
    pub(crate) code: Cow<'static, str>,
    /// What was tried and why it failed.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// Whether the same command may succeed later, unchanged.
    pub(crate) retryable: bool,
}

impl Failure {
    /// Work that was tried and went wrong.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            vm: None,
            kind: Kind::Failed,
            code: "failed".into(),
            message: message.into(),
            hint: None,
            retryable: false,
        }
    }

    /// A command line that asks for something that cannot be.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            code: "usage".into(),
            ..Self::failed(message)
        }
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says which VM it is about.
    pub(crate) fn of(mut self, vm: impl Into<String>) -> Self {
        self.vm = Some(vm.into());
        self
    }

    /// As it stands in JSON output in place of an answer, `vm` left to the caller.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "hint": self.hint,
        })
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Says on stderr what went wrong.
pub(crate) fn tell(context: &Context, failure: &Failure) {
    let about = failure
        .vm
        .as_ref()
        .map_or(String::new(), |vm| format!("{vm}: "));
    context.ui.error(&format!("{about}{}", failure.message));
    if let Some(hint) = &failure.hint {
        context.ui.hint(hint);
    }
}

/// Says what went wrong, if anything did, and gives the exit code.
pub(crate) fn finish(context: &Context, result: Result<Outcome, Failure>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Ok(Outcome::SomeFailed) => ExitCode::from(4),
        Err(failure) => {
            tell(context, &failure);
            ExitCode::from(match failure.kind {
                Kind::Failed => 1,
                Kind::Usage => 2,
                Kind::Unreachable => 3,
            })
        }
    }
}
