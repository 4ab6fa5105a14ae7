//! The conformance vectors of `docs/vectors`, played against a running agent over its Unix socket.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mvm_protocol::frame::{Decoder, Frame, encode_json};
use mvm_protocol::handshake::{connect_line, ok_line};
use mvm_protocol::{MAX_BODY, PORT};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent without drop-ins, ended when dropped.
struct Agent {
    process: Child,
    dir: TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        for sub in ["integrations.d", "probes.d", "run"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        std::fs::write(dir.path().join("agent.json"), "{}").unwrap();
        // As systemd does it: the agent says when it listens.
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_mvm-guest-agent"))
            .arg("--no-system-effects")
            .args(["--config", "agent.json", "--listen", "unix:agent.sock"])
            .args([
                "--integrations-dir",
                "integrations.d",
                "--probes-dir",
                "probes.d",
            ])
            .args(["--run-dir", "run"])
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, dir };
        let mut message = [0; 256];
        let count = notify.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..count]).into_owned();
        assert!(message.lines().any(|line| line == "READY=1"), "{message}");
        agent
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection after its handshake.
    fn connection(&self) -> Connection {
        let mut stream = self.connect();
        stream.write_all(connect_line(PORT).as_bytes()).unwrap();
        let mut line = vec![0; ok_line(PORT).len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, ok_line(PORT).as_bytes());
        let decoder = Decoder::default();
        Connection { stream, decoder }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
}

impl Connection {
    /// The next answer; `None` at the end of the stream.
    fn answer(&mut self) -> Option<Value> {
        let mut buffer = vec![0; MAX_BODY];
        loop {
            match self.decoder.next_frame().unwrap() {
                Some(Frame::Json(body)) => return Some(serde_json::from_slice(&body).unwrap()),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether nothing has come and the connection is open.
    fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let read = self.stream.read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
            && self.decoder.next_frame() == Ok(None)
    }
}

fn cases(file: &str, key: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/vectors")
        .join(file);
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = file[key].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Pieces of hex, some of them repeated.
fn bytes(pieces: &Value) -> Vec<u8> {
    let piece = |piece: &Value| match piece.get("repeat") {
        Some(repeated) => {
            let times = usize::try_from(piece["times"].as_u64().unwrap()).unwrap();
            hex(repeated).repeat(times)
        }
        None => hex(piece),
    };
    pieces.as_array().unwrap().iter().flat_map(piece).collect()
}

/// Whether an answer has every field that is expected of it.
fn is_as_expected(answer: &Value, expected: &Value) -> bool {
    let fields = expected.as_object().unwrap().iter();
    let message = answer["message"].as_str().unwrap_or_default();
    let has_all = fields
        .filter(|(name, _)| *name != "names")
        .all(|(name, value)| {
            let got = &answer[name];
            got == value
        });
    let named = expected["names"].as_str().unwrap_or_default();
    has_all
        && answer.get("id") == expected.get("id")
        && message.contains(named)
        && !message.contains(char::is_control)
}

#[test]
fn requests() {
    let agent = Agent::start();
    let (mut waiting, mut closed) = (Vec::new(), Vec::new());
    for case in cases("requests.json", "cases") {
        let name = case["name"].as_str().unwrap().to_owned();
        let mut connection = agent.connection();
        connection.stream.write_all(&bytes(&case["bytes"])).unwrap();
        for expected in case["answers"].as_array().unwrap() {
            let answer = connection.answer();
            let answer = answer.unwrap_or_else(|| panic!("{name}: closed before {expected}"));
            assert!(
                is_as_expected(&answer, expected),
                "{name}: expected {expected}, got {answer}"
            );
        }
        match case["after"].as_str().unwrap() {
            "open" => {
                let further = encode_json(br#"{"type":"ping","id":424242}"#).unwrap();
                connection.stream.write_all(&further).unwrap();
                let pong = json!({"type": "pong", "id": 424_242});
                assert_eq!(connection.answer(), Some(pong), "{name}");
            }
            "closed" => closed.push((name, connection)),
            "waits" => waiting.push((name, connection)),
            other => panic!("{name}: {other}"),
        }
    }
    // Looked at last: those that stalled in a frame have delayed nobody meanwhile, and those that
    // are cut off may first be told why in peace.
    for (name, mut connection) in waiting {
        assert!(connection.is_silent(), "{name}");
    }
    for (name, mut connection) in closed {
        assert_eq!(connection.answer(), None, "{name}");
    }
}

#[test]
fn handshake() {
    let agent = Agent::start();
    for case in cases("handshake.json", "connect") {
        let mut stream = agent.connect();
        stream.write_all(&hex(&case["bytes"])).unwrap();
        let name = &case["name"];
        if case["answer"].is_null() {
            match stream.read(&mut [0; 1]) {
                Ok(0) => {}
                // It closed without reading all that was sent.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => panic!("{name}: {other:?}"),
            }
        } else {
            let expected = hex(&case["answer"]);
            let mut line = vec![0; expected.len()];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(line, expected, "{name}");
        }
    }
}
