//! The guest behind a stand-in, as a host can tell it from a real one: its agent answers on the
//! hybrid vsock socket, and is silent while the VM is paused or has not booted.
//!
//! What it is asked is written down in `calls.log` between the VMM's own calls, and `fault` can name
//! such a call too, as `guest sleep-prep refuse`. How many connections were open when the VM was
//! paused is written down as well: a host has to have closed its own by then.
//!
//! It works while a file `guest-works` is there, and says so; that it is made ready for a sleep then is
//! written down as `guest slept at work`. It exposes its ports: whatever comes to one goes back, after
//! the name of the VM's folder.
//!
//! A file `guest-health` has its one integration be of that health, and those who watch are told of
//! changes; with `silent` in it the guest answers nothing.

use crate::{fault, note};
use mvm_fake_agent::{FakeAgent, Peer, answer_to, status as status_of};
use mvm_protocol::{Frame, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// What a health is that is none: nothing is answered.
const SILENT: &str = "silent";

/// How long a connection that the host has closed may be counted still.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// How many connections a VMM has to its guest at most. Firecracker's limit; the others' is not known.
const MAX_CONNECTIONS: usize = 1023;

/// What a snapshot has of the guest.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// Whose token holds it, while it is ready.
    token: Option<String>,
    generation: u64,
}

#[derive(Debug, Default)]
struct State {
    runs: bool,
    /// Whether the VMM holds back what is sent to it.
    cut_off: bool,
    connections: usize,
    memory: Memory,
    worker: Worker,
}

/// Whether it works, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Worker {
    works: bool,
    since: Timestamp,
}

impl Default for Worker {
    fn default() -> Self {
        let since = now();
        Self {
            works: false,
            since,
        }
    }
}

/// While there is this file in its VM's folder, a guest that is woken waits until there is the other one.
const WAKE_WAITS: &str = "wake-waits";
const GO: &str = "go";

/// By which the guest of a test is at work.
const WORKS: &str = "guest-works";

/// How often is looked whether it works.
const TICK: Duration = Duration::from_millis(20);

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ms = since.expect("a time after 1970").as_millis();
    Timestamp(i64::try_from(ms).expect("a time before the sun has burnt out"))
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The guest of one stand-in.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    shared: Arc<Shared>,
    agent: Option<FakeAgent>,
}

impl Guest {
    /// The hybrid vsock socket is there from now on.
    pub(crate) fn open_vsock(&mut self, path: &str) -> Result<(), String> {
        if Path::new(path).symlink_metadata().is_ok() {
            return Err(format!("{path}: Address in use (os error 98)"));
        }
        if !Path::new(path)
            .parent()
            .is_some_and(|parent| parent == Path::new("") || parent.is_dir())
        {
            return Err(format!("{path}: No such file or directory (os error 2)"));
        }
        let shared = Arc::clone(&self.shared);
        self.agent = Some(FakeAgent::at(Path::new(path), move |peer| {
            shared.lock().connections += 1;
            if peer.connected <= MAX_CONNECTIONS {
                serve(&shared, peer);
            }
            shared.lock().connections -= 1;
            shared.changed.notify_all();
        }));
        Ok(())
    }

    /// Its CPUs run from now on.
    pub(crate) fn run(&self) {
        self.shared.lock().runs = true;
        self.shared.changed.notify_all();
    }

    /// Whether its VMM holds back what is sent to it from now on.
    pub(crate) fn cut_off(&self, cut_off: bool) {
        self.shared.lock().cut_off = cut_off;
        self.shared.changed.notify_all();
    }

    /// Its CPUs stand still from now on.
    pub(crate) fn pause(&self) {
        let until = Instant::now() + NOTICED_WITHIN;
        let mut state = self.shared.lock();
        while state.connections > 0 && Instant::now() < until {
            let wait = self.shared.changed.wait_timeout(state, NOTICED_WITHIN / 10);
            state = wait.expect("no thread panics").0;
        }
        if state.connections > 0 {
            note(&format!(
                "guest frozen with {} open connections",
                state.connections
            ));
        }
        state.runs = false;
    }

    /// What it remembers, for a snapshot.
    pub(crate) fn memory(&self) -> String {
        serde_json::to_string(&self.shared.lock().memory).expect("plain data")
    }

