//! Handshakes that are answered late, and whether anybody was still there.

use crate::{FakeAgent, Peer, Shared};
use std::io::ErrorKind;
use std::sync::{Condvar, Mutex, MutexGuard};

/// What became of the handshakes that wait for [`FakeAgent::release`].
#[derive(Debug, Default)]
pub(crate) struct Late {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    released: bool,
    ending: bool,
    begun: usize,
    finished: usize,
    given_up: usize,
}

impl Late {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn until(&self, is_so: impl Fn(&Counts) -> bool) -> MutexGuard<'_, Counts> {
        self.changed
            .wait_while(self.lock(), |counts| !is_so(counts))
            .unwrap()
    }

    pub(crate) fn end(&self) {
        self.change(|counts| counts.ending = true);
    }
}

impl FakeAgent {
    /// Has the handshakes answered that wait for it, and each one from now on at once.
    pub fn release(&self) {
        self.late().change(|counts| counts.released = true);
    }

    /// Waits until so many clients have sent their CONNECT.
    pub fn until_begun(&self, count: usize) {
        drop(self.late().until(|counts| counts.begun >= count));
    }

    /// Waits until so many handshakes are over, and gives the number of those that the client has
    /// given up, which is to have closed before OK.
    pub fn given_up_of(&self, count: usize) -> usize {
        let over = |counts: &Counts| counts.finished + counts.given_up >= count;
        self.late().until(over).given_up
    }

    fn late(&self) -> &Late {
        &self.shared.late
    }
}

impl Shared {
    /// Waits until handshakes are answered; false if the agent ends before.
    fn released(&self) -> bool {
        let counts = self.late.until(|counts| counts.released || counts.ending);
        counts.released
    }
}

impl Peer {
    /// Takes CONNECT to whichever port, and answers OK once the test calls [`FakeAgent::release`], if
    /// the client is still there.
    pub fn shake_hands_late(&mut self) -> bool {
        assert!(self.read().starts_with(b"CONNECT "), "not a CONNECT");
        let shared = std::sync::Arc::clone(&self.shared);
        shared.late.change(|counts| counts.begun += 1);
        if !shared.released() {
            return false;
        }
        self.stream.set_nonblocking(true).unwrap();
        let mut byte = [0];
        let read = std::io::Read::read(&mut self.stream, &mut byte);
        self.stream.set_nonblocking(false).unwrap();
        // One that waits for OK has neither closed nor sent anything.
        let waits = read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        let finished = waits && self.send(b"OK 1073741824\n");
        shared.late.change(|counts| {
            if finished {
                counts.finished += 1;
            } else {
                counts.given_up += 1;
            }
        });
        finished
    }
}
