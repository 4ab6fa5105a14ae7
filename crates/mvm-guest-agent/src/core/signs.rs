//! Signs that the guest was restored, and which of them are of one restore.
//!
//! A restore shows in up to three places, and not in all at the same time: the kernel's word on the
//! VM's generation id comes at once, a generation counter is read with the next sample, and a vsock
//! device may be plugged in seconds later. So what comes within a while of the first sign, or of a
//! host's word, is of the same restore; the same sign once more is of another one.

use mvm_protocol::status::RestoreSign;
use std::time::Duration;

/// What the machine has by which a restore can be told. `None` where it does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Marks {
    /// The generation counter of the vmclock device.
    pub(crate) vmclock: Option<u64>,
    /// The guest's vsock CID.
    pub(crate) cid: Option<u32>,
}

/// The signs that were seen.
#[derive(Debug)]
pub(crate) struct Signs {
    /// How long the signs of one restore may take to come.
    settle: Duration,
    known: Marks,
    last: Option<SeenRestore>,
}

/// A restore that is known of.
#[derive(Debug)]
struct SeenRestore {
    /// Until when what comes is of it.
    until: Duration,
    /// What has come of it.
    seen: Vec<RestoreSign>,
}

impl Signs {
    /// Nothing is known yet: the first marks that are read are those of the guest as it is.
    pub(crate) fn new(sample_interval: Duration) -> Self {
        Self {
            // The marks are read with each sample, and a device may be late.
            settle: sample_interval
                .saturating_mul(2)
                .saturating_add(Duration::from_secs(5)),
            known: Marks::default(),
            last: None,
        }
    }

    /// The kernel says that the VM's generation id is another one. Gives the sign if it is one of a
    /// restore that is not known of.
    pub(crate) fn vmgenid(&mut self, now: Duration) -> Option<RestoreSign> {
        self.is_new(RestoreSign::Vmgenid, now)
            .then_some(RestoreSign::Vmgenid)
    }

    /// The marks were read. Gives the first that is a sign of a restore that is not known of. What
    /// cannot be read, such as the CID of a device that is just unplugged, is no sign.
    pub(crate) fn read(&mut self, marks: Marks, now: Duration) -> Option<RestoreSign> {
        let known = self.known;
        self.known = Marks {
            vmclock: marks.vmclock.or(known.vmclock),
            cid: marks.cid.or(known.cid),
        };
        let vmclock = is_other(known.vmclock, marks.vmclock);
        let cid = is_other(known.cid, marks.cid);
        let changed = [(vmclock, RestoreSign::Vmclock), (cid, RestoreSign::Cid)];
        let mut new = None;
        for (_, sign) in changed.into_iter().filter(|(changed, _)| *changed) {
            if self.is_new(sign, now) {
                new = new.or(Some(sign));
            }
        }
        new
    }

    /// A host says that the guest was restored. `noticed` is whether a sign has come that waits for
    /// this word; without one it is of another restore than what has come before.
    pub(crate) fn announced(&mut self, noticed: bool, now: Duration) {
        let until = now.saturating_add(self.settle);
        match &mut self.last {
            Some(last) if noticed => last.until = until,
            _ => {
                self.last = Some(SeenRestore {
                    until,
                    seen: Vec::new(),
                });
            }
        }
    }

    fn is_new(&mut self, sign: RestoreSign, now: Duration) -> bool {
        match &mut self.last {
            Some(last) if now < last.until && !last.seen.contains(&sign) => {
                last.seen.push(sign);
                false
            }
            _ => {
                self.last = Some(SeenRestore {
                    until: now.saturating_add(self.settle),
                    seen: vec![sign],
                });
                true
            }
        }
    }
}

fn is_other<T: PartialEq>(known: Option<T>, read: Option<T>) -> bool {
    matches!((known, read), (Some(known), Some(read)) if known != read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestoreSign::{Cid, Vmclock, Vmgenid};

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn marks(vmclock: u64, cid: u32) -> Marks {
        Marks {
            vmclock: Some(vmclock),
            cid: Some(cid),
        }
    }

    /// Signs that have read the marks 1 and 3, and settle within 15 s.
    fn signs() -> Signs {
        let mut signs = Signs::new(secs(5));
        assert_eq!(signs.read(marks(1, 3), secs(0)), None, "as the guest is");
        signs
    }

    #[test]
    fn each_sign_alone_is_noticed_once() {
        let mut it = signs();
        assert_eq!(it.read(marks(1, 4), secs(100)), Some(Cid));
        assert_eq!(it.read(marks(1, 4), secs(200)), None);
        assert_eq!(it.read(marks(2, 4), secs(300)), Some(Vmclock));
        assert_eq!(it.vmgenid(secs(400)), Some(Vmgenid));
    }

    #[test]
    fn one_restore_that_shows_in_three_places_is_one() {
        let mut it = signs();
        assert_eq!(it.vmgenid(secs(100)), Some(Vmgenid));
        assert_eq!(it.read(marks(2, 3), secs(101)), None);
        assert_eq!(it.read(marks(2, 4), secs(106)), None);
        // All that it had to show has come: what comes now is another one.
        assert_eq!(it.read(marks(3, 4), secs(107)), Some(Vmclock));
        let mut it = signs();
        assert_eq!(it.read(marks(2, 4), secs(100)), Some(Vmclock), "at once");
        assert_eq!(it.read(marks(2, 4), secs(101)), None);
    }

    #[test]
    fn a_device_that_is_away_for_a_while_is_no_sign() {
        let mut it = signs();
        let away = Marks::default();
        assert_eq!(it.read(away, secs(100)), None);
        assert_eq!(it.read(marks(1, 3), secs(105)), None);
        assert_eq!(it.read(away, secs(110)), None);
        assert_eq!(it.read(marks(1, 4), secs(115)), Some(Cid));
    }

    #[test]
    fn what_a_host_has_announced_is_not_noticed_as_well() {
        // The usual order: the kernel's word, the host's, and what is read afterwards.
        let mut it = signs();
        assert_eq!(it.vmgenid(secs(100)), Some(Vmgenid), "for the lifecycle");
        it.announced(true, secs(160));
        assert_eq!(it.read(marks(2, 4), secs(160)), None);
        assert_eq!(it.vmgenid(secs(161)), Some(Vmgenid), "the next one");
        // A busy guest: the host was quicker.
        let mut it = signs();
        it.announced(false, secs(100));
        assert_eq!(it.vmgenid(secs(101)), None);
        assert_eq!(it.read(marks(2, 4), secs(105)), None);
        assert_eq!(it.read(marks(3, 4), secs(106)), Some(Vmclock));
    }

    #[test]
    fn of_two_restores_soon_after_each_other_neither_is_noticed_as_well() {
        let mut it = signs();
        it.announced(false, secs(100));
        assert_eq!(it.read(marks(1, 4), secs(102)), None);
        it.announced(false, secs(108));
        assert_eq!(it.read(marks(1, 5), secs(110)), None);
    }
}
