//! Asking the program that serves this fleet, at its socket in `$MVM_HOME`.

use super::serve::SOCKET;
use crate::report::Failure;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use mvm_registry::Home;
use std::io;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The most that is read of an answer, in bytes: ten thousand pools have a tenth of it.
const MAX_BODY: usize = 32 << 20;

/// How long the server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Asks for a path. None if no server runs.
///
/// # Errors
///
/// A server that does not answer, or not as ours do.
pub(super) async fn get(home: &Home, path: &str) -> Result<Option<Bytes>, Failure> {
    let socket = home.root().join(SOCKET);
    let stream = match connect(home) {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => {
            let socket = socket.display();
            return Err(
                Failure::failed(format!("cannot connect to {socket}: {error}"))
                    .hint("it is for the user who runs `mvmctl fleet serve` alone"),
            );
        }
    };
    let failed = |what: &dyn std::fmt::Display| {
        Failure::failed(format!(
            "the server at {} does not answer: {what}",
            socket.display()
        ))
        .hint("its standard error may say why; `mvmctl fleet serve` has to be of this version, too")
    };
    match timeout(ANSWER_WITHIN, ask(stream, path)).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(failed(&"nothing came within 10 s")),
    }
}

fn connect(home: &Home) -> io::Result<UnixStream> {
    let socket = mvm_vmm::socket::connect(home.root(), SOCKET)?;
    UnixStream::from_std(socket.into())
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

type Problem = Box<dyn std::error::Error + Send + Sync>;

async fn ask(stream: UnixStream, path: &str) -> Result<Bytes, Problem> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(HOST, "fleet")
        .body(Empty::<Bytes>::new())?;
    let asking = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY)
            .collect()
            .await?
            .to_bytes();
        match status {
            // That it is not complete the body says, too.
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => Ok(body),
            other => Err(format!("HTTP {other}").into()),
        }
    };
    tokio::pin!(connection);
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        // It may have been answered before.
        _ = &mut connection => asking.await,
    }
}
