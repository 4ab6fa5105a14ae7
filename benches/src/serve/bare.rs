//! What cannot be beaten: a client and a server that do nothing else.

use crate::Result;
use mvm_protocol::frame::encode_json;
use mvm_protocol::{Decoder, Frame};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// How this program is called to ask all agents of a folder.
pub(crate) const ASK: &str = "--ask";

/// How this program is called to serve a file to whoever comes.
pub(crate) const SERVE: &str = "--serve-file";

/// As many as `vm status` asks at once.
const AT_ONCE: usize = 256;

/// The handshakes and requests of `vm status`, as many at once.
pub(crate) fn ask(home: &Path) -> Result<()> {
    let entries = std::fs::read_dir(home.join("vms"))?;
    let sockets: std::io::Result<Vec<PathBuf>> = entries
        .map(|entry| Ok(entry?.path().join("v.sock")))
        .collect();
    let sockets = Arc::new(sockets?);
    let next = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut all = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (sockets, next) = (Arc::clone(&sockets), Arc::clone(&next));
            all.spawn(async move {
                while let Some(socket) = sockets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    one(socket).await?;
                }
                Ok::<_, std::io::Error>(())
            });
        }
        while let Some(done) = all.join_next().await {
            done??;
        }
        Ok(())
    })
}

async fn one(socket: &Path) -> std::io::Result<()> {
    let other = std::io::Error::other::<String>;
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(b"CONNECT 52\n").await?;
    let mut buffer = [0; 2048];
    let mut answered = Vec::new();
    while !answered.ends_with(b"\n") {
        let count = stream.read(&mut buffer).await?;
        answered.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 {
            return Err(other("closed".into()));
        }
    }
    let request = encode_json(br#"{"type":"status","id":1}"#);
    let request = request.map_err(|error| other(error.to_string()))?;
    stream.write_all(&request).await?;
    let mut decoder = Decoder::default();
    loop {
        let count = stream.read(&mut buffer).await?;
        decoder.push(buffer.get(..count).unwrap_or_default());
        match decoder.next_frame() {
            Ok(Some(Frame::Json(_))) => return Ok(()),
            Ok(None) if count > 0 => {}
            _ => return Err(other("no answer".into())),
        }
    }
}

/// Answers each request with the file, and says first where.
pub(crate) fn serve(file: &Path) -> Result<()> {
    let body = std::fs::read(file)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        stream.write_all(&body)?;
    }
    Ok(())
}
