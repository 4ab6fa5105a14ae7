//! The kernel's log, of which one line matters: that its random generator was seeded anew since the VM
//! was restored or cloned.
//!
//! Linux has written it from 5.18 on, with the new id of the VM (`add_vmfork_randomness` of
//! drivers/char/random.c), and offers programs nothing else: a uevent was in a candidate of 6.9, and was
//! taken back before it. The text is no interface; the tests boot a kernel that writes it.

use super::polled::{Polled, arrives};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use tokio::io::Interest;

/// The longest record that the kernel gives (`CONSOLE_EXT_LOG_MAX` before Linux 6.4, less since). Into
/// less room than one takes it is not read at all.
const AT_MOST: usize = 8192;

/// What it says.
const FORKED: &[u8] = b"random: crng reseeded due to virtual machine fork";

/// Notices that the kernel says so.
#[derive(Debug)]
pub(crate) struct ForkWatch(Polled);

impl ForkWatch {
    /// Reads what the kernel says from now on: each of its lines wakes the agent, and an idle guest's
    /// says nothing.
    pub(crate) fn new(log: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let log = open(log, flags, Mode::empty())?;
        seek(&log, SeekFrom::End(0))?;
        Ok(Self(Polled::new(log, Interest::READABLE)?))
    }

    /// Waits until the kernel says so.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        // What was not read in time is gone.
        arrives(&self.0, Errno::PIPE, is_forked_next).await
    }
}

/// Each read gives one record.
fn is_forked_next(log: &OwnedFd) -> Result<bool, Errno> {
    let mut record = [0; AT_MOST];
    let read = rustix::io::read(log, &mut record)?;
    Ok(is_forked(record.get(..read).unwrap_or_default()))
}

/// `<priority>,<number>,<microseconds>,…;<text>` (Documentation/ABI/testing/dev-kmsg). A program that
/// writes into the log cannot do so as the kernel, whose facility is 0.
fn is_forked(record: &[u8]) -> bool {
    let Some(at) = record.iter().position(|byte| *byte == b';') else {
        return false;
    };
    let (head, text) = record.split_at(at);
    let priority = head.split(|byte| *byte == b',').next();
    let priority = priority.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let is_kernels = priority.is_some_and(|it: u32| it < 8);
    is_kernels
        && text
            .strip_prefix(b";")
            .is_some_and(|text| text.starts_with(FORKED))
}

/// The kernel's words on the VM's generation id, which come in two ways where a distribution's kernel
/// has the uevent as well: of one restore, not of two.
#[derive(Debug, Default)]
pub(crate) struct Words {
    log: u64,
    uevents: u64,
}

/// In which way one came.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    Log,
    Uevent,
}

impl Words {
    /// Whether it is of a restore of which the other way has not told.
    pub(crate) fn is_new(&mut self, way: Way) -> bool {
        let known = self.log.max(self.uevents);
        let count = match way {
            Way::Log => &mut self.log,
            Way::Uevent => &mut self.uevents,
        };
        *count = count.saturating_add(1);
        *count > known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_of_all_is_meant() {
        // As Linux 6.12 has it.
        let record = b"5,412,9604957,-;random: crng reseeded due to virtual machine fork\n";
        assert!(is_forked(record));
        let with_caller =
            b"5,412,9604957,-,caller=T12;random: crng reseeded due to virtual machine fork\n";
        assert!(is_forked(with_caller));
        for other in [
            // By a program.
            &b"13,412,9604957,-;random: crng reseeded due to virtual machine fork\n"[..],
            b"5,412,9604957,-;it says: random: crng reseeded due to virtual machine fork\n",
            b"5,412,9604957,-;random: crng reseeded on system resumption\n",
            b",412;random: crng reseeded due to virtual machine fork\n",
            b"random: crng reseeded due to virtual machine fork\n",
            b"",
        ] {
            assert!(!is_forked(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn a_restore_that_is_told_in_two_ways_is_one() {
        use Way::{Log, Uevent};
        let new = |ways: &[Way]| {
            let mut words = Words::default();
            ways.iter().filter(|way| words.is_new(**way)).count()
        };
        assert_eq!(new(&[Log, Log, Log]), 3);
        assert_eq!(new(&[Uevent, Uevent]), 2);
        assert_eq!(new(&[Log, Uevent, Uevent, Log]), 2);
        assert_eq!(new(&[Log, Log, Uevent, Uevent, Uevent]), 3);
    }
}
