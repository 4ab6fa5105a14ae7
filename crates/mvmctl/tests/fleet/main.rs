//! `mvmctl fleet …` as a program, against the agents of a fleet in this process.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod answers;
mod confined;
mod crashes;
mod dashboard;
mod descriptors;
mod folders;
mod once;
mod prometheus;
mod scalers;
mod server;
mod tls;
mod waits;
