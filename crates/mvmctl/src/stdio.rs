//! Standard input, output and error as streams of bytes that nobody has to wait for.
//!
//! Reading and writing them blocks, and a terminal or pipe that stands still must not keep a signal
//! from being seen. So each is a thread's, joined to the runtime by a short queue: when that is full
//! the sender waits, and with it the guest. The threads are never waited for: one that stands still
//! ends with the process.
#![expect(
    clippy::disallowed_methods,
    reason = "it carries the bytes of a guest's command, as its user asked for"
)]

use crate::report::Failure;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::thread::Builder;
use tokio::sync::{mpsc, oneshot};

/// How much is read at once, in bytes: what fits a frame.
pub(crate) const PIECE: usize = mvm_protocol::MAX_BODY - 1;

/// How many pieces may wait to be sent or written.
const QUEUE: usize = 2;

/// What is read, piece by piece; it ends where that does, or after an error.
pub(crate) type Pieces = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// Reads standard input from now on.
pub(crate) fn read() -> Result<Pieces, Failure> {
    read_from(std::io::stdin())
}

/// The same of anything that can be read.
pub(crate) fn read_from(mut source: impl Read + Send + 'static) -> Result<Pieces, Failure> {
    let (pieces, received) = mpsc::channel(QUEUE);
    let reading = move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match source.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => Ok(buffer.get(..count).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    };
    Builder::new().name("reader".into()).spawn(reading)?;
    Ok(received)
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Why nothing more can be written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The reader of standard output has gone.
    Closed,
    /// The system refused it.
    Failed(std::io::Error),
}

/// Writes standard output and error.
#[derive(Debug)]
pub(crate) struct Writer {
    /// None once all was given.
    pieces: Option<mpsc::Sender<(Stream, Vec<u8>)>>,
    end: oneshot::Receiver<Result<(), WriteError>>,
}

impl Writer {
    /// Begins.
    pub(crate) fn start() -> Result<Self, Failure> {
        let (pieces, mut received) = mpsc::channel::<(Stream, Vec<u8>)>(QUEUE);
        let (ended, end) = oneshot::channel();
        let writing = move || {
            let mut result = Ok(());
            while let Some((stream, bytes)) = received.blocking_recv() {
                if let Err(error) = write(stream, &bytes) {
                    result = Err(error);
                    break;
                }
            }
            let _ = ended.send(result);
        };
        Builder::new().name("writer".into()).spawn(writing)?;
        Ok(Self {
            pieces: Some(pieces),
            end,
        })
    }

    /// Has this written next. Waits while what is written before it is not.
    pub(crate) async fn write(&mut self, stream: Stream, bytes: Vec<u8>) -> Result<(), WriteError> {
        if let Some(pieces) = &self.pieces
            && pieces.send((stream, bytes)).await.is_ok()
        {
            return Ok(());
        }
        Err(self.why().await)
    }

    /// Waits until all is written. After that nothing else may be asked.
    pub(crate) async fn finish(&mut self) -> Result<(), WriteError> {
        self.pieces = None;
        (&mut self.end).await.unwrap_or_else(|_| Err(ended()))
    }

    /// Waits until writing fails, and says why. After that nothing else may be asked.
    pub(crate) async fn why(&mut self) -> WriteError {
        match (&mut self.end).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => ended(),
        }
    }
}

/// Waits until nobody reads standard output any more, even if nothing is written to it. For ever
/// where that cannot be told: a file always has a reader.
pub(crate) async fn unread() {
    let (closed, is_closed) = oneshot::channel();
    let watching = move || {
        let stdout = std::io::stdout();
        let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
        // A pipe without a reader is an error to its writer, asked for or not.
        while let Err(Errno::INTR) = poll(&mut pipe, None) {}
        let _ = closed.send(());
    };
    let started = Builder::new().name("unread".into()).spawn(watching);
    if started.is_err() || is_closed.await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn ended() -> WriteError {
    WriteError::Failed(std::io::Error::other("its thread has ended"))
}

fn write(stream: Stream, bytes: &[u8]) -> Result<(), WriteError> {
    match stream {
        Stream::Stdout => write_all(std::io::stdout(), bytes).map_err(|error| {
            if error == Errno::PIPE {
                WriteError::Closed
            } else {
                WriteError::Failed(error.into())
            }
        }),
        // One that has gone leaves nobody to tell.
        Stream::Stderr => write_all(std::io::stderr(), bytes).or(Ok(())),
    }
}

/// Past the buffer of the standard library, which looks for lines. Others may have made the pipe
/// one that does not block.
pub(crate) fn write_all(stream: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&stream, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
