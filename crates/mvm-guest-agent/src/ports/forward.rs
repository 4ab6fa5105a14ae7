//! `forward`: a connection relayed to a TCP port of the guest's loopback.

use super::audit::Audit;
use super::flow::{InputQueue, OutputSource};
use super::host::{Host, Sent, at};
use super::{Limits, reply};
use crate::core::open::Kind;
use crate::machine::descriptors::{for_a_host, is_shortage};
use crate::serve::connection::{Connection, Ending};
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::channel::{STDIN, STDOUT};
use mvm_protocol::dev::forward::{Forward, ForwardDone, ForwardStarted, PortAnswer, PortControl};
use rustix::fd::OwnedFd;
use rustix::net::{Shutdown, shutdown};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// On the loopback a connection is made at once, unless the listener's queue is full.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Joins the connection to a port until both sides have ended.
pub(crate) async fn serve(
    connection: &mut Connection,
    asked: Forward,
    id: Option<u64>,
    limits: Limits,
) -> Result<(), Ending> {
    let audit = Audit::begin("forward", "");
    let opened = match connection.handle.open(Kind::Active).await {
        Ok(mut admitted) => {
            let opened = tokio::select! {
                opened = open(asked) => opened,
                _ = &mut admitted.end => {
                    let message = "the guest goes to sleep, or its agent stops";
                    Err(ErrorAnswer::new(ErrorCode::Busy, message))
                }
            };
            opened.map(|port| (admitted, port))
        }
        Err(error) => Err(error),
    };
    let (mut admitted, (mut port, address)) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            audit.refused(&error);
            return reply::send(connection, PortAnswer::Error(error), id).await;
        }
    };
    let mut host = Host::new(connection, id, true);
    let address = address.to_string();
    host.answer(PortAnswer::ForwardStarted(ForwardStarted { address }));
    let served = port.serve(&mut host, &mut admitted.end, limits).await;
    let Port { sent, received, .. } = port;
    drop(port);
    drop(admitted);
    audit.end("closed");
    served?;
    host.answer(PortAnswer::ForwardDone(ForwardDone { sent, received }));
    host.finish().await
}

async fn open(asked: Forward) -> Result<(Port, SocketAddr), ErrorAnswer> {
    let port = asked.port.get();
    let mut refused = None;
    for address in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        let address = SocketAddr::new(address, port);
        let error = match timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let port = Port::new(stream).map_err(|error| cannot(port, &error))?;
                return Ok((port, address));
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::from(io::ErrorKind::TimedOut),
        };
        // What the first address has to say counts, unless it is that nobody listens there.
        if error.kind() != io::ErrorKind::ConnectionRefused {
            refused.get_or_insert(error);
        }
    }
    Err(match refused {
        // Without IPv6 the second address is none.
        Some(error) if error.kind() != io::ErrorKind::AddrNotAvailable => cannot(port, &error),
        _ => {
            let message = format!("nobody listens on port {port} of the guest's loopback");
            ErrorAnswer::new(ErrorCode::NotFound, message)
        }
    })
}

fn cannot(port: u16, error: &io::Error) -> ErrorAnswer {
    let code = match error.kind() {
        io::ErrorKind::TimedOut => ErrorCode::TimedOut,
        _ if is_shortage(error) => ErrorCode::Busy,
        _ => ErrorCode::Failed,
    };
    ErrorAnswer::new(
        code,
        format!("port {port} of the guest's loopback: {error}"),
    )
}

/// The port's side.
struct Port {
    /// Kept to say that there is no more to come.
    socket: OwnedFd,
    to: InputQueue,
    from: OutputSource,
    /// Whether the host has said that it has nothing more to send.
    host_ended: bool,
    sent: u64,
    received: u64,
}

impl Port {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let socket = OwnedFd::from(stream.into_std()?);
        // The last of them.
        let from = for_a_host(socket.try_clone()?)?;
        Ok(Self {
            to: InputQueue::new(socket.try_clone()?)?,
            from: OutputSource::new(from)?,
            socket,
            host_ended: false,
            sent: 0,
            received: 0,
        })
    }

    async fn serve(
        &mut self,
        host: &mut Host<'_, PortControl>,
        end: &mut oneshot::Receiver<()>,
        limits: Limits,
    ) -> Result<(), Ending> {
        let mut quiet_since = Instant::now();
        let mut carried = 0;
        loop {
            self.take(host).await?;
            if carried != self.sent + self.received {
                carried = self.sent + self.received;
                quiet_since = Instant::now();
            }
            if self.to.is_closed() {
                // All has been written, or nobody takes it any more.
                let _ = shutdown(&self.socket, Shutdown::Write);
                if self.from.is_closed() {
                    return Ok(());
                }
            }
            host.send().await?;
            tokio::select! {
                next = host.next(self.to.has_room()) => next?,
                () = self.to.takes() => self.to.write(),
                () = self.from.readable(), if host.out.is_empty() => {
                    let read = self.from.read(STDOUT, &mut host.out);
                    self.received += read as u64;
                    if self.from.is_broken() {
                        return Ok(());
                    }
                    if self.from.is_closed() {
                        host.answer(PortAnswer::ForwardEnd);
                    }
                }
                _ = &mut *end => return Ok(()),
                () = at(limits.quiet.map(|quiet| quiet_since + quiet)) => return Ok(()),
            }
        }
    }

    async fn take(&mut self, host: &mut Host<'_, PortControl>) -> Result<(), Ending> {
        while self.to.has_room()
            && let Some(sent) = host.sent().await?
        {
            match sent {
                Sent::Data(STDIN, bytes) if !self.host_ended => {
                    self.sent += bytes.len() as u64;
                    self.to.push(bytes);
                }
                Sent::Control(PortControl::ForwardEnd, _) => {
                    self.host_ended = true;
                    self.to.end();
                }
                Sent::Data(..) => {
                    host.refuse("a port takes data on channel 0, until its end", None);
                }
                Sent::Control(_, id) => host.refuse_control(id),
            }
        }
        Ok(())
    }
}
