//! Serving hosts: sockets, connections, requests and watchers, and the driver that is the loop around
//! the core.
//!
//! It knows the machine through one trait, [`Machine`](crate::machine::interface::Machine), and what
//! a dev build adds through another, [`Extension`](extension::Extension).

pub(crate) mod connection;
pub(crate) mod driver;
mod encode;
pub(crate) mod extension;
pub(crate) mod facts;
pub(crate) mod handle;
pub(crate) mod listener;
mod notify;
mod requests;
pub(crate) mod session;
mod watchers;
