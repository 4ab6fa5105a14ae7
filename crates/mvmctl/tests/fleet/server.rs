//! A fleet, and `mvmctl fleet serve` that serves it.

use mvm_fake_fleet::{Behaviour, FakeFleet, Guests};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A deadline that is not meant to be met.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// `$MVM_HOME` with guests in it.
pub(crate) struct Fleet {
    pub(crate) agents: FakeFleet,
    // Behind the agents, which are in it.
    home: TempDir,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::of(Guests::default())
    }

    pub(crate) fn of(guests: Guests) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("mvmctl.toml"), "").unwrap();
        Self {
            agents: FakeFleet::start(home.path(), guests),
            home,
        }
    }

    pub(crate) fn and(mut self, name: &str, behaviour: Behaviour) -> Self {
        self.agents.set(name, behaviour);
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The command, in this fleet's folder.
    pub(crate) fn mvmctl(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvmctl"));
        command
            .args(args.split_whitespace())
            .env("MVM_HOME", self.path())
            .env("MVM_CONFIG", self.path().join("mvmctl.toml"))
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS");
        command
    }

    /// Serves it on a port of the system's choice. It listens when this returns.
    pub(crate) fn serve(&self, args: &str) -> Server {
        self.serve_on("127.0.0.1:0", args)
    }

    /// The same on another address.
    pub(crate) fn serve_on(&self, listen: &str, args: &str) -> Server {
        let mut command = self.mvmctl("fleet serve --listen");
        command
            .arg(listen)
            .args(args.split_whitespace())
            .stdin(Stdio::null());
        self.spawn(&mut command)
    }

    /// The same by any command that comes to it.
    pub(crate) fn spawn(&self, command: &mut Command) -> Server {
        let notify = self.path().join("notify");
        let _ = std::fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).unwrap();
        told.set_read_timeout(Some(LONG)).unwrap();
        let mut child = command
            .env("NOTIFY_SOCKET", &notify)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (said, says) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        let mut server = Server {
            child,
            address: String::new(),
            says,
            told,
        };
        let line = server.says("serving on ");
        let (_, address) = line.split_once("://").unwrap();
        server.address = address.to_owned();
        server
    }
}

/// `mvmctl fleet serve`, ended when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
    says: mpsc::Receiver<String>,
    told: UnixDatagram,
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

impl Server {
    /// The next line on stderr that has that text.
    pub(crate) fn says(&mut self, text: &str) -> String {
        let mut others = Vec::new();
        loop {
            match self.says.recv_timeout(LONG) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => others.push(line),
                Err(error) => panic!("{error}: not `{text}`, but {others:#?}"),
            }
        }
    }

    /// Waits until it has told its service manager that it is ready.
    pub(crate) fn ready(self) -> Self {
        self.notified("READY=1");
        self
    }

    pub(crate) fn notified(&self, what: &str) {
        let mut buffer = [0; 256];
        let count = self.told.recv(&mut buffer).unwrap();
        assert_eq!(String::from_utf8_lossy(&buffer[..count]).trim(), what);
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "")
    }

    /// `headers` is a line each, with its end.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str) -> Answer {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n",
            self.address
        );
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head[9..12].parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    /// The pool's numbers, once they are so.
    pub(crate) fn until(&self, pool: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.get(&format!("/v1/pools/{pool}"));
            let body = answer.json();
            if is_so(&body) {
                return body;
            }
            assert!(began.elapsed() < LONG, "still {body}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
