//! `mvmctl vm forward`

use super::Context;
use super::dev::{failure, session};
use crate::args::Format;
use crate::asked_to_end::AskedToEnd;
use crate::render::data::{self, Named};
use crate::report::{Failure, Outcome, tell};
use crate::vm_name;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mvm_client::dev::{FromPort, PortInput, PortOutput};
use mvm_client::{Endpoint, Error, Session};
use mvm_protocol::ErrorCode;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tracing::Instrument as _;

/// How much is read from a socket at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How long to wait when a connection cannot be taken, for want of descriptors for example.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Forward a TCP port of this host to one on a guest's loopback (dev builds of the agent)
///
/// Listens on 127.0.0.1 until it is interrupted. Each connection is one to the guest's agent; any
/// number at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The port here, 0 for any that is free [default: the guest's], and the guest's
    #[arg(value_name = "[LOCAL:]PORT", value_parser = ports)]
    ports: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    guest: NonZeroU16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let asked = "PORT or LOCAL:PORT is asked for, each from 1 to 65535; LOCAL can be 0";
    let (local, guest) = match text.split_once(':') {
        Some((local, guest)) => (Some(local), guest),
        None => (None, text),
    };
    let guest: NonZeroU16 = guest.parse().map_err(|_| asked)?;
    let local = local.map_or(Ok(guest.get()), |local| local.parse().map_err(|_| asked));
    Ok(Ports {
        local: local?,
        guest,
    })
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Shown {
    listening: SocketAddr,
    port: NonZeroU16,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        self.forward(context).instrument(span).await
    }

    async fn forward(&self, context: &Context) -> Result<Outcome, Failure> {
        let vm = self.vm.name.as_str();
        let mut asked = AskedToEnd::new()?;
        let inventory = context.inventory()?;
        let about = |error: Error| failure(vm, &error);
        let found = inventory.find(vm).map_err(|error| about(error.into()))?;
        let endpoint = found.endpoint().map_err(|error| about(error.into()))?;
        let endpoint = endpoint.clone();
        // Whether it can work at all is told before a port is taken.
        session(context, vm, &context.deadlines())
            .await?
            .serves("forward")
            .await
            .map_err(about)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.local));
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::failed(format!("cannot listen on {address}: {error}"))
                .hint("give another port: LOCAL:PORT, or 0:PORT for any that is free")
        })?;
        let listening = listener.local_addr()?;
        let guest = self.ports.guest;
        if matches!(context.format, Format::Json | Format::Yaml) {
            let answer = Shown {
                listening,
                port: guest,
            };
            data::line(context, &Named { vm, answer })?;
        }
        context.ui.note(&format!(
            "{listening} is port {guest} of {vm}; Ctrl-C ends it"
        ));
        tokio::select! {
            never = serve(context, vm, &endpoint, guest, &listener) => match never {},
            _ = asked.next() => Ok(Outcome::Done),
        }
    }
}

async fn serve(
    context: &Context,
    vm: &str,
    endpoint: &Endpoint,
    port: NonZeroU16,
    listener: &TcpListener,
) -> std::convert::Infallible {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => open.push(join(context, vm, endpoint, port, client)),
                Err(error) => {
                    context.ui.note(&format!("cannot take a connection: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(()) = open.next() => {}
        }
    }
}

/// One connection, from its beginning to its end.
async fn join(
    context: &Context,
    vm: &str,
    endpoint: &Endpoint,
    port: NonZeroU16,
    mut client: TcpStream,
) {
    // What is typed is to arrive as it is typed.
    let _ = client.set_nodelay(true);
    let joined = async {
        let mut session = Session::connect(endpoint, &context.deadlines()).await?;
        let (to_port, from_port) = session.forward(port).await?.split();
        let (from_client, to_client) = client.split();
        // The agent's last frame ends it, or a client that is gone.
        tokio::select! {
            result = receive(from_port, to_client) => result,
            () = send(from_client, to_port) => Ok(()),
        }
    };
    if let Err(error) = joined.await {
        let failure = failure(vm, &error);
        tell(
            context,
            &match &error {
                Error::Refused(refusal) if refusal.code == ErrorCode::NotFound => failure.hint(
                    format!("see what listens in the guest: mvmctl vm exec {vm} -- netstat -ltn"),
                ),
                _ => failure,
            },
        );
    }
}

/// From the client to the port. Ends only if the client broke off: that it has nothing more to send
/// is no end.
async fn send(mut client: ReadHalf<'_>, mut port: PortInput<'_>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let sent = match client.read(&mut buffer).await {
            Ok(0) => {
                // If this cannot be sent, receiving says why.
                let _ = port.end().await;
                return std::future::pending().await;
            }
            Ok(count) => port.write(buffer.get(..count).unwrap_or_default()).await,
            Err(_) => return,
        };
        if sent.is_err() {
            return std::future::pending().await;
        }
    }
}

/// From the port to the client.
async fn receive(mut port: PortOutput<'_>, mut client: WriteHalf<'_>) -> Result<(), Error> {
    loop {
        let written = match port.next().await? {
            FromPort::Bytes(bytes) => client.write_all(&bytes).await,
            FromPort::End => client.shutdown().await,
            FromPort::Done(_) => return Ok(()),
        };
        if written.is_err() {
            // The client is gone, and with it the reason for the connection.
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_they_are_written() {
        let parsed = |text| ports(text).map(|ports| (ports.local, ports.guest.get()));
        assert_eq!(parsed("8080"), Ok((8080, 8080)));
        assert_eq!(parsed("9000:80"), Ok((9000, 80)));
        assert_eq!(parsed("0:80"), Ok((0, 80)));
        for text in ["", ":", "0", "80:0", "x:80", "80:", "70000", "1:2:3"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
