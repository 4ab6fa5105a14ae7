//! The agent as a test has it: started, asked, killed.

use super::machine::{MachineStep, Script, SimulatedMachine};
use super::model::HOSTS;
use super::transition::Expect;
use crate::core::lifecycle::Journal;
use crate::core::registry::Loaded;
use crate::core::worker::BusyPolicy;
use crate::core::{Core, Settings};
use crate::machine::interface::Machine as _;
use crate::machine::journal::Files;
use crate::machine::stream::pair;
use crate::ports::Ports;
use crate::serve::connection::{Handshake, Timeouts};
use crate::serve::driver::Driver;
use crate::serve::facts::Facts;
use crate::serve::handle::Handle;
use crate::serve::session::serve;
use mvm_protocol::answer::{Answer, AnswerFrame, ErrorCode};
use mvm_protocol::drop_in;
use mvm_protocol::frame::encode_json;
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::status::{Lifecycle, Status};
use mvm_protocol::{Decoder, Frame};
use std::cell::Cell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};

/// The third connection: its only question is for the status.
const OBSERVER: usize = HOSTS;

/// Time in which all comes about that can without time.
const MOMENT: Duration = Duration::from_millis(1);

/// Longer than any walk.
const PATIENT: Timeouts = Timeouts {
    first_frame: Duration::from_hours(9),
    within_frame: Duration::from_hours(9),
    idle: Duration::from_hours(9),
    linger: Duration::from_hours(9),
};

pub(super) struct Agent {
    // Dropped in this order: what lives in the runtime goes before it.
    running: Option<RunningAgent>,
    script: Rc<Script>,
    run_dir: TempDir,
    runtime: Runtime,
}

/// What ends with the agent.
struct RunningAgent {
    tasks: LocalSet,
    handle: Handle,
    hosts: Vec<Host>,
}

struct Host {
    stream: UnixStream,
    decoder: Decoder,
}

