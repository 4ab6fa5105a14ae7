//! `mvmctl vm forward`

use super::Context;
use super::dev::{failure, session};
use super::liveness;
use super::running::{LastHeard, Why};
use crate::args::Format;
use crate::render::data::{self, Named};
use crate::report::{Failure, Outcome, tell};
use crate::vm_name;
use crate::vm_state::{Now, VmStates};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mvm_client::dev::{FromPort, PortInput, PortOutput};
use mvm_client::{Error, Vm};
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

/// Forward a TCP port of this host to one on a guest's loopback (dev builds of the agent, and ports that
/// others expose)
///
/// Listens on 127.0.0.1 until it is interrupted. Each connection is one to the guest's agent; any
/// number at once. While the VM is frozen, asleep or stopped connections are closed at once. A guest
/// from which nothing comes for 15s, or for 5s more than --timeout, not even a heartbeat, ends it with
/// exit code 125.
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
        // Whether it can work at all is told before a port is taken.
        session(context, vm, &context.deadlines())
            .await?
            .serves("forward")
            .await
            .map_err(|error| failure(vm, &error))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.local));
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Failure::failed(format!("cannot listen on {address}: {error}"))
                .hint("give another port: LOCAL:PORT, or 0:PORT for any that is free")
        })?;
        let listening = listener.local_addr()?;
        let mut requests = context.termination_requests();
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
            failure = self.serve_while_it_runs(context, &listener) => Err(Failure {
                kind: failure.kind.of_what_was_begun(),
                ..failure
            }),
            _ = requests.next() => Ok(Outcome::Done),
        }
    }

    /// Serves while the VM runs, and takes no connection while it does not; gives the failure that
    /// ends it.
    async fn serve_while_it_runs(&self, context: &Context, listener: &TcpListener) -> Failure {
        let name = self.vm.name.as_str();
        let states = VmStates::new(context);
        let mut state = match states.of(name) {
            Ok(state) => state,
            Err(failure) => return failure,
        };
        loop {
            let vm = match state.now().await {
                Ok(Now::Runs(vm)) => vm,
                Ok(Now::Off(error)) => {
                    context.ui.note(&format!(
                        "{name}: {error}; connections are taken again when it runs"
                    ));
                    let off = async {
                        while let Ok(Now::Off(_)) = state.now().await {
                            state.changed().await;
                        }
                    };
                    while_refusing(listener, off).await;
                    continue;
                }
                Ok(Now::Ended(_, failure)) => return failure,
                Err(error) => return failure(name, &error),
            };
            let heard = LastHeard::now();
            let cut = tokio::select! {
                never = serve(context, &vm, self.ports.guest, listener, &heard) => match never {},
                cut = liveness::lost(context, &vm, &mut state, &heard) => cut,
            };
            // The connections are closed by now.
            match cut.why {
                Why::NotRunning(_) => {}
                Why::AboutToBeFrozen if state.is_told() => {
                    while_refusing(listener, state.frozen_or_not()).await;
                }
                Why::AboutToBeFrozen => {
                    return Failure {
                        retryable: true,
                        ..Failure::failed("the guest is being put to sleep").of(name)
                    }
                    .hint("nothing tells when it has woken: forward again then");
                }
                Why::StandsStill(failure) => return failure,
            }
        }
    }
}

/// Takes connections and closes them until that is done.
async fn while_refusing<T>(listener: &TcpListener, done: impl Future<Output = T>) -> T {
    tokio::pin!(done);
    loop {
        tokio::select! {
            biased;
            done = &mut done => return done,
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => drop(client),
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
        }
    }
}

async fn serve(
    context: &Context,
    vm: &Vm,
    port: NonZeroU16,
    listener: &TcpListener,
    heard: &LastHeard,
) -> std::convert::Infallible {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => open.push(join(context, vm, port, client, heard)),
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
    vm: &Vm,
    port: NonZeroU16,
    mut client: TcpStream,
    heard: &LastHeard,
) {
    // What is typed is to arrive as it is typed.
    let _ = client.set_nodelay(true);
    let joined = async {
        let mut session = context.connect(vm, &context.deadlines()).await?;
        let (to_port, from_port) = session.forward(port).await?.split();
        let (from_client, to_client) = client.split();
        // The agent's last frame ends it, or a client that is gone.
        tokio::select! {
            result = receive(from_port, to_client, heard) => result,
            () = send(from_client, to_port) => Ok(()),
        }
    };
    if let Err(error) = joined.await {
        let vm = vm.name.as_str();
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
pub(super) async fn send(mut client: ReadHalf<'_>, mut port: PortInput<'_>) {
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
pub(super) async fn receive(
    mut port: PortOutput<'_>,
    mut client: WriteHalf<'_>,
    heard: &LastHeard,
) -> Result<(), Error> {
    loop {
        let come = port.next().await?;
        heard.heard();
        let written = match come {
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
