//! Tells the host that the agent listens, without being asked: one `status` frame to a vsock port
//! of the host.

use super::encode;
use super::handle::Handle;
use crate::machine::console::say;
use crate::machine::stream::Stream;
use mvm_protocol::request::Request;
use nix::sys::socket::{VsockAddr, connect};
use rustix::fd::AsRawFd;
use std::io;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The host's CID: `VMADDR_CID_HOST` of vsock(7).
const HOST: u32 = 2;

/// A host that does not answer must not keep a descriptor here for long.
const WITHIN: Duration = Duration::from_secs(5);

/// Between the first attempt and the second; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Dials the host and writes how things are, again and again until it was taken: a host need not
/// listen yet. To be dropped at any time.
pub(crate) async fn notify(port: u32, handle: Handle) {
    let attempt = async || {
        let sent = timeout(WITHIN, send_status(port, &handle)).await;
        sent.unwrap_or_else(|_| Err(rustix::io::Errno::TIMEDOUT.into()))
    };
    repeat(attempt, |told| say!("notify_port {port}: {told}")).await;
}

/// Tries until it succeeds, and tells what it comes to: each error once, as long as it is the same.
async fn repeat(mut attempt: impl AsyncFnMut() -> io::Result<()>, mut tell: impl FnMut(&str)) {
    let mut pause = FIRST_PAUSE;
    let mut last = String::new();
    while let Err(error) = attempt().await {
        let error = error.to_string();
        if error != last {
            tell(&format!("{error}; tried again until a host takes it"));
            last = error;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if !last.is_empty() {
        tell("a host has taken it");
    }
}

async fn send_status(port: u32, handle: &Handle) -> io::Result<()> {
    let fd = handle.facts().vsock.socket()?;
    let connecting = match connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port)) {
        Ok(()) => false,
        Err(nix::errno::Errno::EINPROGRESS) => true,
        Err(error) => return Err(error.into()),
    };
    let stream = Stream::new(fd)?;
    if connecting {
        stream.connected().await?;
    }
    let status = handle.ask(Request::Status).await;
    let frame = encode::frame(status, None);
    let mut rest = frame.as_slice();
    while !rest.is_empty() {
        let written = stream.write(rest).await?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use tokio::time::Instant;

    /// When each attempt was made, in seconds, and what was told, of a host that takes it from then.
    async fn attempts(takes_it: u64, errors: &[Errno]) -> (Vec<u64>, Vec<String>) {
        let began = Instant::now();
        let (mut at, mut told) = (Vec::new(), Vec::new());
        let attempt = async || {
            at.push(began.elapsed().as_secs());
            if began.elapsed() >= Duration::from_secs(takes_it) {
                return Ok(());
            }
            // As a connect over vsock to a port where nobody listens.
            sleep(Duration::from_secs(2)).await;
            Err(errors[(at.len() - 1).min(errors.len() - 1)].into())
        };
        repeat(attempt, |text| told.push(text.to_owned())).await;
        (at, told)
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_listens_late_is_told() {
        assert_eq!(attempts(0, &[Errno::TIMEDOUT]).await, (vec![0], vec![]));
        let (at, told) = attempts(20, &[Errno::TIMEDOUT]).await;
        assert_eq!(at, [0, 3, 7, 13, 23]);
        let [first, last] = told.as_slice() else {
            panic!("{told:?}");
        };
        assert!(first.contains("timed out"), "{first}");
        assert_eq!(last, "a host has taken it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_pauses_end_growing_and_another_error_is_told() {
        let errors = [Errno::TIMEDOUT, Errno::TIMEDOUT, Errno::NODEV];
        let (at, told) = attempts(3600, &errors).await;
        let pauses = at.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(pauses.max(), Some(17));
        assert_eq!(told.len(), 3, "{told:?}");
    }
}
