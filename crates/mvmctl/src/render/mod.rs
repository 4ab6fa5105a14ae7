//! How things look on standard output.
//!
//! ```text
//! data      JSON and YAML, names alone
//! shown     text that is fit for a terminal, as a type: all that may be printed
//! table     columns of it
//! words     values as people read them: health, durations, sizes
//! text      text that is cut, wrapped and, as JSON, made fit for a terminal
//! status    what status and ls show       inspect, check, event, steps: what those commands show
//! ```

pub(crate) mod console;
pub(crate) mod data;
pub(crate) mod event;
pub(crate) mod inspect;
pub(crate) mod shown;
pub(crate) mod status;
pub(crate) mod steps;
pub(crate) mod text;
pub(crate) mod words;
