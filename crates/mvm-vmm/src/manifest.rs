//! The `manifest.json` of an image or a snapshot: strict, and of one version.

use mvm_protocol::object::{Object, Problem};
use serde::de::DeserializeOwned;

/// The largest manifest that is read, in bytes.
pub(crate) const MAX: u64 = 1 << 20;

/// Why a manifest's text is not taken.
pub(crate) enum Wrong {
    /// It is not as it should be.
    Shape(Problem),
    /// Its version is this one.
    Version(u32),
}

impl From<Problem> for Wrong {
    fn from(problem: Problem) -> Self {
        Self::Shape(problem)
    }
}

/// Reads a manifest of that version.
pub(crate) fn read<T: DeserializeOwned>(content: &[u8], version: u32) -> Result<T, Wrong> {
    // The version is looked at before all else: in another version other keys may be known.
    match Object::parse(content)?.take("version")? {
        Some(found) if found != version => Err(Wrong::Version(found)),
        _ => Ok(Object::parse(content)?.into_shape()?),
    }
}
