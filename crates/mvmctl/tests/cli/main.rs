//! `mvmctl` as a program: what it prints, where, and how it exits, against agents in this process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod answers;
mod checks;
mod conformance;
mod cp;
mod cp_archives;
mod cp_told;
mod exec;
mod exec_terminal;
mod failures;
mod fleet;
mod following;
mod handshakes;
mod host;
mod hostile;
mod jobs;
mod newer;
mod output;
mod paper;
mod ports;
mod pty;
mod snapshots;
mod standing_still;
mod streams;
mod terminal;
mod waiting;
