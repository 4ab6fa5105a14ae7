//! The wire contract between a host and `mvm-guest-agent`, protocol version 1.
//!
//! Bytes become messages here and messages bytes, and nothing else happens: this crate opens no
//! socket, reads no clock, starts no process and knows no async runtime. Agent, client, fuzzers
//! and schema generator all use this one copy of the framing, the caps and the shapes.
//!
//! ```text
//! handshake   CONNECT 52\n  ->  OK 52\n            the line before the first frame
//! frame       [4 byte header][body]                Decoder: push bytes, take frames
//! request     body  ->  Request | Refusal          strict: a misspelt field is an error
//! answer      Answer  ->  body                     lenient to read: unknown fields are ignored
//! lenient     words that a newer agent may have added, kept as they came
//! lifecycle   sleep-prep and wake, and the steps that they report
//! dev         exec, files, jobs and ports, which dev builds alone serve
//! status      what status, inspect, check and watch report
//! visible     text from the other side, made fit to be shown
//! drop_in     /etc/mvm/integrations.d, probes.d    fields, defaults, errors with line and field
//! ```

#![forbid(unsafe_code)]

pub mod answer;
pub mod dev;
pub mod drop_in;
pub mod frame;
pub mod handshake;
pub mod lenient;
pub mod lifecycle;
pub mod object;
pub mod request;
pub mod signal;
pub mod status;
pub mod timestamp;
pub mod visible;

pub use answer::{Answer, AnswerFrame, ErrorAnswer, ErrorCode};
pub use frame::{Decoder, Frame, FrameError};
pub use lenient::Lenient;
pub use request::{Request, RequestFrame};
pub use timestamp::Timestamp;

/// The vsock port that the agent serves, in the guest.
pub const PORT: u32 = 52;

/// The protocol version that `hello` reports.
pub const VERSION: u32 = 1;

/// The largest body of a frame in bytes, channel byte included.
pub const MAX_BODY: usize = 262_144;

/// How deep arrays and objects may nest in a body that comes from outside. No request needs more
/// than three levels; a probe's JSON value is held to it as well, so that every answer can be read
/// by a parser with the usual limit of 128.
pub const MAX_DEPTH: usize = 32;

/// How many fields an object may have at its top level: nothing of the protocol has more than twenty, and the
/// search for repeated ones must not become quadratic in the size of a hostile body.
pub const MAX_FIELDS: usize = 64;

/// How much of a command's output is kept in bytes: its end.
pub const MAX_OUTPUT: usize = 4096;
