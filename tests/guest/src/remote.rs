//! Scripts that are run in a guest from outside, whatever its agent is doing: a service of the tests'
//! own guests, on a vsock port of its own.

use crate::short_path::ShortPath;
use std::path::Path;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// Where the service listens.
pub(crate) const REMOTE_PORT: u32 = 60;

/// Runs a script in the guest behind a socket, and gives what it printed. It has to succeed.
pub async fn run(socket: &Path, script: &str) -> String {
    // The service may come up after the agent.
    let mut stream = crate::eventually("somebody serves scripts", async || {
        let stream = UnixStream::connect(ShortPath::of(socket).path()).await;
        let mut stream = BufReader::new(stream.expect("connect"));
        let connect = format!("CONNECT {REMOTE_PORT}\n");
        stream.write_all(connect.as_bytes()).await.ok()?;
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        line.starts_with("OK ").then_some(stream)
    })
    .await;
    let mut line = String::new();
    let sent = format!("{}\n{script}", script.len());
    stream.write_all(sent.as_bytes()).await.expect("send");
    stream.read_line(&mut line).await.expect("an exit code");
    let (code, length) = line.trim().split_once(' ').expect("two numbers");
    let mut printed = vec![0; length.parse().expect("a length")];
    stream.read_exact(&mut printed).await.expect("its output");
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert_eq!(code, "0", "{script}\n{printed}");
    printed
}
