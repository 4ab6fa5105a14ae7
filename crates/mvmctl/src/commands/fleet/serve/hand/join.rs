//! A connection of this host's joined to a port in a guest.
//!
//! Nothing is read from the connection before the port is joined: what its other end has sent waits in
//! the socket, and is lost with neither a failed try nor a second one.

use crate::commands::Context;
use crate::commands::forward::{receive, send};
use crate::commands::running::LastHeard;
use mvm_client::Error;
use mvm_fleet::policy::Port;
use mvm_protocol::ErrorCode;
use std::num::NonZeroU16;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How often it is looked whether a connection is broken where the system has said that it may be.
const LOOK: Duration = Duration::from_millis(200);

/// What is said where the time for which a connection waits was over first.
const LATE: &str = "it did not answer in time";

/// Where a connection goes.
pub(super) struct Target<'a> {
    pub(super) context: &'a Context,
    pub(super) vm: &'a str,
    pub(super) port: Port,
}

/// Why a connection was not joined. Nothing of it was read.
pub(super) enum Unjoined {
    /// It may be a moment later, with this VM or another.
    NotYet(String),
    /// It will not be.
    Never(String),
}

/// Joins a connection to the port until both sides have ended.
pub(super) async fn join(
    target: &Target<'_>,
    client: &mut TcpStream,
    until: Instant,
) -> Result<(), Unjoined> {
    match target.port {
        Port::Tcp(port) => match NonZeroU16::new(port) {
            Some(port) => forward(target, port, client, until).await,
            None => Err(Unjoined::Never("port 0 is none".into())),
        },
        Port::Vsock(port) => raw(target, port, client, until).await,
    }
}

/// Has a connection end as one that broke off, and not as one that has come to its end.
pub(super) fn reset(client: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
}

/// By the guest's agent. Each way ends by itself.
async fn forward(
    target: &Target<'_>,
    port: NonZeroU16,
    client: &mut TcpStream,
    until: Instant,
) -> Result<(), Unjoined> {
    let context = target.context;
    let deadlines = context.deadlines();
    let opened = async {
        let inventory = context.inventory().map_err(|failure| failure.message)?;
        let found = inventory.now(target.vm, deadlines.connect).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok::<_, String>(context.connect(&found, &deadlines).await)
    };
    let late = |_| Unjoined::NotYet(format!("port {port} of the guest: {LATE}"));
    let mut session = timeout_at(until, opened)
        .await
        .map_err(late)?
        .map_err(Unjoined::NotYet)?
        .map_err(|error| unjoined(&error, port))?;
    let joined = timeout_at(until, session.forward(port))
        .await
        .map_err(late)?;
    let (to_port, from_port) = joined.map_err(|error| unjoined(&error, port))?.split();
    let heard = LastHeard::now();
    let (from_client, to_client) = client.split();
    // The agent's last frame ends it, or a client that is gone.
    let ended = tokio::select! {
        ended = receive(from_port, to_client, &heard) => ended,
        () = send(from_client, to_port) => Ok(()),
    };
    if ended.is_err() {
        reset(client);
    }
    Ok(())
}

/// Waits until a connection is of no use to anybody any more. That its other end has nothing more to
/// send says nothing: it may wait for an answer.
pub(super) async fn broken(stream: &TcpStream) {
    loop {
        let ready = stream.ready(tokio::io::Interest::ERROR).await;
        match (ready, stream.take_error()) {
            (Ok(_), Ok(None)) => tokio::time::sleep(LOOK).await,
            _ => return,
        }
    }
}

fn unjoined(error: &Error, port: NonZeroU16) -> Unjoined {
    let problem = format!("port {port} of the guest: {error}");
    match error {
        Error::NotServed { .. } => Unjoined::Never(format!(
            "{problem}; `\"expose\": [{port}]` in the guest's agent.json has it reached"
        )),
        Error::Refused(refusal) if refusal.code == ErrorCode::NotAllowed => {
            Unjoined::Never(problem)
        }
        // Nobody listens there yet, the guest is busy waking, or its VM is not to be dialled just now.
        _ => Unjoined::NotYet(problem),
    }
}

/// To a vsock port. Its other end cannot be told that the client has nothing more to send: hybrid vsock
/// knows no half of a connection.
async fn raw(
    target: &Target<'_>,
    port: u32,
    client: &mut TcpStream,
    until: Instant,
) -> Result<(), Unjoined> {
    let context = target.context;
    let deadlines = context.deadlines();
    let not_yet =
        |problem: String| Unjoined::NotYet(format!("vsock port {port} of the guest: {problem}"));
    let inventory = context.inventory();
    let inventory = inventory.map_err(|failure| not_yet(failure.message))?;
    let found = inventory.now(target.vm, deadlines.connect).await;
    let found = found.map_err(|error| not_yet(error.to_string()))?;
    let endpoint = found
        .endpoint()
        .map_err(|error| not_yet(error.to_string()))?;
    let endpoint = endpoint.clone().with_port(port);
    let dialled = context.dialer.connect_raw(&endpoint, &deadlines);
    let stream = timeout_at(until, dialled).await;
    let stream = stream.map_err(|_| not_yet(LATE.to_owned()))?;
    let stream = stream.map_err(|error| not_yet(error.to_string()))?;
    carry(client, stream).await;
    Ok(())
}

/// Carries bytes both ways until either side ends the connection.
async fn carry(client: &mut TcpStream, guest: impl AsyncRead + AsyncWrite) {
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let (mut from_client, mut to_client) = client.split();
    let sending = async {
        let mut buffer = vec![0; PIECE];
        loop {
            match from_client.read(&mut buffer).await {
                // It may still wait for the rest of an answer, or have closed: which of the two shows when
                // its system is asked whether it is there.
                Ok(0) => return broken(from_client.as_ref()).await,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if to_guest.write_all(bytes).await.is_err() {
                        // What the guest has sent before it closed is still to be carried.
                        return std::future::pending().await;
                    }
                }
                Err(_) => return,
            }
        }
    };
    let receiving = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = from_guest.read(&mut buffer).await {
            let bytes = buffer.get(..count).unwrap_or_default();
            if to_client.write_all(bytes).await.is_err() {
                return;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, UnixStream};

    #[tokio::test]
    async fn a_client_that_has_sent_all_is_answered_and_one_that_is_gone_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connecting, listener.accept());
        let (mut client, (mut accepted, _)) = (client.unwrap(), accepted.unwrap());
        let (guest, mut inside) = UnixStream::pair().unwrap();
        let carrying = tokio::spawn(async move { carry(&mut accepted, guest).await });
        client.write_all(b"ask").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = [0; 3];
        inside.read_exact(&mut asked).await.unwrap();
        inside.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert!(!carrying.is_finished());
        // Its system says so at once, in place of when it is asked.
        reset(&client);
        drop(client);
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, carrying)
            .await
            .unwrap()
            .unwrap();
    }
}
