//! How a command ended, and how that is told.

use super::lifecycle::Done;
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::signal;
use mvm_protocol::status::LastCheck;
use mvm_protocol::{MAX_OUTPUT, Timestamp};
use std::time::Duration;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// Its time was up, and it was killed: by this signal, or it exited with this code on the way.
    TimedOut {
        exit_code: Option<i32>,
        signal: Option<i32>,
    },
    /// Its time was up, and even KILL did not end it: it is stuck in the kernel. It was abandoned.
    Unkillable,
    /// It was never started.
    NotStarted {
        /// Why.
        reason: String,
        /// Whether that is for want of memory, processes or descriptors.
        for_want: bool,
    },
}

/// A command's end with what it left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// How long it took.
    pub(crate) duration: Duration,
    /// How it ended.
    pub(crate) end: End,
    /// Standard output, or both streams where they share a pipe.
    pub(crate) stdout: Tail,
    /// Standard error, where it has a pipe of its own.
    pub(crate) stderr: Tail,
}

impl Ended {
    /// Whether it did what it was for.
    pub(crate) fn is_success(&self) -> bool {
        self.end == End::Exited(0)
    }

    /// As the step tells it that ran the command.
    pub(crate) fn to_step(&self) -> Done {
        let check = self.to_last_check(Timestamp(0));
        let how = match &self.end {
            End::Exited(0) | End::Unkillable | End::NotStarted { .. } => None,
            End::Exited(code) => Some(format!("exit code {code}")),
            End::Signaled(_) => check
                .signal
                .as_ref()
                .map(|signal| format!("ended by {signal}")),
            End::TimedOut { .. } => Some("killed when its time was up".to_owned()),
        };
        let outcome = match &self.end {
            End::Exited(0) => Outcome::Ok,
            End::TimedOut { .. } | End::Unkillable => Outcome::TimedOut,
            _ => Outcome::Failed,
        };
        let parts = [how, Some(check.output).filter(|output| !output.is_empty())];
        let detail: Vec<String> = parts.into_iter().flatten().collect();
        Done {
            outcome,
            duration_ms: check.duration_ms,
            detail: (!detail.is_empty()).then(|| detail.join(": ")),
        }
    }

    /// As `last_check` tells it of a command that was started at that time.
    pub(crate) fn to_last_check(&self, at: Timestamp) -> LastCheck {
        let (exit_code, signal, timed_out) = match &self.end {
            End::Exited(code) => (Some(*code), None, false),
            End::Signaled(signal) => (None, Some(*signal), false),
            End::TimedOut { exit_code, signal } => (*exit_code, *signal, true),
            End::Unkillable => (None, None, true),
            End::NotStarted { .. } => (None, None, false),
        };
        let mut printed = self.stdout.clone();
        printed.append(&self.stderr);
        let output = match &self.end {
            End::NotStarted { reason, .. } => format!("not started: {reason}"),
            End::Unkillable => format!("unkillable: stuck in the kernel\n{}", printed.text()),
            _ => printed.text(),
        };
        LastCheck {
            at,
            duration_ms: u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX),
            exit_code,
            signal: signal.map(signal::name),
            timed_out,
            output: output.trim_end().to_owned(),
            truncated: printed.truncated,
        }
    }
}

/// The last [`MAX_OUTPUT`] bytes of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    bytes: Vec<u8>,
    /// Whether there was more.
    pub(crate) truncated: bool,
}

impl Tail {
    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let skip = bytes.len().saturating_sub(MAX_OUTPUT);
        let bytes = bytes.get(skip..).unwrap_or_default();
        let over = (self.bytes.len() + bytes.len()).saturating_sub(MAX_OUTPUT);
        self.truncated |= skip > 0 || over > 0;
        self.bytes.drain(..over.min(self.bytes.len()));
        self.bytes.extend_from_slice(bytes);
    }

    fn append(&mut self, other: &Self) {
        self.push(&other.bytes);
        self.truncated |= other.truncated;
    }

    /// As text: invalid UTF-8 is replaced, and so is a character that the cut went through.
    pub(crate) fn text(&self) -> String {
        let continuation = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
        let cut = if self.truncated {
            self.bytes
                .iter()
                .take(3)
                .take_while(|byte| continuation(byte))
                .count()
        } else {
            0
        };
        String::from_utf8_lossy(self.bytes.get(cut..).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(pieces: &[&[u8]]) -> Tail {
        let mut tail = Tail::default();
        for piece in pieces {
            tail.push(piece);
        }
        tail
    }

    #[test]
    fn the_tail_of_the_output_is_kept() {
        let exact = tail(&[&[b'a'; MAX_OUTPUT]]);
        assert_eq!((exact.bytes.len(), exact.truncated), (MAX_OUTPUT, false));
        let more = tail(&[&[b'a'; MAX_OUTPUT], b"b"]);
        assert_eq!((more.bytes.len(), more.truncated), (MAX_OUTPUT, true));
        assert!(more.text().ends_with("ab"));
        let flood = tail(&[&vec![b'x'; 200_000], b"end"]);
        assert_eq!((flood.bytes.len(), flood.truncated), (MAX_OUTPUT, true));
        assert!(flood.text().ends_with("xend"));
    }

    #[test]
    fn a_cut_character_is_dropped_and_invalid_bytes_are_replaced() {
        let umlauts = "ü".repeat(MAX_OUTPUT);
        let cut = tail(&[umlauts.as_bytes(), b"!"]).text();
        assert!(!cut.contains('\u{fffd}'), "{cut}");
        assert_eq!(tail(&[b"a\xffb"]).text(), "a\u{fffd}b");
    }

    #[test]
    fn each_kind_of_end_is_reported() {
        let told = |end: End| {
            let (stdout, stderr) = (tail(&[b"out\n"]), tail(&[b"err\n"]));
            let ended = Ended {
                duration: Duration::ZERO,
                end,
                stdout,
                stderr,
            };
            let check = ended.to_last_check(Timestamp(0));
            (check.exit_code, check.signal, check.timed_out, check.output)
        };
        let out = || "out\nerr".to_owned();
        assert_eq!(told(End::Exited(3)), (Some(3), None, false, out()));
        assert_eq!(
            told(End::Signaled(11)),
            (None, Some("SEGV".into()), false, out())
        );
        let killed = End::TimedOut {
            exit_code: None,
            signal: Some(9),
        };
        assert_eq!(told(killed), (None, Some("KILL".into()), true, out()));
        let gave_in = End::TimedOut {
            exit_code: Some(0),
            signal: None,
        };
        assert_eq!(told(gave_in), (Some(0), None, true, out()));
        let stuck = told(End::Unkillable);
        assert!(stuck.2 && stuck.3.starts_with("unkillable"), "{stuck:?}");
        let none = told(End::NotStarted {
            reason: "no such user".into(),
            for_want: false,
        });
        assert_eq!(
            none,
            (None, None, false, "not started: no such user".into())
        );
    }
}
