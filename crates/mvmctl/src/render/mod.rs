//! How things look on standard output.
//!
//! ```text
//! data      JSON and YAML, names alone
//! table     columns, and text in them made fit for a terminal
//! words     values as people read them: health, durations, sizes
//! text      text from outside, made fit for a terminal
//! status    what status and ls show       inspect, check, event, steps: what those commands show
//! ```

pub(crate) mod console;
pub(crate) mod data;
pub(crate) mod event;
pub(crate) mod inspect;
pub(crate) mod status;
pub(crate) mod steps;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod words;
