//! What is fuzzed: each target is a function that gives a closure, which takes any bytes.
//!
//! ```text
//! requests, answers, handshake, drop_ins   mvm-protocol: what either side reads
//! session                                  mvm-client: a whole conversation, cut into any pieces
//! verbs                                    mvm-client: what each verb of mvmctl makes of an agent
//! unpack                                   mvm-client: folders that a guest sends, and gets
//! policy                                   mvm-fleet: fleet.toml
//! records                                  mvm-registry: vm.json, fleet.json, touched.json
//! manifests                                mvm-vmm: manifest.json of images and snapshots
//! ```
//!
//! What is private to the agent is in its own module `fuzz`.
//!
//! `fuzz/` runs each with cargo-fuzz, and the tests run each with their seeds ([`corpus`]): so a target is written
//! once. It fails by panicking. What it needs many times (a folder, a runtime) it makes once, before
//! it is given the first bytes.

#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::indexing_slicing,
    reason = "a target fails by panicking"
)]

mod answers;
pub mod archive;
pub mod corpus;
mod drop_ins;
mod handshake;
mod manifests;
mod policy;
mod records;
mod requests;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "what writes them is xtask, which has this file too"
    )
)]
mod seeds;
mod session;
mod stream;
mod unpack;
mod verbs;

pub use answers::answers;
pub use drop_ins::drop_ins;
pub use handshake::handshake;
pub use manifests::manifests;
pub use policy::policy;
pub use records::records;
pub use requests::requests;
pub use session::session;
pub use unpack::unpack;
pub use verbs::verbs;
