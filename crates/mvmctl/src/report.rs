//! What becomes of a command: its outcome or failure, in words and as an exit code. The one place
//! that knows exit codes.

use crate::args::Format;
use crate::commands::Context;
use crate::render::data;
use serde::Serialize;
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
    /// A command in a guest has ended, and we end as it did.
    Ended(Ended),
}

/// How a command in a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
    /// Its time was up.
    TimedOut,
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
    /// The VM has ended by itself: no command in it can be run.
    VmEnded,
    /// Whatever kept a command in a guest from being run to its end, on our side or the agent's.
    NotRun,
    /// The guest has such a program, and it cannot be run.
    CannotRun,
    /// The guest has no such program, user or folder.
    NoProgram,
    /// A signal of this number ended us.
    Signalled(i32),
}

impl Kind {
    /// The same of a command that passes the exit code of another on: there, few codes are ours.
    pub(crate) fn of_a_run(self) -> Self {
        match self {
            Self::Failed | Self::Unreachable => Self::NotRun,
            kind => kind,
        }
    }

    /// The same of one that follows what was begun before: that the VM has ended is one reason more for
    /// which the end of that is not known.
    pub(crate) fn of_what_was_begun(self) -> Self {
        match self.of_a_run() {
            Self::VmEnded => Self::NotRun,
            kind => kind,
        }
    }
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
    /// Whether each line of the message is something that is wrong. Otherwise it is one.
    pub(crate) is_list: bool,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// Whether the same command may succeed later, unchanged.
    pub(crate) retryable: bool,
}

/// The code of what a signal to this program has broken off.
pub(crate) const INTERRUPTED: &str = "interrupted";

impl Failure {
    /// Work that was tried and went wrong.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            vm: None,
            kind: Kind::Failed,
            code: "failed".into(),
            message: message.into(),
            is_list: false,
            hint: None,
            retryable: false,
        }
    }

    /// Something that the VM does not have.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: "not-found".into(),
            ..Self::failed(message)
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

    /// A signal came before it was done.
    pub(crate) fn signalled(number: i32, consequence: &str) -> Self {
        let name = mvm_protocol::signal::name(number);
        Self {
            kind: Kind::Signalled(number),
            code: INTERRUPTED.into(),
            ..Self::failed(format!("ended by SIG{name}, {consequence}"))
        }
    }

    /// Its user has had enough of waiting.
    pub(crate) fn interrupted() -> Self {
        Self {
            code: INTERRUPTED.into(),
            ..Self::failed("interrupted")
        }
    }

    /// That there is no such VM, or that it is not as it was wanted.
    pub(crate) fn registry(vm: &str, error: &mvm_registry::Error) -> Self {
        Self {
            vm: Some(vm.to_owned()),
            kind: kind_of_registry(error),
            code: error.code().into(),
            message: error.to_string(),
            is_list: false,
            hint: Some(error.hint(vm)),
            retryable: error.is_retryable(),
        }
    }

    /// What went wrong between a VM's name and its answer.
    pub(crate) fn about(vm: &str, error: &mvm_client::Error) -> Self {
        Self {
            vm: Some(vm.to_owned()),
            kind: kind_of(error),
            code: error.code().to_owned().into(),
            message: error.to_string(),
            is_list: false,
            hint: Some(error.hint(vm)),
            retryable: error.is_retryable(),
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
}

fn kind_of(error: &mvm_client::Error) -> Kind {
    use mvm_client::Error;
    match error {
        Error::Registry(error) => kind_of_registry(error),
        Error::Refused(_)
        | Error::TooOld { .. }
        | Error::NotServed { .. }
        | Error::RequestTooLarge { .. } => Kind::Failed,
        _ => Kind::Unreachable,
    }
}

fn kind_of_registry(error: &mvm_registry::Error) -> Kind {
    use mvm_registry::Error;
    match error {
        Error::Ended(_) => Kind::VmEnded,
        Error::BadName { .. }
        | Error::NeitherNameNorAddress { .. }
        | Error::BadSettings { .. }
        | Error::BadLabel(_) => Kind::Usage,
        Error::NotOurs { .. } | Error::Locked { .. } | Error::Io { .. } => Kind::Failed,
        _ => Kind::Unreachable,
    }
}

impl From<mvm_registry::Error> for Failure {
    /// Of what is about no VM: the inventory and its settings.
    fn from(error: mvm_registry::Error) -> Self {
        Self {
            vm: None,
            ..Self::registry("NAME", &error)
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// How a failure stands in data, in place of an answer.
#[derive(Debug, Serialize)]
pub(crate) struct InData<'a> {
    vm: Option<&'a str>,
    error: ErrorInData<'a>,
}

/// Why there is no answer.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorInData<'a> {
    code: &'a str,
    message: &'a str,
    retryable: bool,
    hint: Option<&'a str>,
}

impl<'a> From<&'a Failure> for InData<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            vm: failure.vm.as_deref(),
            error: failure.into(),
        }
    }
}

impl<'a> From<&'a Failure> for ErrorInData<'a> {
    fn from(failure: &'a Failure) -> Self {
        Self {
            code: &failure.code,
            message: &failure.message,
            retryable: failure.retryable,
            hint: failure.hint.as_deref(),
        }
    }
}

/// Says on stderr what went wrong.
pub(crate) fn tell(context: &Context, failure: &Failure) {
    let about = failure
        .vm
        .as_ref()
        .map_or(String::new(), |vm| format!("{vm}: "));
    let messages = if failure.is_list {
        failure.message.split('\n').collect()
    } else {
        vec![failure.message.as_str()]
    };
    for message in messages {
        context.ui.error(&format!("{about}{message}"));
    }
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
        Ok(Outcome::Ended(ended)) => ExitCode::from(match ended {
            Ended::Code(code) => by_code(code),
            Ended::Signal(number) => by_signal(number),
            Ended::TimedOut => 124,
        }),
        Err(failure) => {
            if failure.vm.is_some()
                && context.ui.has_stdout()
                && matches!(context.format, Format::Json | Format::Yaml)
            {
                // Who reads data gets the failure as data too. If stdout fails, stderr is left.
                let _ = data::line(context, &InData::from(&failure));
            }
            tell(context, &failure);
            ExitCode::from(match failure.kind {
                Kind::Failed => 1,
                Kind::Usage => 2,
                Kind::Unreachable | Kind::VmEnded => 3,
                Kind::NotRun => 125,
                Kind::CannotRun => 126,
                Kind::NoProgram => 127,
                Kind::Signalled(number) => by_signal(number),
            })
        }
    }
}

/// A command's exit code as ours. One that no process can have is no success, whatever its low bits
/// are.
fn by_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// What a shell makes of a process that a signal ended.
fn by_signal(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(0).saturating_add(128)
}
