//! QEMU's control socket (QMP): a JSON object a line, asked and answered in turn, with events in
//! between. Each command has a number, which its answer repeats: one that comes after its time was up
//! is not taken for that of a later command.
//!
//! By hand, though there are types for all of QEMU's schema (qapi-qmp): of its hundreds of commands
//! a dozen are used, with two or three fields each, by QEMUs of many versions, each with a schema of
//! its own. And what makes up most of this file those types do not have: a bound on the length of a
//! line, deadlines, and handing over descriptors.

use crate::error::{Error, QmpFault};
use crate::socket;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long QEMU may take over an answer. Its commands answer at once; what takes long is told by
/// events.
const ANSWER: Duration = Duration::from_secs(10);

/// How often a full queue is tried again: there is no event to wait for.
const TICK: Duration = Duration::from_millis(20);

/// The longest line in bytes; QEMU's longest answers (schemas) are below it.
const MAX_LINE: u64 = 4 * 1024 * 1024;

/// A conversation with one QEMU.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Events that came while an answer was awaited.
    events: Vec<Value>,
    version: (u64, u64, u64),
    /// How long an answer may take.
    at_most: Duration,
    /// The number of the last command that was sent.
    sent: u64,
    /// What has come of a line whose end was not there in time.
    line: Vec<u8>,
}

impl Qmp {
    /// Connects, and gets past the greeting. `Ok(None)` if QEMU does not listen there (yet).
    pub fn connect(folder: &Path, socket: &str) -> Result<Option<Self>, Error> {
        Self::connect_within(folder, socket, ANSWER)
    }

    /// The same where connecting, the greeting and each answer may take no longer than that.
    pub fn connect_within(
        folder: &Path,
        socket: &str,
        at_most: Duration,
    ) -> Result<Option<Self>, Error> {
        let until = Instant::now() + at_most;
        let stream = match dial(folder, socket, at_most) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::io("connect to", &folder.join(socket))(error)),
        };
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
            version: (0, 0, 0),
            at_most,
            sent: 0,
            line: Vec::new(),
        };
        let doing = "connect";
        let greeting = qmp.read(doing, until)?;
        let Some(own) = greeting.get("QMP") else {
            let other = "something else than QEMU answers there";
            return Err(failed(doing, QmpFault::NotQmp, other));
        };
        let number = |part| {
            let path = format!("/version/qemu/{part}");
            own.pointer(&path).and_then(Value::as_u64).unwrap_or(0)
        };
        qmp.version = (number("major"), number("minor"), number("micro"));
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(Some(qmp))
    }

    /// Runs a command and gives what it returns.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        let id = self.send(command, arguments)?;
        self.answer(command, id)
    }

    /// The same of a command whose effect is looked at afterwards: it may be refused, and its answer be
    /// late.
    pub fn attempt(&mut self, command: &str, arguments: &Value) -> Result<(), Error> {
        match self.execute(command, arguments) {
            Err(Error::Qmp {
                fault: QmpFault::Refused | QmpFault::Silent,
                ..
            }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Runs commands of which none needs the answer of another, seven at most: QEMU goes from one to the
    /// next without being waited for. It takes them in order, those too that come after one that fails.
    pub fn execute_all<const N: usize>(
        &mut self,
        commands: [(&str, Value); N],
    ) -> Result<(), Error> {
        let mut sent = Vec::with_capacity(N);
        for (command, arguments) in commands {
            sent.push((command, self.send(command, &arguments)?));
        }
        let answers = sent.into_iter();
        let answers: Vec<_> = answers.map(|(what, id)| self.answer(what, id)).collect();
        answers.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Sends a command, and gives its number.
    fn send(&mut self, command: &str, arguments: &Value) -> Result<u64, Error> {
        let (id, line) = self.line_of(command, arguments);
        let sent = self.reader.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| broken(command, &error))?;
        Ok(id)
    }

    /// The next command's number and line.
    fn line_of(&mut self, command: &str, arguments: &Value) -> (u64, String) {
        self.sent += 1;
        let id = self.sent;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        (id, format!("{line}\n"))
    }

    /// QEMU's version: major, minor, micro.
    pub fn version(&self) -> (u64, u64, u64) {
        self.version
    }

    /// Hands QEMU an open file, which it then knows by that name. It need not be able to open it
    /// itself, and no shell reads its path.
    pub fn give(&mut self, name: &str, file: &File) -> Result<(), Error> {
        const COMMAND: &str = "getfd";
        let (id, line) = self.line_of(COMMAND, &json!({"fdname": name}));
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let sent = sendmsg(
            self.reader.get_ref(),
            &[IoSlice::new(line.as_bytes())],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(|errno| broken(COMMAND, &errno.into()))?;
        // A line this short is taken whole, or the socket's buffer is full of what nobody reads.
        if sent < line.len() {
            return Err(failed(COMMAND, QmpFault::Silent, "QEMU does not read"));
        }
        self.answer(COMMAND, id).map(drop)
    }

    /// Reads the answer to the command that was sent under that number. For those of earlier ones nobody
    /// waits any more.
    fn answer(&mut self, command: &str, id: u64) -> Result<Value, Error> {
        let until = Instant::now() + self.at_most;
        loop {
            let mut answer = self.read(command, until)?;
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if answer.get("id").and_then(Value::as_u64) != Some(id) {
                // It was late.
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            } else {
                let reason = answer.pointer("/error/desc").and_then(Value::as_str);
                let reason = reason.unwrap_or("it gave no reason");
                return Err(failed(command, QmpFault::Refused, reason));
            }
        }
    }

    /// Waits for the first event of that name that `wanted` takes, those included that have come
    /// already. Other events are dropped.
    pub fn wait_for_event(
        &mut self,
        name: &str,
        at_most: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Result<Value, Error> {
        let until = Instant::now() + at_most;
        let mut known = std::mem::take(&mut self.events).into_iter();
        loop {
            let event = match known.next() {
                Some(event) => event,
                None => self.read(name, until)?,
            };
            if event.get("event").and_then(Value::as_str) == Some(name) && wanted(&event) {
                self.events.extend(known);
                return Ok(event);
            }
        }
    }

    /// One line, read by then.
    fn read(&mut self, doing: &str, until: Instant) -> Result<Value, Error> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed(doing, QmpFault::Silent, "no answer in time"));
            }
            let step = self
                .reader
                .get_ref()
                .set_read_timeout(Some(left))
                .and_then(|()| {
                    let room = MAX_LINE.saturating_sub(self.line.len() as u64);
                    let mut reader = (&mut self.reader).take(room);
                    reader.read_until(b'\n', &mut self.line)
                });
            match step {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.line);
                    return serde_json::from_slice(&line).map_err(|error| {
                        let other = format!("the answer is no JSON: {error}");
                        failed(doing, QmpFault::NotQmp, &other)
                    });
                }
                Ok(0) if self.line.len() as u64 >= MAX_LINE => {
                    let long = format!("the answer has more than {MAX_LINE} bytes");
                    return Err(failed(doing, QmpFault::NotQmp, &long));
                }
                Ok(0) => {
                    let closed = "QEMU closed the connection";
                    return Err(failed(doing, QmpFault::Gone, closed));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(broken(doing, &error)),
            }
        }
    }
}

