//! The pure part of a fleet of microVMs: events and time in, a view, decisions and text out.
//!
//! ```text
//! registry events ─┐
//!                  ├─▶ view ──┬─▶ policy ──▶ plan: actions with reasons
//! watch streams ───┘          ├─▶ metrics ─▶ Prometheus text, OpenMetrics
//!                             └─▶ body ────▶ /v1/fleet, /v1/pools/NAME, /sd
//! ```
//!
//! Nothing here opens a socket or a file, starts a process, reads a clock or knows an async runtime.
//! Whoever serves the fleet watches folders and guests, hands in what comes about together with the
//! time ([`Now`]), and does what the plan says. So what the fleet promises (nobody who works is put
//! to sleep, a view that was lost is never taken for an empty fleet) are properties of functions that
//! tests call.

#![forbid(unsafe_code)]

pub mod actions;
pub mod body;
pub mod input;
pub mod label;
pub mod metrics;
pub mod now;
pub mod policy;
#[cfg(test)]
mod script;
pub mod state;
pub mod view;

pub use actions::{ActionKind, ActionLog, Outcome};
pub use input::{AgentEvent, FailedAction, Registered, RegistryEvent, RunState};
pub use now::Now;
pub use policy::{Facts, Plan, Policy, decide};
pub use state::{Counts, State};
pub use view::{Effect, Settings, Ticket, View};
