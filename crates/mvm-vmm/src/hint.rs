//! What to do about a failure, where that depends on more than its variant.

use crate::http::HttpError;
use mvm_registry::of_system;
use rustix::io::Errno;
use std::io;

/// What helps where a deadline has passed.
pub(crate) const MORE_TIME: &str = "a longer --timeout helps if the guest, or this machine, is merely \
     slow";

/// What helps where what has to be there before is not.
pub(crate) const DOCTOR: &str = "`mvmctl doctor` checks what a VM needs";

/// What to do about a VMM that has left something behind.
const CLEAR: &str = "its process has ended, or its socket was removed: `mvmctl vm stop` ends and clears \
     what is left of it";

/// What to do about a VMM that takes requests and does not answer.
const HANGS: &str = "it hangs: `mvmctl vm stop --force` ends it, and what its guest has not written \
     is lost";

/// Where a VM is that could not do as it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was being started: what there was of it is ended.
    Starting,
    /// The same, and its process ended by itself.
    EndedAtStart,
    /// It was started before, and it is as it was, or as its VMM has left it.
    Started,
}

/// Why a conversation with QEMU failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QmpFault {
    /// Nobody listens, or the connection ended.
    Gone,
    /// No answer came in time.
    Silent,
    /// QEMU said no.
    Refused,
    /// What came is not QEMU's.
    NotQmp,
}

/// What to do about an answer of a VMM. `hangs` if it had all the time that any such answer takes.
pub(crate) fn of_api(error: &HttpError, standing: Standing, hangs: bool) -> &'static str {
    let starts = standing != Standing::Started;
    match error {
        HttpError::Refused { message, .. } => of_words(message).unwrap_or(
            "its words say why; if they speak of a field or path that it does not know, its version \
             has another interface: `mvmctl doctor` shows which version it is, docs/vmms.md those \
             that are known",
        ),
        HttpError::Io(error) => of_system(error),
        HttpError::Request(_) => {
            "its API takes text alone: give it paths in UTF-8 (MVM_HOME, --image, --to)"
        }
        HttpError::NotHttp(_) | HttpError::Unexpected(_) => {
            "its version may have another interface: `mvmctl doctor` shows which version it is; take \
             one that docs/vmms.md speaks of"
        }
        HttpError::Interrupted => "give the same command again",
        // Whatever its connection came to, that is why.
        _ if standing == Standing::EndedAtStart => {
            "the end of its log says why it ended; `mvmctl doctor` checks what a VM needs"
        }
        HttpError::NotListening | HttpError::Closed if starts => DOCTOR,
        HttpError::NotListening => CLEAR,
        HttpError::Closed => {
            "it has probably ended: `mvmctl vm logs` has its guest's last words, `mvmctl vm stop` \
             clears what is left of it"
        }
        HttpError::TimedOut { .. } if hangs && starts => {
            "it hangs, and more time would not help: `mvmctl doctor` checks what a VM needs"
        }
        HttpError::TimedOut { .. } if hangs => HANGS,
        HttpError::TimedOut { .. } => MORE_TIME,
    }
}

/// What to do about QEMU's control socket.
pub(crate) fn of_qmp(fault: QmpFault, reason: &str) -> &'static str {
    match fault {
        QmpFault::Gone => CLEAR,
        QmpFault::Silent => HANGS,
        QmpFault::Refused => of_words(reason).unwrap_or(
            "its words say why; `mvmctl doctor` shows which version it is, docs/vmms.md those that \
             were tried",
        ),
        QmpFault::NotQmp => {
            "something else than QEMU has its socket in the VM's folder: `mvmctl vm stop --force` \
             ends the VM"
        }
    }
}

/// What to do about a refusal of the system's that a VMM tells in its own words. A hint may go by
/// words, where a decision may not.
fn of_words(words: &str) -> Option<&'static str> {
    let told = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::ROFS,
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NAMETOOLONG,
        Errno::NOENT,
    ];
    told.into_iter().find_map(|errno| {
        let error = io::Error::from(errno);
        let text = error.to_string();
        // "No space left on device (os error 28)"
        let (text, _) = text.split_once(" (")?;
        words.contains(text).then(|| of_system(&error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn refused(message: &str) -> HttpError {
        HttpError::Refused {
            status: 400,
            message: message.into(),
        }
    }

    #[test]
    fn a_hint_fits_what_became_of_the_vmm() {
        use Standing::{EndedAtStart, Started, Starting};
        let late = || HttpError::TimedOut {
            after: Duration::from_secs(10),
        };
        let closed = || HttpError::Closed;
        let gone = || HttpError::NotListening;
        for (error, standing, hangs, expected) in [
            (late(), Started, true, "--force"),
            (late(), Started, false, "--timeout"),
            (late(), Starting, true, "doctor"),
            (late(), Starting, false, "--timeout"),
            (closed(), Started, false, "vm stop"),
            (closed(), EndedAtStart, false, "the end of its log"),
            (gone(), Started, false, "vm stop"),
            (gone(), Starting, false, "doctor"),
            (
                HttpError::NotHttp("no".into()),
                Started,
                false,
                "docs/vmms.md",
            ),
            (
                refused("unknown field `x`"),
                EndedAtStart,
                false,
                "another interface",
            ),
        ] {
            let hint = of_api(&error, standing, hangs);
            assert!(hint.contains(expected), "{error:?}, {standing:?}: {hint}");
            // Nothing of a VM is left that could not be started.
            assert!(standing == Started || !hint.contains("vm stop"), "{hint}");
        }
    }

    #[test]
    fn a_hint_fits_what_the_system_refused() {
        for (words, expected) in [
            (
                "Cannot write: No space left on device (os error 28)",
                "make room",
            ),
            (
                "Unable to write to file: No space left on device",
                "make room",
            ),
            (
                "Cannot open: Permission denied (os error 13)",
                "as the owner",
            ),
            (
                "vmlinux: No such file or directory (os error 2)",
                "path is right",
            ),
            ("mmap: Cannot allocate memory (os error 12)", "--memory"),
            ("Too many open files (os error 24)", "ulimit -n"),
        ] {
            let hint = of_api(&refused(words), Standing::Started, false);
            assert!(hint.contains(expected), "{words}: {hint}");
            let hint = of_qmp(QmpFault::Refused, words);
            assert!(hint.contains(expected), "{words}: {hint}");
        }
        let hint = of_qmp(QmpFault::Refused, "Device 'x' not found");
        assert!(hint.contains("its words say why"), "{hint}");
        let noexec = io::Error::from(Errno::NOEXEC);
        assert!(of_system(&noexec).contains("for this machine"));
    }
}