/// One that listens and takes no connection is given up after that time.
fn dial(folder: &Path, socket: &str, at_most: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + at_most;
    loop {
        match socket::connect(folder, socket) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) && Instant::now() < until =>
            {
                std::thread::sleep(TICK);
            }
            connected => {
                let stream = UnixStream::from(connected?);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

fn failed(doing: &str, fault: QmpFault, reason: &str) -> Error {
    Error::Qmp {
        doing: doing.to_owned(),
        reason: reason.to_owned(),
        fault,
    }
}

/// The connection is of no use any more.
fn broken(doing: &str, error: &io::Error) -> Error {
    failed(doing, QmpFault::Gone, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What QEMU answers to that command: that, with the command's number.
    fn numbered(reply: &str, command: &Value) -> String {
        let id = command["id"].as_u64().unwrap();
        let numbered = |kind: &str| format!("{{\"id\":{id},\"{kind}\":");
        reply
            .replace("{\"return\":", &numbered("return"))
            .replace("{\"error\":", &numbered("error"))
    }

    /// A QEMU that says its greeting, and then one of the replies to each line that it reads.
    fn qemu(
        replies: &'static [&'static str],
    ) -> (tempfile::TempDir, thread::JoinHandle<Vec<Value>>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{\"version\":{}}}\r\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut heard = Vec::new();
            for reply in ["{\"return\":{}}\n"].iter().chain(replies) {
                let Some(Ok(line)) = lines.next() else { break };
                let command = serde_json::from_str(&line).unwrap();
                let reply = numbered(reply, &command);
                heard.push(command);
                stream.write_all(reply.as_bytes()).unwrap();
            }
            heard
        });
        (folder, thread)
    }

    fn connect(folder: &tempfile::TempDir) -> Qmp {
        Qmp::connect(folder.path(), "qmp").unwrap().unwrap()
    }

    #[test]
    fn answers_are_told_from_events() {
        let (folder, thread) = qemu(&[concat!(
            "{\"event\":\"STOP\",\"data\":{}}\n{\"event\":\"DEVICE_DELETED\",",
            "\"data\":{\"device\":\"vsock0\"}}\n{\"return\":{\"status\":\"paused\"}}\n",
        )]);
        let mut qmp = connect(&folder);
        let status = qmp.execute("query-status", &json!({})).unwrap();
        assert_eq!(status["status"], "paused");
        let event = qmp
            .wait_for_event("DEVICE_DELETED", ANSWER, |event| {
                event["data"]["device"] == "vsock0"
            })
            .unwrap();
        assert_eq!(event["event"], "DEVICE_DELETED");
        drop(qmp);
        let heard = thread.join().unwrap();
        assert_eq!(heard[0]["execute"], "qmp_capabilities");
        assert_eq!(
            heard[1],
            json!({"execute": "query-status", "arguments": {}, "id": 2})
        );
    }

    #[test]
    fn a_refusal_has_qemus_words_and_garbage_is_told_as_such() {
        let (folder, thread) = qemu(&[
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Device 'x' not found\"}}\n",
            "HTTP/1.1 400 Bad Request\n",
        ]);
        let mut qmp = connect(&folder);
        let error = qmp.execute("device_del", &json!({"id": "x"})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot device_del through QEMU's control socket: Device 'x' not found"
        );
        let error = qmp.execute("query-status", &json!({})).unwrap_err();
        assert!(error.to_string().contains("no JSON"), "{error}");
        thread.join().unwrap();
        let error = qmp.execute("query-status", &json!({})).unwrap_err();
        assert!(matches!(error, Error::Qmp { .. }), "{error}");
        assert!(error.hint().contains("vm stop"), "{}", error.hint());
    }

    #[test]
    fn commands_at_once_are_told_apart_and_the_first_failure_is_told() {
        let (folder, thread) = qemu(&[
            "{\"return\":{}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such bus\"}}\n",
            "{\"event\":\"RESUME\",\"data\":{}}\n{\"return\":{}}\n",
            "{\"return\":{\"status\":\"running\"}}\n",
        ]);
        let mut qmp = connect(&folder);
        let none = || json!({});
        let all = [
            ("chardev-add", none()),
            ("device_add", none()),
            ("cont", none()),
        ];
        let error = qmp.execute_all(all).unwrap_err().to_string();
        assert!(error.contains("cannot device_add"), "{error}");
        assert!(error.contains("no such bus"), "{error}");
        let status = qmp.execute("query-status", &json!({})).unwrap();
        assert_eq!(status["status"], "running");
        drop(qmp);
        assert_eq!(thread.join().unwrap().len(), 5);
    }

    /// QEMU is held up for longer than it is waited for, in the middle of a line even.
    #[test]
    fn an_answer_that_is_late_is_not_taken_for_that_of_another_command() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let (silent, is_silent) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\":{}}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut next =
                || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
            let mut say = |text: &str| stream.write_all(text.as_bytes()).unwrap();
            say(&numbered("{\"return\":{}}\n", &next()));
            let late = numbered("{\"return\":{\"status\":\"late\"}}\n", &next());
            let (some, rest) = late.split_at(late.len() / 2);
            say(some);
            is_silent.recv().unwrap();
            let refused = next();
            say(rest);
            let why = "{\"error\":{\"desc\":\"there is none\"}}\n";
            say(&numbered(why, &refused));
            say(&numbered("{\"return\":[]}\n", &next()));
        });
        let at_most = Duration::from_millis(300);
        let qmp = Qmp::connect_within(folder.path(), "qmp", at_most).unwrap();
        let mut qmp = qmp.unwrap();
        let none = || json!({});
        let error = qmp.execute("query-status", &none()).unwrap_err();
        let is_silent = |error: &Error| {
            let silent = QmpFault::Silent;
            matches!(error, Error::Qmp { fault, .. } if *fault == silent)
        };
        assert!(is_silent(&error), "{error}");
        qmp.at_most = ANSWER;
        silent.send(()).unwrap();
        let error = qmp.execute("device_del", &none()).unwrap_err().to_string();
        assert!(error.contains("there is none"), "{error}");
        let devices = qmp.execute("qom-list", &none()).unwrap();
        assert_eq!(devices, json!([]));
        thread.join().unwrap();
    }

    #[test]
    fn a_full_queue_has_a_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _fills_it = dial(folder.path(), "qmp", ANSWER).unwrap();
        let error = dial(folder.path(), "qmp", Duration::from_millis(150)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_reached_and_an_absent_one_told() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(150));
        std::fs::create_dir(&deep).unwrap();
        assert!(Qmp::connect(&deep, "qmp").unwrap().is_none());
        let short = folder.path().join("qmp");
        let listener = UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, deep.join("qmp")).unwrap();
        let client = thread::spawn(move || Qmp::connect(&deep, "qmp"));
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"{\"QMP\":{}}\n{\"return\":{},\"id\":1}\n")
            .unwrap();
        assert!(client.join().unwrap().unwrap().is_some());
    }
}