    /// Continues from what a snapshot has of it.
    pub(crate) fn remember(&self, memory: &str) -> Result<(), String> {
        let memory = serde_json::from_str(memory).map_err(|error| error.to_string())?;
        let mut state = self.shared.lock();
        state.memory = memory;
        state.worker = Worker::default();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    /// Waits until the guest runs and is reached.
    fn running(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while !state.runs || state.cut_off {
            state = self.changed.wait(state).expect("no thread panics");
        }
        state
    }
}

fn serve(shared: &Shared, peer: &mut Peer) {
    drop(shared.running());
    if !peer.shake_hands_if_asked() {
        return;
    }
    while let Some(request) = peer.request() {
        while health() == SILENT {
            if peer.is_closed_within(TICK) {
                return;
            }
        }
        if request["type"] == "wake" && Path::new(WAKE_WAITS).exists() {
            while !Path::new(GO).exists() {
                thread::sleep(TICK);
            }
        }
        let mut state = shared.running();
        let (call, mut answer) = match request["type"].as_str() {
            Some("sleep-prep") => ("guest sleep-prep".to_owned(), sleep(&mut state, &request)),
            Some("wake") => (name_of_wake(&request), wake(&mut state, &request)),
            Some("status") => (String::new(), status(&mut state)),
            Some("watch") => ("guest watch".to_owned(), status(&mut state)),
            Some("hello") => {
                let mut hello = answer_to(&request);
                let all = hello["capabilities"].as_array_mut().expect("a list");
                all.extend(["forward", "payload"].map(Value::from));
                (String::new(), hello)
            }
            Some("forward") => {
                drop(state);
                forward(peer, &request);
                continue;
            }
            _ => (String::new(), answer_to(&request)),
        };
        // What changes from here on a watch tells.
        let told = (state.worker, state.memory.token.is_some());
        drop(state);
        if !call.is_empty() {
            match fault(&call).as_deref() {
                None => note(&call),
                // Done, and the answer is lost.
                Some("cut") => {
                    note(&format!("{call} fault cut"));
                    return;
                }
                Some("hang") => {
                    note(&format!("{call} fault hang"));
                    loop {
                        thread::park();
                    }
                }
                // What was in the snapshot is not there any more.
                Some("afresh") => {
                    note(&format!("{call} fault afresh"));
                    answer["was_ready"] = false.into();
                }
                Some("refuse") => {
                    note(&format!("{call} fault refuse"));
                    shared.lock().memory.token = None;
                    answer = refusal();
                }
                // It runs, since nothing of it was frozen, and a personalize command has failed.
                Some("unfrozen") => {
                    note(&format!("{call} fault unfrozen"));
                    answer = not_personalized();
                }
                Some(other) => crate::quit(&format!("no such fault: {other}")),
            }
        }
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
        if request["type"] == "watch" {
            return watch(shared, peer, &request, told);
        }
    }
}

impl State {
    /// Whether it works now.
    fn worker(&mut self) -> Worker {
        let works = Path::new(WORKS).exists();
        if works != self.worker.works {
            let since = now();
            self.worker = Worker { works, since };
        }
        self.worker
    }
}

fn worker(worker: Worker) -> Value {
    let state = if worker.works { "busy" } else { "idle" };
    let because = if worker.works {
        json!(["inhibit"])
    } else {
        json!([])
    };
    json!({"state": state, "since": worker.since, "last_busy_at": null, "because": because,
        "load1": 0.0, "runnable": 1})
}

/// As the test says; by default it is well.
fn health() -> String {
    fs::read_to_string("guest-health").unwrap_or_else(|_| "healthy".into())
}

fn status(state: &mut State) -> Value {
    let mut status = status_of(&health());
    status["worker"] = worker(state.worker());
    status["now"] = json!(now());
    if state.memory.token.is_some() {
        status["lifecycle"] = "ready".into();
    }
    status
}

/// Tells whether it works and whether it is ready, when that is not as it was told any more, and that it
/// is there.
fn watch(shared: &Shared, peer: &mut Peer, request: &Value, mut told: (Worker, bool)) {
    let heartbeat = request["heartbeat_secs"].as_f64().unwrap_or(15.0);
    let heartbeat = Duration::from_secs_f64(heartbeat);
    let mut known = health();
    let mut next = Instant::now() + heartbeat;
    while !peer.is_closed_within(TICK) {
        let mut state = shared.running();
        let is = (state.worker(), state.memory.token.is_some());
        drop(state);
        let health = health();
        if health == SILENT {
            continue;
        }
        let mut event = if known != health {
            known.clone_from(&health);
            json!({"integration": status_of(&health)["integrations"][0]})
        } else if is.0 != told.0 {
            told.0 = is.0;
            json!({"worker": worker(is.0)})
        } else if is.1 != told.1 {
            told.1 = is.1;
            json!({"lifecycle": if is.1 { "ready" } else { "running" }})
        } else if Instant::now() >= next {
            json!({"heartbeat": true})
        } else {
            continue;
        };
        next = Instant::now() + heartbeat;
        event["type"] = "event".into();
        event["at"] = json!(now());
        event["id"] = request["id"].clone();
        peer.answer(&event);
    }
}

/// Sends back what comes, after the name of the VM's folder, until its end.
fn forward(peer: &mut Peer, request: &Value) {
    note("guest forward");
    let answer = |peer: &mut Peer, mut answer: Value| {
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
    };
    answer(
        peer,
        json!({"type": "forward-started", "address": "127.0.0.1:8080"}),
    );
    let folder = std::env::current_dir().expect("a folder");
    let name = folder.file_name().expect("a name").to_string_lossy();
    peer.data(1, format!("{name}:").as_bytes());
    let (mut sent, mut received) = (0, name.len() + 1);
    while let Some(frame) = peer.frame() {
        match frame {
            Frame::Data { bytes, .. } => {
                sent += bytes.len();
                received += bytes.len();
                peer.data(1, &bytes);
            }
            Frame::Json(_) => {
                answer(peer, json!({"type": "forward-end"}));
                let done = json!({"type": "forward-done", "sent": sent, "received": received});
                answer(peer, done);
                return;
            }
            Frame::EmptyData => {}
        }
    }
}

fn sleep(state: &mut State, request: &Value) -> Value {
    let token = request["token"].as_str().unwrap_or("made up").to_owned();
    match &state.memory.token {
        Some(held) if *held != token => error("busy", "another host's sleep holds the guest"),
        _ => {
            if state.worker().works {
                note("guest slept at work");
            }
            state.memory.token = Some(token.clone());
            let steps = json!([{"step": "drain", "integration": null, "outcome": "ok",
                "duration_ms": 1, "detail": null}]);
            json!({"type": "ready", "token": token, "steps": steps})
        }
    }
}

fn wake(state: &mut State, request: &Value) -> Value {
    let held = state.memory.token.take();
    if let (Some(held), Some(given)) = (&held, request["token"].as_str())
        && held != given
    {
        state.memory.token = Some(held.clone());
        return error("wrong-token", "another token holds the guest");
    }
    state.memory.generation += u64::from(request["cause"] != "aborted");
    let steps = json!([{"step": "resume", "integration": null, "outcome": "ok",
        "duration_ms": 1, "detail": null}]);
    json!({"type": "awake", "was_ready": held.is_some(), "lease_expired": false,
        "generation": state.memory.generation, "steps": steps})
}

/// With what the host is to hand in: `guest wake restored, clone, time, entropy`.
fn name_of_wake(request: &Value) -> String {
    let mut name = format!(
        "guest wake {}",
        request["cause"].as_str().unwrap_or("restored")
    );
    for (there, word) in [
        (request["clone"] == true, "clone"),
        (request["wall_clock"].is_string(), "time"),
        (request["entropy"].is_string(), "entropy"),
        (request["payload"].is_object(), "payload"),
    ] {
        if there {
            name += ", ";
            name += word;
        }
    }
    name
}

fn error(code: &str, message: &str) -> Value {
    let retryable = code == "busy";
    json!({"type": "error", "code": code, "message": message, "retryable": retryable})
}

fn not_personalized() -> Value {
    let message = "the personalize command of `network` failed: exit code 1; the guest's work was not \
                   frozen, and runs: end it, or send the wake again";
    let mut answer = error("failed", message);
    answer["retryable"] = true.into();
    answer["steps"] = json!([]);
    answer
}

fn refusal() -> Value {
    let message = "the checkpoint of `db` failed: exit code 3: the disk is on fire; the guest was \
                   rolled back and runs";
    let mut refusal = error("sleep-prep-failed", message);
    refusal["steps"] = json!([{"step": "checkpoint", "integration": "db", "outcome": "failed",
        "duration_ms": 3, "detail": "exit code 3: the disk is on fire"}]);
    refusal
}
