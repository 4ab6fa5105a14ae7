//! `mvmctl fleet …`: all VMs of this host as one.
//!
//! ```text
//!                 feed::folders       feed::watching
//! $MVM_HOME ──▶ what folders say   what agents say ◀── watch connections
//!                       │                 │ ▲
//!                       ▼     Input       ▼ │ Effect: watch, unwatch, ask
//!    HTTP ──Query──▶ serve/owner: the View, the Policy, the Facts, the ActionLog
//!         ◀─Answer──        │   ▲
//!                  start()  ▼   │ Input: ended, connection waits
//!                       serve/hand: what acts
//! ```
//!
//! One task, the [owner](serve::owner), has all that changes; the others tell it what comes about, by
//! [`Inputs`](serve::inputs::Inputs), and are told what to do. What is seen, decided and shown is in
//! `mvm-fleet`, which knows no sockets; here is no decision.

mod client;
mod once;
pub(crate) mod plan;
pub(crate) mod serve;
pub(crate) mod status;
