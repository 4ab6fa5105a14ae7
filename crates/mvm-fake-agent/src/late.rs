//! What a test waits for: connections, and handshakes that are answered late.

use crate::{FakeAgent, Peer, Shared};
use std::io::ErrorKind;
use std::sync::{Condvar, Mutex, MutexGuard};

/// What became of the connections, and of the handshakes that wait for [`FakeAgent::release`].
#[derive(Debug, Default)]
pub(crate) struct Late {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    accepted: usize,
    closed: usize,
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

    pub(crate) fn accepted(&self) {
        self.change(|counts| counts.accepted += 1);
    }

    pub(crate) fn closed(&self) {
        self.change(|counts| counts.closed += 1);
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

    /// Waits until it has taken so many connections.
    pub fn until_accepted(&self, count: usize) {
        drop(self.late().until(|counts| counts.accepted >= count));
    }

    /// Waits until so many connections are over, whoever closed them.
    pub fn until_closed(&self, count: usize) {
        drop(self.late().until(|counts| counts.closed >= count));
    }

    /// Closes all connections, as when the VMM has ended. Further ones are taken.
    pub fn hang_up(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
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
