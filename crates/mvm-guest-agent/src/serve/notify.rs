//! Tells the host that the agent listens, without being asked: one `status` frame to a vsock port
//! of the host.

use super::encode;
use super::handle::Handle;
use crate::machine::console::say;
use crate::machine::stream::Stream;
use mvm_protocol::request::Request;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use rustix::fd::{AsRawFd, OwnedFd};
use std::io;
use std::time::Duration;
use tokio::time::timeout;

/// The host's CID: `VMADDR_CID_HOST` of vsock(7).
const HOST: u32 = 2;

/// A host that does not answer must not keep a descriptor here for long.
const WITHIN: Duration = Duration::from_secs(5);

/// Dials the host once and writes how things are. A host that does not listen is no fault: it may
/// not care.
pub(crate) async fn notify(port: u32, handle: Handle) {
    match timeout(WITHIN, send_status(port, &handle)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say!("notify_port {port}: {error}"),
        Err(_) => say!(
            "notify_port {port}: no answer within {} s",
            WITHIN.as_secs()
        ),
    }
}

async fn send_status(port: u32, handle: &Handle) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let connecting = match connect(fd.as_raw_fd(), &VsockAddr::new(HOST, port)) {
        Ok(()) => false,
        Err(nix::errno::Errno::EINPROGRESS) => true,
        Err(error) => return Err(error.into()),
    };
    let stream = Stream::new(fd)?;
    if connecting {
        // Whether it came to a connection or to an error, the first write tells.
        stream.has_room().await?;
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
