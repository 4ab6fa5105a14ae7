//! Drop-in files: whatever lies in `/etc/mvm`, as an integration and as a probe.

use mvm_protocol::drop_in::{self, DropIn, Integration, Name, Probe};

/// The content of one file.
pub fn drop_ins() -> impl FnMut(&[u8]) {
    |content| {
        check::<Integration>(content);
        check::<Probe>(content);
    }
}

fn check<T: DropIn>(content: &[u8]) {
    match drop_in::read::<T>(content) {
        Ok(read) => assert!(Name::new(read.name()).is_some()),
        Err(problem) => {
            let lines = content.split(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(&problem.line), "{problem:?}");
            assert!(!problem.message.contains(char::is_control), "{problem:?}");
        }
    }
}
