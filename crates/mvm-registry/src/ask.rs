//! What is asked of others about a VM: this crate knows no VMM.

use crate::{Record, VmFolder};
use std::fmt;
use std::time::Duration;

/// How VMMs are asked whether their VMs stand still. Whoever knows VMMs gives it to the
/// [`Inventory`].
pub trait AskVmm: fmt::Debug + Send + Sync {
    /// Whether the CPUs of a VM that was started so, and whose VMM runs, stand still. It may block
    /// for that long.
    ///
    /// # Errors
    ///
    /// Why that cannot be told, in words.
    fn is_paused(
        &self,
        record: &Record,
        folder: &VmFolder,
        at_most: Duration,
    ) -> Result<bool, String>;
}
