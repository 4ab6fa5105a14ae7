//! An agent as a process of this machine, and one connection to it.

use crate::Result;
use mvm_protocol::frame::{Decoder, Frame, encode_json};
use mvm_protocol::handshake::{connect_line, ok_line};
use mvm_protocol::{MAX_BODY, PORT};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The frame of `{"type":"ping"}`.
pub(crate) fn ping() -> Result<Vec<u8>> {
    Ok(encode_json(br#"{"type":"ping"}"#)?)
}

/// A running agent, ended when dropped.
pub(crate) struct Agent {
    process: Child,
    dir: TempDir,
}

impl Agent {
    /// Starts an agent on a Unix socket. `drop_ins`: the content of each integration.
    pub(crate) fn start(program: &Path, drop_ins: &[String]) -> Result<Self> {
        let dir = TempDir::new()?;
        for sub in ["integrations.d", "probes.d", "run"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        for (number, content) in drop_ins.iter().enumerate() {
            let file = dir.path().join(format!("integrations.d/{number}.json"));
            fs::write(file, content)?;
        }
        let listen = format!("unix:{}", dir.path().join("agent.sock").display());
        let process = Command::new(program)
            .args(["--no-system-effects", "--listen", &listen])
            .arg("--integrations-dir")
            .arg(dir.path().join("integrations.d"))
            .arg("--probes-dir")
            .arg(dir.path().join("probes.d"))
            .arg("--run-dir")
            .arg(dir.path().join("run"))
            // Not the machine's own configuration.
            .arg("--config")
            .arg(Self::empty_config(dir.path())?)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, dir })
    }

    fn empty_config(dir: &Path) -> Result<PathBuf> {
        let file = dir.join("agent.json");
        fs::write(&file, "{}")?;
        Ok(file)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Connects as soon as the agent listens.
    pub(crate) fn connect(&mut self) -> Result<Connection> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let socket = self.dir.path().join("agent.sock");
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => return Connection::open(stream),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(format!("the agent ended: {status}").into());
            }
            if Instant::now() > deadline {
                return Err("the agent does not listen after 10 s".into());
            }
            // This polls, since the first moment at which a connection succeeds is what is
            // measured.
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A blocking connection after its handshake.
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to a guest.
    pub(crate) fn dial(socket: &Path) -> Result<Self> {
        Self::open(UnixStream::connect(socket)?)
    }

    fn open(mut stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(connect_line(PORT).as_bytes())?;
        let mut answer = vec![0; ok_line(PORT).len()];
        stream.read_exact(&mut answer)?;
        if answer != ok_line(PORT).as_bytes() {
            return Err("the handshake was not answered with OK".into());
        }
        let (decoder, buffer) = (Decoder::default(), vec![0; 4096]);
        Ok(Self {
            stream,
            decoder,
            buffer,
        })
    }

    /// Sends a frame and reads the answer up to the body that this text is in, without looking at
    /// what comes before it: data frames are passed over as fast as they come. Gives how many bytes
    /// of data that were.
    pub(crate) fn read_until(&mut self, frame: &[u8], last: &[u8]) -> Result<u64> {
        const READ: usize = 256 * 1024;
        self.stream.write_all(frame)?;
        let (mut data, mut skip) = (0, 0_usize);
        let mut buffer = vec![0; 2 * READ];
        let (mut start, mut end) = (0, 0);
        loop {
            // A data frame's body is of no interest; anything else has to be whole.
            let held = end - start;
            let skipped = skip.min(held);
            (start, skip) = (start + skipped, skip - skipped);
            let rest = buffer.get(start..end).unwrap_or_default();
            if let Some((header, body)) = rest.split_first_chunk::<4>()
                && skip == 0
            {
                let header = u32::from_be_bytes(*header);
                let length = (header & 0x7fff_ffff) as usize;
                if header >> 31 == 1 {
                    data += length as u64 - 1;
                    (start, skip) = (start + 4, length);
                    continue;
                }
                if let Some(body) = body.get(..length) {
                    if body.windows(last.len()).any(|part| part == last) {
                        return Ok(data);
                    }
                    start += 4 + length;
                    continue;
                }
            }
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            let room = buffer.get_mut(end..end + READ).ok_or("a frame too large")?;
            match self.stream.read(room)? {
                0 => return Err("the agent closed the connection".into()),
                count => end += count,
            }
        }
    }

    /// Sends a frame and gives the body of the answer.
    pub(crate) fn ask(&mut self, frame: &[u8]) -> Result<Vec<u8>> {
        debug_assert!(frame.len() <= MAX_BODY);
        self.stream.write_all(frame)?;
        loop {
            if let Some(Frame::Json(body)) = self.decoder.next_frame()? {
                return Ok(body);
            }
            match self.stream.read(&mut self.buffer)? {
                0 => return Err("the agent closed the connection".into()),
                count => self
                    .decoder
                    .push(self.buffer.get(..count).unwrap_or_default()),
            }
        }
    }
}
