//! For tests alone: something on a Unix socket that behaves as the test says, well or badly.
//!
//! Each connection is served by a thread of its own with plain blocking calls, so that tests of
//! async code and of whole programs use the same helper. Dropping a [`FakeAgent`] ends its
//! connections and its threads.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "for tests alone"
)]

pub mod conduct;
mod dev;
pub mod faults;
mod flood;
mod late;
mod model;
mod unprivileged;
mod well;

pub use dev::dev;
pub use faults::Fault;
pub use flood::{ever_new_drop_ins, ever_new_names};
pub use model::Model;
pub use unprivileged::unprivileged;
pub use well::{answer_to, inspect, old, status, well};

use mvm_protocol::frame::{encode_data, encode_json};
use mvm_protocol::{Decoder, Frame};
use serde_json::Value;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Listens on a Unix socket until it is dropped.
#[derive(Debug)]
pub struct FakeAgent {
    path: PathBuf,
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    folder: Option<TempDir>,
}

#[derive(Debug, Default)]
struct Shared {
    ending: Mutex<bool>,
    ended: Condvar,
    accepted: AtomicUsize,
    connected: AtomicUsize,
    open: Mutex<Vec<UnixStream>>,
    late: late::Late,
}

impl FakeAgent {
    /// Listens in a folder of its own.
    pub fn start(behaviour: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut agent = Self::at(&folder.path().join("v.sock"), behaviour);
        agent.folder = Some(folder);
        agent
    }

    /// Listens at a path, whose folders are made if they are not there.
    pub fn at(path: &Path, behaviour: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = Arc::new(UnixListener::bind(path).unwrap());
        let shared = Arc::new(Shared::default());
        let accepting = std::thread::spawn({
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            move || accept(&listener, &shared, behaviour)
        });
        Self {
            path: path.to_owned(),
            listener,
            shared,
            accepting: Some(accepting),
            folder: None,
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The address by which it is dialled: `unix:PATH`.
    pub fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

fn accept(
    listener: &UnixListener,
    shared: &Arc<Shared>,
    behaviour: impl Fn(&mut Peer) + Send + Sync + 'static,
) {
    let behaviour = Arc::new(behaviour);
    let mut serving = Vec::new();
    for stream in listener.incoming() {
        if *shared.ending.lock().unwrap() {
            break;
        }
        let stream = stream.unwrap();
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
        let connected = shared.connected.fetch_add(1, Ordering::SeqCst) + 1;
        shared
            .open
            .lock()
            .unwrap()
            .push(stream.try_clone().unwrap());
        shared.late.accepted();
        serving.push(std::thread::spawn({
            let behaviour = Arc::clone(&behaviour);
            let shared = Arc::clone(shared);
            move || {
                let mut peer = Peer {
                    stream,
                    shared,
                    decoder: Decoder::default(),
                    number,
                    connected,
                };
                behaviour(&mut peer);
                peer.shared.connected.fetch_sub(1, Ordering::SeqCst);
                // The clone that waits to end the thread would keep the connection open.
                let _ = peer.stream.shutdown(Shutdown::Both);
                peer.shared.late.closed();
            }
        }));
    }
    for stream in shared.open.lock().unwrap().drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
    for thread in serving {
        let _ = thread.join();
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        *self.shared.ending.lock().unwrap() = true;
        self.shared.ended.notify_all();
        self.shared.late.end();
        // Ends the accept that is under way, also where the socket's file was moved.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The agent's end of one connection.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// How many connections were taken before this one.
    pub number: usize,
    /// How many there were when this one was taken, itself among them. Counted in the order in which
    /// they came, which the threads that serve them need not keep.
    pub connected: usize,
}

impl Peer {
    /// Reads what is sent first, which has to be `CONNECT 52` in one piece, as hybrid vsock asks.
    pub fn expect_connect(&mut self) {
        self.expect_connect_to(52);
    }

    /// The same for another port.
    pub fn expect_connect_to(&mut self, port: u32) {
        let expected = format!("CONNECT {port}\n");
        assert_eq!(self.read(), expected.as_bytes(), "not a CONNECT alone");
    }

    /// What comes next, as it comes; nothing when the client has closed.
    pub fn read(&mut self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).unwrap_or(0);
        buffer[..count].to_vec()
    }

    /// Takes CONNECT and answers OK, unless the client has closed before.
    pub fn shake_hands_if_asked(&mut self) -> bool {
        let mut buffer = [0; 64];
        let connects = matches!(self.stream.read(&mut buffer),
            Ok(count) if buffer[..count] == *b"CONNECT 52\n");
        connects && self.send(b"OK 1073741824\n")
    }

    /// Takes CONNECT and answers OK with the port of the VMM.
    pub fn shake_hands(&mut self) {
        self.expect_connect();
        self.send(b"OK 1073741824\n");
    }

    /// The next request, or whatever JSON the client sends; `None` when it has closed.
    pub fn request(&mut self) -> Option<Value> {
        match self.frame()? {
            Frame::Json(body) => Some(serde_json::from_slice(&body).unwrap()),
            frame => panic!("not JSON: {frame:?}"),
        }
    }

    /// The next frame; `None` when the client has closed.
    pub fn frame(&mut self) -> Option<Frame> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// Sends a frame.
    pub fn answer(&mut self, answer: &Value) {
        let frame = encode_json(answer.to_string().as_bytes()).unwrap();
        self.send(&frame);
    }

    /// Sends raw bytes on a channel, and says whether the client is still there.
    pub fn data(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.send(&encode_data(channel, bytes).unwrap())
    }

    /// Sends bytes as they are, and says whether the client is still there.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads and drops what comes until the client closes.
    pub fn until_closed(&mut self) {
        let mut buffer = [0; 4096];
        while matches!(self.stream.read(&mut buffer), Ok(count) if count > 0) {}
    }

    /// Reads and drops what comes for so long; whether the client has closed by then.
    pub fn is_closed_within(&mut self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut buffer = [0; 4096];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.stream.set_read_timeout(None).unwrap();
                return false;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return true,
                Ok(_) => {}
            }
        }
    }

    /// Reads so many bytes as they come, past what was read for the frames before them.
    pub fn read_raw(&mut self, count: usize) {
        self.stream.read_exact(&mut vec![0; count]).unwrap();
    }

    /// Whether the client has closed, as far as that has come here.
    pub fn is_closed(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(&self.stream, &mut [0; 1], flags), Ok((_, 0)))
    }

    /// Closes the connection, in the middle of whatever it is.
    pub fn hang_up(&mut self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Reads and writes nothing, and keeps the connection open as long as the agent lives.
    pub fn stall(&mut self) {
        let mut ending = self.shared.ending.lock().unwrap();
        while !*ending {
            ending = self.shared.ended.wait(ending).unwrap();
        }
    }
}
