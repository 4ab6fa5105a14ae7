//! A folder of this host as a tar stream.

use crate::stdio::{PIECE, Pieces};
use mvm_client::dev::archive;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Packs a folder's entries, sorted by name, with paths relative to it.
pub(super) fn pack(folder: PathBuf) -> io::Result<Pieces> {
    let (pieces, received) = mpsc::channel(2);
    let failed = pieces.clone();
    let packing = move || {
        let stream = BufWriter::with_capacity(PIECE, Channel(pieces));
        if let Err(error) = archive::pack(&folder, stream) {
            let _ = failed.blocking_send(Err(error));
        }
    };
    std::thread::Builder::new()
        .name("tar".into())
        .spawn(packing)?;
    Ok(received)
}

/// The writing end of a channel of pieces.
struct Channel(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..PIECE).unwrap_or(bytes);
        match self.0.blocking_send(Ok(bytes.to_vec())) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
