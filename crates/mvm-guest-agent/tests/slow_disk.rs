//! Programs on a disk that does not answer.

#![cfg(feature = "dev")]
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and no crate that is used here knows leases"
)]

mod common;

use common::dev::exec;
use common::{Agent, assert_refused, children, within};
use nix::libc;
use serde_json::json;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// A write lease (fcntl(2)): whoever opens the file waits in the kernel until it is given back, for
/// 45 s at most, which is `/proc/sys/fs/lease-break-time`.
struct Lease(File);

impl Lease {
    fn on(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        // SAFETY: takes numbers. That the lease is wanted back is told by a signal, which would end
        // this process.
        let leased = unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK)
        };
        assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
        Self(file)
    }

    fn give_back(self) {
        drop(self.0);
    }
}

#[test]
fn a_program_that_does_not_start_blocks_no_other_request() {
    let agent = Agent::start(&[], &[]);
    let program = agent.path("run/slow");
    std::fs::copy("/bin/true", &program).unwrap();
    let lease = Lease::on(&program);
    let mut waits = agent.connection();
    waits.send(&exec(&[program.to_str().unwrap()]));
    within(|| (children(agent.pid()).len() == 1).then_some(()));
    assert_eq!(agent.ask(&json!({"type": "ping"}))["type"], "pong");
    assert_eq!(agent.exec(&exec(&["true"])).end(), (Some(0), None));
    lease.give_back();
    assert_eq!(waits.json()["type"], "exec-started");
    assert_eq!(waits.rest().end(), (Some(0), None));
}

#[test]
fn a_program_that_does_not_start_is_given_up() {
    let agent = Agent::start(&[], &[]);
    let program = agent.path("run/slow");
    std::fs::copy("/bin/true", &program).unwrap();
    let lease = Lease::on(&program);
    let ran = agent.exec(&exec(&[program.to_str().unwrap()]));
    assert_refused(&ran.last, "failed", "does its disk answer?");
    lease.give_back();
    within(|| children(agent.pid()).is_empty().then_some(()));
}
