//! What can go wrong between a name and an answer.
//!
//! What to do about an error depends on its variant alone, never on its words.

use crate::Endpoint;
use mvm_protocol::answer::Profile;
use mvm_protocol::{ErrorAnswer, Lenient, PORT};
use mvm_registry::Address;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why there is no answer, or not the one that was asked for. The text says what was tried and why
/// it failed; [`Error::hint`] says what to do next.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such VM, or it does not run.
    #[error(transparent)]
    Registry(#[from] mvm_registry::Error),
    /// There is no file at the socket's path.
    #[error("no socket at {}", .path.display())]
    NoSocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// The file at the socket's path is something else.
    #[error("{} is no socket", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket is there, and no process has it open: its VMM is gone.
    #[error("no process listens on {}", .path.display())]
    StaleSocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// This user may not open the socket.
    #[error("permission denied on {}", .path.display())]
    PermissionDenied {
        /// The socket's path.
        path: PathBuf,
    },
    /// The VMM took the connection and ended it without OK: in the guest nobody listens.
    #[error("nobody listens on port {} in the guest behind {endpoint}", .endpoint.port())]
    NobodyListening {
        /// What was dialled.
        endpoint: Endpoint,
    },
    /// What answered does not speak the agent's protocol.
    #[error("what answers at {endpoint} is no agent: {got}")]
    NotAnAgent {
        /// What was dialled.
        endpoint: Endpoint,
        /// What came, quoted and cut short, or what was wrong with it.
        got: String,
    },
    /// Nothing came in time.
    #[error("{endpoint}: no {awaited} within {after:?}")]
    TimedOut {
        /// What was dialled.
        endpoint: Endpoint,
        /// What was being waited for.
        awaited: Awaited,
        /// How long.
        after: Duration,
    },
    /// The other end closed the connection.
    #[error("{endpoint} closed the connection {}", before(*.awaited))]
    Closed {
        /// What was dialled.
        endpoint: Endpoint,
        /// What was being waited for.
        awaited: Awaited,
    },
    /// The operating system refused something that has no variant of its own.
    #[error("{endpoint}: {source}")]
    Io {
        /// What was dialled.
        endpoint: Endpoint,
        /// What was being waited for.
        awaited: Awaited,
        /// Why.
        source: io::Error,
    },
    /// The request is larger than a frame can be.
    #[error(
        "the request has {bytes} bytes, and a frame holds at most {}",
        mvm_protocol::MAX_BODY
    )]
    RequestTooLarge {
        /// The request's length.
        bytes: usize,
    },
    /// The agent answered that it will not or cannot do it.
    #[error("the agent answers: {}", clipped(&.0.message))]
    Refused(ErrorAnswer),
    /// The agent is older than the request, as its `hello` shows.
    #[error("the agent, version {}, does not know `{request}`", clipped(.agent_version))]
    TooOld {
        /// The request's type.
        request: &'static str,
        /// The version that `hello` reports.
        agent_version: String,
    },
    /// Only dev builds of the agent serve the request, and not where their settings switch it off.
    #[error("{}", not_served(.request, *.profile))]
    NotServed {
        /// The request's type.
        request: &'static str,
        /// Which build it is, as its `hello` shows.
        profile: Lenient<Profile>,
    },
}

/// The one of the dev requests that a prod build may serve.
const FORWARD: &str = "forward";

fn not_served(request: &str, profile: Lenient<Profile>) -> String {
    match profile {
        Lenient::Known(Profile::Prod) if request == FORWARD => {
            "the guest has the prod build of the agent, which forwards to those ports alone that its \
             agent.json exposes, and that is none"
                .into()
        }
        Lenient::Known(Profile::Prod) => format!(
            "the guest has the prod build of the agent, and `{request}` is served by dev builds alone"
        ),
        Lenient::Known(Profile::Dev) => {
            format!("the guest's agent.json has `{request}` switched off")
        }
        Lenient::Other(profile) => format!(
            "the guest has a build of the agent that serves no `{request}`: `{}`",
            profile.as_str()
        ),
    }
}

/// What a client was waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The socket to be accepted.
    Connection,
    /// The line `OK <number>`.
    Handshake,
    /// The answer to a request.
    Answer,
    /// The next event of a watch, a heartbeat at least.
    Event,
    /// A command's output or end.
    Command,
    /// The next piece of a file, or that it is written.
    Content,
    /// What a forwarded port sends.
    Port,
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Handshake => "OK",
            Self::Answer => "answer",
            Self::Event => "heartbeat",
            Self::Command => "output",
            Self::Content => "progress of the file",
            Self::Port => "word from the port",
        })
    }
}

impl Error {
    /// What it is, for programs: kebab-case. What an agent answered keeps the code that it has in
    /// the protocol.
    pub fn code(&self) -> &str {
        match self {
            Self::Registry(error) => error.code(),
            Self::NoSocket { .. } => "no-socket",
            Self::NotASocket { .. } => "not-a-socket",
            Self::StaleSocket { .. } => "stale-socket",
            Self::PermissionDenied { .. } => "permission-denied",
            Self::NobodyListening { .. } => "nobody-listening",
            Self::NotAnAgent { .. } => "not-an-agent",
            Self::TimedOut { .. } => "timed-out",
            Self::Closed { .. } => "closed",
            Self::Io { .. } => "io",
            Self::RequestTooLarge { .. } => "request-too-large",
            Self::Refused(answer) => answer.code.as_str(),
            Self::TooOld { .. } => "unknown-request",
            Self::NotServed { .. } => "not-allowed",
        }
    }