impl Agent {
    pub(super) fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let script = runtime.block_on(async { Script::new(loaded()) });
        let mut agent = Self {
            running: None,
            script: Rc::new(script),
            run_dir: tempfile::tempdir().unwrap(),
            runtime,
        };
        agent.start();
        agent
    }

    fn files(&self) -> Files {
        Files::new(self.run_dir.path())
    }

    pub(super) fn journal(&self) -> Journal {
        self.files().read()
    }

    fn start(&mut self) {
        let tasks = LocalSet::new();
        let machine = SimulatedMachine {
            script: Rc::clone(&self.script),
            files: self.files(),
            deadline: Cell::default(),
        };
        let journal = self.journal();
        let (handle, hosts) = tasks.block_on(&self.runtime, async move {
            let busy = BusyPolicy {
                threshold: 0.1,
                signals: Vec::new(),
            };
            let settings = Settings {
                max_concurrent_checks: 4,
                sample_interval: Duration::from_secs(5),
                busy,
                seed: 7,
                since_boot: Duration::ZERO,
            };
            let core = Core::new(settings, journal, machine.now());
            let facts = Facts::new(true, false);
            let driver = Driver::new(core, facts, machine, Ports::new(&[]), None);
            let handle = driver.handle();
            spawn_local(driver.run());
            let hosts = (0..=OBSERVER).map(|_| connect(&handle)).collect();
            (handle, hosts)
        });
        self.running = Some(RunningAgent {
            tasks,
            handle,
            hosts,
        });
        self.wait(MOMENT);
    }

    fn running(&mut self) -> &mut RunningAgent {
        self.running.as_mut().unwrap()
    }

    /// Lets time pass, and with it all that comes about by then.
    fn wait(&mut self, time: Duration) {
        let running = self.running.as_ref().unwrap();
        let passed = async { sleep(time).await };
        running.tasks.block_on(&self.runtime, passed);
    }

    pub(super) fn ask(&mut self, host: usize, request: &str) {
        let frame = encode_json(request.as_bytes()).unwrap();
        self.running().hosts[host].stream.write_all(&frame).unwrap();
        self.wait(MOMENT);
    }

    pub(super) fn lose(&mut self, host: usize, half_a_frame: bool) {
        let RunningAgent {
            tasks,
            handle,
            hosts,
        } = self.running.as_mut().unwrap();
        if half_a_frame {
            let half = &encode_json(br#"{"type":"wake"}"#).unwrap()[..9];
            hosts[host].stream.write_all(half).unwrap();
        }
        hosts[host] = tasks.block_on(&self.runtime, async { connect(handle) });
        self.wait(MOMENT);
    }

    pub(super) fn end(&mut self, outcome: Outcome) {
        self.script.end(outcome);
        self.wait(MOMENT);
    }

    pub(super) fn pass(&mut self, secs: u8) {
        self.wait(Duration::from_secs(secs.into()));
    }

    pub(super) fn jump(&mut self) {
        self.script.jump();
        self.wait(MOMENT);
    }

    pub(super) fn crash(&mut self) {
        self.running = None;
        assert_eq!(self.script.doing(), None, "nothing outlives the agent");
        self.start();
    }

    /// The next answer to each of these hosts.
    pub(super) fn answers(&mut self, hosts: &[usize]) -> Vec<Expect> {
        let answer = |host: &usize| {
            let answer = self.stray_answer(*host);
            answer.unwrap_or_else(|| panic!("host {host} is not answered"))
        };
        hosts.iter().map(answer).collect()
    }

    /// An answer that has come to a host.
    pub(super) fn stray_answer(&mut self, host: usize) -> Option<Expect> {
        let answer = self.running().hosts[host].answer()?;
        Some(match &answer {
            Answer::Ready(_) => Expect::Ready,
            Answer::Checked(_) => Expect::Checked,
            Answer::Awake(awake) => Expect::Awake {
                was_ready: awake.was_ready,
                lease_expired: awake.lease_expired,
                generation: awake.generation,
            },
            Answer::Error(error) => match error.code.known() {
                Some(ErrorCode::SleepPrepFailed) => Expect::Failed,
                Some(ErrorCode::Busy) => Expect::Busy,
                Some(ErrorCode::WrongToken) => Expect::WrongToken,
                _ => panic!("{answer:?}"),
            },
            _ => panic!("{answer:?}"),
        })
    }

    pub(super) fn status(&mut self) -> Status {
        self.ask(OBSERVER, r#"{"type":"status"}"#);
        match self.running().hosts[OBSERVER].answer() {
            Some(Answer::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn doing(&self) -> Option<MachineStep> {
        self.script.doing()
    }

    /// What an observer can say without a model.
    pub(super) fn keeps_its_promises(&self, phase: Lifecycle) {
        let debts = self.script.debts.borrow();
        for (name, debts) in debts.iter().filter(|(name, _)| **name != 'c') {
            let at_most = i32::from(phase != Lifecycle::Running);
            let fine = (0..=at_most).contains(debts);
            assert!(fine, "{name} is owed {debts} restores in {phase:?}");
        }
    }

    pub(super) fn checks_run(&self) -> usize {
        self.script.checks.borrow().len()
    }

    /// Whether each check has run in the last seconds, and none more often than it is to.
    pub(super) fn has_checked_within(&self, secs: u64) {
        let since = self.script.checks.borrow();
        let now = self.runtime.block_on(async { Instant::now() });
        let recent = since
            .iter()
            .filter(|at| **at + Duration::from_secs(secs) > now);
        let integrations = self.script.loaded.integrations.len();
        let each = recent.count() / integrations;
        assert!(
            (1..=usize::try_from(secs).unwrap()).contains(&each),
            "{each}"
        );
    }
}

/// A session with its host.
fn connect(handle: &Handle) -> Host {
    let (ours, stream) = pair();
    stream.set_nonblocking(true).unwrap();
    let (handle, extension) = (handle.clone(), Ports::new(&[]));
    spawn_local(serve(ours, Handshake::ByVmm, handle, extension, PATIENT));
    Host {
        stream,
        decoder: Decoder::default(),
    }
}

impl Host {
    /// What has been answered; nothing if nothing has.
    fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some(Frame::Json(body)) = self.decoder.next_frame().unwrap() {
                return Some(AnswerFrame::read(&body).unwrap().answer);
            }
            let mut buffer = [0; 8192];
            match self.stream.read(&mut buffer) {
                Ok(0) => panic!("the agent has closed"),
                Ok(read) => self.decoder.push(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn loaded() -> Loaded {
    let integrations = [
        r#"{"name":"a","health_cmd":"true","health_interval_secs":1,
            "checkpoint_cmd":"true","restore_cmd":"true"}"#,
        r#"{"name":"b","health_cmd":"true","health_interval_secs":1,
            "checkpoint_cmd":"true","restore_cmd":"true","critical":false}"#,
        r#"{"name":"c","health_cmd":"true","health_interval_secs":1,"restore_cmd":"true"}"#,
    ];
    Loaded {
        integrations: integrations
            .iter()
            .map(|text| drop_in::read(text.as_bytes()).unwrap())
            .collect(),
        ..Loaded::default()
    }
}
