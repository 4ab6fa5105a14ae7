//! System calls that may hang in the kernel, for a process of their own.

use super::inherited::close_all_but;
use std::ffi::{CStr, CString};

/// Bare system calls on memory that is there already, and the path that they are about, with the `st_dev`
/// that it is to have if that matters. Gives what the process ends with.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    pub(crate) about: CString,
    pub(crate) device: Option<u64>,
    pub(crate) function: fn(&CStr, Option<u64>) -> u8,
}

impl Calls {
    /// In a process of their own.
    pub(super) fn make(&self) -> u8 {
        let _ = rustix::process::setpgid(None, None);
        close_all_but(&[]);
        (self.function)(&self.about, self.device)
    }
}
