//! How things look on standard output.

pub(crate) mod text;