    /// Whether the same request may succeed later, unchanged: the VM may still be starting.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_retryable(),
            Self::NoSocket { .. }
            | Self::StaleSocket { .. }
            | Self::NobodyListening { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::Io { .. } => true,
            Self::Refused(answer) => answer.retryable,
            Self::NotASocket { .. }
            | Self::PermissionDenied { .. }
            | Self::NotAnAgent { .. }
            | Self::RequestTooLarge { .. }
            | Self::TooOld { .. }
            | Self::NotServed { .. } => false,
        }
    }

    /// What to do next about the VM that goes by this name.
    pub fn hint(&self, vm: &str) -> String {
        match self {
            Self::Registry(error) => error.hint(vm),
            Self::NoSocket { .. } => {
                "the VM is not running, or its VMM has no vsock socket there; look at the VMM's own \
                 arguments and log"
                    .into()
            }
            Self::NotASocket { .. } => {
                "name the socket that the VMM makes: `uds_path` with Firecracker, `--vsock socket=` \
                 with Cloud Hypervisor, `--uds-path` with vhost-device-vsock"
                    .into()
            }
            Self::StaleSocket { .. } => {
                "its VMM has ended and left the socket behind; start the VM again".into()
            }
            Self::PermissionDenied { .. } => {
                "become the VMM's user or root, or have the socket and its folders opened to your \
                 group"
                    .into()
            }
            Self::NobodyListening { endpoint } if endpoint.port() != PORT => {
                "see what listens on vsock ports in the guest; the number may be another".into()
            }
            Self::NobodyListening { .. } => format!(
                "the VM runs and its agent is not up, or not yet: wait for it (mvmctl vm wait {vm} \
                 --for ready), or look at the guest's console"
            ),
            Self::NotAnAgent { .. } => {
                "make sure that the socket is the VM's vsock socket and that mvm-guest-agent has \
                 port 52 in the guest"
                    .into()
            }
            Self::TimedOut { awaited, .. } => match awaited {
                Awaited::Connection | Awaited::Handshake => format!(
                    "the VM is still booting, paused or stuck: wait for it (mvmctl vm wait {vm} \
                     --for ready), or allow longer with --timeout"
                ),
                Awaited::Answer => {
                    "the guest is paused, stuck or overloaded; allow longer with --timeout".into()
                }
                Awaited::Event | Awaited::Command | Awaited::Content | Awaited::Port => format!(
                    "the guest was paused, snapshotted or has crashed: mvmctl vm status {vm}"
                ),
            },
            Self::Closed { .. } => {
                "the agent or the VM has ended or was restarted; try again, or look at the guest's \
                 console"
                    .into()
            }
            Self::Io { endpoint, .. } if matches!(endpoint.address(), Address::Vsock(_)) => "vsock:CID needs the host's vhost_vsock module, and a running guest with that CID"
                .into(),
            Self::Io { .. } => "try again; if it stays, look at the VMM's log".into(),
            Self::RequestTooLarge { .. } => "ask for less at once".into(),
            Self::Refused(answer) if answer.retryable => "try again later".into(),
            Self::Refused(_) => format!(
                "mvmctl vm inspect {vm} shows what the guest has, and the drop-in files that it \
                 rejected"
            ),
            Self::TooOld { .. } => "update the agent in the guest's image".into(),
            Self::NotServed {
                profile: Lenient::Known(Profile::Dev),
                ..
            } => {
                "set \"exec\": true in the guest's /etc/mvm/agent.json and restart the agent".into()
            }
            Self::NotServed { request, .. } if *request == FORWARD => {
                "name the port in the guest's /etc/mvm/agent.json (\"expose\": [PORT]) and restart the agent; \
                 an image with its dev build (`mvmctl image build --dev`, mkGuest: dev = true) forwards to \
                 every port"
                    .into()
            }
            Self::NotServed { .. } => "build the guest's image with `mvmctl image build --dev` \
                (mkGuest: dev = true) and start it anew"
                .into(),
        }
    }
}

fn before(awaited: Awaited) -> String {
    match awaited {
        // It was there for any time, and owed nothing yet.
        Awaited::Event => "while it was watched".into(),
        Awaited::Command => "while a command ran".into(),
        Awaited::Content => "while a file was on its way".into(),
        Awaited::Port => "while a port was forwarded".into(),
        awaited => format!("before the {awaited}"),
    }
}

/// How much of a text from a guest is repeated in a message, in bytes.
const MAX_QUOTED: usize = 1024;

/// The text if it is short, else its start. A guest may send 256 KiB where a line is expected.
pub(crate) fn clipped(text: &str) -> String {
    cut(text, MAX_QUOTED)
}

/// The text if it has at most so many bytes, else about as many of its start.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most);
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// Bytes that were not expected, as a message shows them: quoted, escaped, cut short.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    const SHOWN: usize = 64;
    let shown = bytes.get(..SHOWN).unwrap_or(bytes);
    let text = String::from_utf8_lossy(shown);
    let more = if shown.len() < bytes.len() { "…" } else { "" };
    format!("{text:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::ErrorCode;

    #[test]
    fn a_guest_cannot_fill_the_screen() {
        let error = Error::Refused(ErrorAnswer::new(ErrorCode::Failed, "é".repeat(100_000)));
        assert!(error.to_string().len() < MAX_QUOTED + 40);
        assert_eq!(quoted(b"\x1b[2J\xff"), "\"\\u{1b}[2J\u{fffd}\"");
        assert!(quoted(&[b'x'; 1000]).len() < 80);
    }
}
