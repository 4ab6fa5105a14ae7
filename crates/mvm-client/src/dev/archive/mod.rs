//! Folders as tar streams: what [`Upload`](super::Upload) sends of one, and what becomes of one that
//! [`Download`](super::Download) gives.
//!
//! Everything here blocks: an async caller runs it on a thread of its own.

mod pack;
mod sparse;
mod unpack;

pub use pack::pack;
pub use sparse::Sparse;
pub use unpack::unpack;

/// The bits of a mode that are kept of what a guest sends. A program of the guest's that is setuid
/// would be one of the host's root, were root to copy it.
pub const KEPT_MODE: u32 = 0o777;
