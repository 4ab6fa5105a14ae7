//! Talks to `mvm-guest-agent` in microVMs, from the host.
//!
//! ```text
//! transport   dial, hybrid vsock's handshake, when to try again  Deadlines
//! dialer      who dials, and finishes what was begun             Dialer
//! session     requests and their answers on one connection       Session
//! watch       a status, then what changes                        Watcher
//! dev         commands, files, jobs and ports of dev builds      Command, Upload, Download, Port
//! raw         bytes to and from any port of the guest's          RawStream
//! error       what can go wrong, each with a code and a hint     Error
//! ```
//!
//! Everything that a guest sends is taken for hostile: frames are capped, waits have deadlines, and
//! nothing of it decides anything by its wording. The crate does not know how a VM is started; which
//! there are, and which may be dialled, `mvm-registry` says.
//!
//! ```no_run
//! use mvm_client::{Deadlines, Inventory, Session};
//!
//! # async fn example() -> Result<(), mvm_client::Error> {
//! let deadlines = Deadlines::default();
//! let inventory = Inventory::from_env(None)?;
//! let vm = inventory.now("web", deadlines.connect).await?;
//! let mut session = Session::connect(vm.endpoint()?, &deadlines).await?;
//! let status = session.status().await?;
//! println!("{:?}", status.health);
//! # Ok(())
//! # }
//! ```
//!
//! The conversation is told to [`tracing`] under the target [`WIRE`], at level `TRACE`: one event a
//! line or frame, which begins with `>` for what was sent and `<` for what came.

#![forbid(unsafe_code)]

pub mod dev;
mod dialer;
pub mod error;
mod handshake;
mod incoming;
mod raw;
pub mod session;
mod transport;
pub mod watch;

pub use dialer::{Dialer, FINISH_WITHIN, UnfinishedHandshake};
pub use error::{Awaited, Error};
pub use mvm_registry::{Endpoint, Inventory, Vm};
pub use raw::RawStream;
pub use session::Session;
pub use transport::Deadlines;
pub use watch::Watcher;

/// The `tracing` target of the conversation.
pub const WIRE: &str = "mvm_client::wire";
