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
use common::{Agent, Connection, assert_refused, children, within};
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

/// Has a program started whose disk does not answer before the lease is given back.
fn starting(agent: &Agent) -> (Lease, Connection) {
    let program = agent.path("run/slow");
    std::fs::copy("/bin/true", &program).unwrap();
    let lease = Lease::on(&program);
    let mut waits = agent.connection();
    waits.send(&exec(&[program.to_str().unwrap()]));
    (lease, waits)
}

#[test]
fn a_program_that_does_not_start_blocks_no_other_request() {
    let agent = Agent::start(&[], &[]);
    let (lease, mut waits) = starting(&agent);
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

/// It has no memory of its own yet, and the agent goes on in the one that both have.
#[test]
fn what_goes_on_meanwhile_does_not_disturb_it() {
    let agent = Agent::start(&[], &[]);
    let programs = ["run/one", "run/two"].map(|name| {
        let program = agent.path(name);
        std::fs::copy("/bin/echo", &program).unwrap();
        program
    });
    let leases = programs.each_ref().map(|program| Lease::on(program));
    let mut waiting = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        let mut waits = agent.connection();
        waits.send(&exec(&[
            program.to_str().unwrap(),
            "word",
            "x".repeat(2000).as_str(),
        ]));
        within(|| (children(agent.pid()).len() == number + 1).then_some(()));
        waiting.push(waits);
    }
    for number in 0..40 {
        let text = number.to_string();
        let ran = agent.exec(&exec(&["echo", "-n", &text]));
        assert_eq!(ran.stdout, text.as_bytes());
    }
    for (lease, mut waits) in leases.into_iter().zip(waiting) {
        lease.give_back();
        assert_eq!(waits.json()["type"], "exec-started");
        let ran = waits.rest();
        assert_eq!(
            ran.stdout,
            format!("word {}\n", "x".repeat(2000)).as_bytes()
        );
        assert_eq!(ran.end(), (Some(0), None));
    }
}

/// By its handlers, in the memory that both have, the agent would take a signal for its own.
#[test]
fn a_signal_to_one_that_does_not_start_is_none_to_the_agent() {
    let agent = Agent::start(&[], &[]);
    let (lease, mut waits) = starting(&agent);
    let child = within(|| children(agent.pid()).first().copied());
    let caught = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    assert_ne!(caught(agent.pid()), 0);
    assert_eq!(caught(child), 0);
    let child = rustix::process::Pid::from_raw(child.try_into().unwrap()).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::TERM).unwrap();
    lease.give_back();
    assert_eq!(waits.json()["type"], "exec-started");
    assert_eq!(waits.rest().end(), (None, Some("TERM")));
    assert_eq!(agent.ask(&json!({"type": "ping"}))["type"], "pong");
    assert_eq!(agent.exec(&exec(&["true"])).end(), (Some(0), None));
}
