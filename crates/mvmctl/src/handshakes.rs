//! The handshakes that are under way when this program ends.
//!
//! Hybrid vsock wants each of them finished (see [`Dialer`]), and a guest that boots or stands still
//! answers much later than anybody wants to wait. So what is not finished in a moment is handed to a
//! second process of this program, which has nothing else to do and outlives it:
//!
//! ```text
//! mvmctl ── socket pair, SCM_RIGHTS ──► mvmctl finish-handshakes
//!   │ ends                                │ reads each until its line or its end, two minutes at most
//! ```
//!
//! The helper has a session of its own and no terminal, and of its parent's descriptors those sockets
//! alone: who waits for the end of `mvmctl`'s output does not wait for it. Nobody can help a program
//! that is ended by `kill -9`.

use mvm_client::{Dialer, FINISH_WITHIN, UnfinishedHandshake};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The command of the helper; it is for nobody else, and no command of [`crate::commands`].
const HELPER: &str = "finish-handshakes";

/// How long this process itself waits for them at its end.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// How many sockets the kernel takes with one message.
const AT_ONCE: usize = 253;

/// How many a helper takes. More than can be under way: `--parallel` bounds that.
const MOST: usize = 4096;

/// How long an answer to CONNECT may be in bytes before it is none.
const LONGEST_LINE: usize = 64;

/// Finishes what a [`Dialer`] has under way, once, when this program ends: in order, by a signal, or
/// by a panic.
#[derive(Debug)]
pub(crate) struct FinishHandshakes {
    dialer: Dialer,
    /// Held while it is done, so that nobody ends the process meanwhile.
    doing: Mutex<()>,
}

impl FinishHandshakes {
    pub(crate) fn of(dialer: Dialer) -> Self {
        Self {
            dialer,
            doing: Mutex::new(()),
        }
    }

    /// Waits a moment for those that are finished by then.
    pub(crate) async fn wait(&self) {
        self.dialer.finish(GRACE).await;
    }

    /// Leaves the rest to a helper. No handshake is begun from now on.
    pub(crate) fn hand_over(&self) {
        let _doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets = self.dialer.close();
        if !sockets.is_empty() {
            // Without a helper they end with this process: there is nothing else left to try.
            let _ = start_helper(&sockets);
        }
    }
}

/// Hands over what is under way when it is dropped: the last thing that a program does, also one that
/// panics.
#[derive(Debug)]
pub(crate) struct AtTheEnd(pub(crate) Arc<FinishHandshakes>);

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.0.hand_over();
    }
}

fn start_helper(sockets: &[UnfinishedHandshake]) -> io::Result<()> {
    let (ours, helpers) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Also where this program's file was replaced or removed meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("mvmctl")
        .arg(HELPER)
        .current_dir("/")
        .stdin(helpers)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    mvm_vmm::detach(&mut command);
    // Not waited for: this process ends now, and init takes what it leaves.
    command.spawn()?;
    // The command has the helper's end: were it kept open, nobody would notice if the helper died.
    drop(command);
    for sockets in sockets.chunks(AT_ONCE) {
        send(&ours, sockets)?;
    }
    Ok(())
}

fn send(to: &OwnedFd, sockets: &[UnfinishedHandshake]) -> io::Result<()> {
    let sockets: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
    loop {
        let message = [IoSlice::new(&[0])];
        match sendmsg(to, &message, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

/// Whether this process is the helper of another.
pub(crate) fn is_helper() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == HELPER)
}

/// What the helper does: it keeps the sockets open that it is given on standard input until each has
/// been answered or closed, but no longer than [`FINISH_WITHIN`].
pub(crate) fn finish() {
    let until = Instant::now() + FINISH_WITHIN;
    let mut open = receive();
    while !open.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let Ok(left) = Timespec::try_from(left) else {
            return;
        };
        let mut ready: Vec<_> = open
            .iter()
            .map(|one| PollFd::new(&one.socket, PollFlags::IN))
            .collect();
        match poll(&mut ready, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let ready: Vec<_> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        open.retain_mut(|one| !(ready.next() == Some(true) && one.is_finished()));
    }
}

/// A socket whose CONNECT has not been answered.
struct Unfinished {
    socket: OwnedFd,
    read: usize,
}

impl Unfinished {
    /// Reads what has come, and tells whether that was all.
    fn is_finished(&mut self) -> bool {
        let mut buffer = [0; LONGEST_LINE];
        match rustix::io::read(&self.socket, &mut buffer) {
            Ok(0) => true,
            Ok(count) => {
                self.read += count;
                let come = buffer.get(..count).unwrap_or_default();
                come.contains(&b'\n') || self.read >= LONGEST_LINE
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        }
    }
}

fn receive() -> Vec<Unfinished> {
    let mut open = Vec::new();
    loop {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut message = [IoSliceMut::new(&mut byte)];
        let stdin = io::stdin();
        match recvmsg(
            &stdin,
            &mut message,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) if received.bytes > 0 => {}
            Err(Errno::INTR) => continue,
            Ok(_) | Err(_) => return open,
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                open.extend(sockets.map(|socket| Unfinished { socket, read: 0 }));
            }
        }
        if open.len() >= MOST {
            return open;
        }
    }
}
