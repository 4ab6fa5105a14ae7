//! In-memory pairs: a session at one end, a host at the other, and short timeouts.

use super::*;
use crate::core::lifecycle::Journal;
use crate::core::worker::BusyPolicy;
use crate::core::{Core, Settings};
use crate::machine::end_mark::EndMark;
use crate::machine::hypervisor_clock::HypervisorClock;
use crate::machine::inhibit::Inhibitors;
use crate::machine::journal::Files;
use crate::machine::local::LocalMachine;
use crate::machine::marks::MarkReader;
use crate::machine::process::Launcher;
use crate::machine::samples::Sampler;
use crate::machine::stream::pair;
use crate::machine::workload::FreezePolicy;
use crate::ports::Ports;
use crate::serve::driver::Driver;
use crate::serve::facts::Facts;
use mvm_protocol::frame::encode_json;
use mvm_protocol::{AnswerFrame, Decoder};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

pub(crate) const SHORT: Duration = Duration::from_millis(60);
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Long everywhere, so that a test shortens just what it is about.
pub(crate) const PATIENT: Timeouts = Timeouts {
    first_frame: LONG,
    within_frame: LONG,
    idle: LONG,
    linger: LONG,
};

pub(crate) struct Host {
    pub(crate) stream: UnixStream,
    pub(crate) decoder: Decoder,
    session: JoinHandle<Ending>,
}

impl Host {
    pub(crate) fn connect(handshake: Handshake, timeouts: Timeouts) -> Self {
        Self::connect_to(handshake, timeouts, |_| Ports::new(&[]))
    }

    /// Connects to an agent with that extension.
    pub(crate) fn connect_to<E: Extension>(
        handshake: Handshake,
        timeouts: Timeouts,
        extension: impl FnOnce(&Rc<Launcher>) -> E,
    ) -> Self {
        let (ours, theirs) = pair();
        theirs.set_nonblocking(true).unwrap();
        let (handle, extension) = agent(extension);
        let session = spawn_local(serve(ours, handshake, handle, extension, timeouts));
        let stream = UnixStream::from_std(theirs).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
            session,
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn request(&mut self, body: &str) {
        self.send(&encode_json(body.as_bytes()).unwrap()).await;
    }

    async fn answer(&mut self) -> AnswerFrame {
        loop {
            if let Some(Frame::Json(body)) = self.decoder.next_frame().unwrap() {
                return AnswerFrame::read(&body).unwrap();
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed");
            self.decoder.push(&buffer[..read]);
        }
    }

    /// The next answer, as it is; data before it is dropped.
    pub(crate) async fn json(&mut self) -> serde_json::Value {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                match frame {
                    Frame::Json(body) => return serde_json::from_slice(&body).unwrap(),
                    _ => continue,
                }
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "closed");
            self.decoder.push(&buffer[..read]);
        }
    }

    async fn error(&mut self) -> ErrorAnswer {
        match self.answer().await.answer {
            Answer::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn ending(self) -> Ending {
        tokio::time::timeout(LONG / 2, self.session)
            .await
            .expect("the session goes on")
            .unwrap()
    }
}

/// A connection that nobody serves yet.
pub(crate) fn connection(stream: Stream, timeouts: Timeouts) -> Connection {
    Connection::new(stream, agent(|_| Ports::new(&[])).0, timeouts)
}

/// An agent without drop-ins, beside the session.
fn agent<E: Extension>(extension: impl FnOnce(&Rc<Launcher>) -> E) -> (Handle, E) {
    static AGENTS: AtomicU32 = AtomicU32::new(0);
    // Of its own, since what it starts is ended by the next one of that name.
    let number = AGENTS.fetch_add(1, Ordering::Relaxed);
    let name = format!("mvm-no-such-folder-{}-{number}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    let busy = BusyPolicy {
        threshold: 0.1,
        signals: Vec::new(),
    };
    let settings = Settings {
        max_concurrent_checks: 4,
        sample_interval: LONG,
        busy,
        seed: 0,
        since_boot: Duration::ZERO,
    };
    let core = Core::new(settings, Journal::default(), clock::now());
    let sampler = Sampler::new(Vec::new(), Inhibitors::new(dir.clone()));
    let launcher = Rc::new(Launcher::new(&dir, false));
    let extension = extension(&launcher);
    let machine = LocalMachine {
        timer: clock::Timer::new().unwrap(),
        launcher,
        sampler: RefCell::new(sampler),
        files: Files::new(&dir),
        end_mark: EndMark::default(),
        folders: (dir.clone(), dir),
        effects: false,
        freeze: FreezePolicy::default(),
        outside: RefCell::default(),
        hypervisor_clock: HypervisorClock::of_guest(),
        marks: MarkReader::none(),
    };
    let facts = Facts::new(true, false);
    let driver = Driver::new(core, facts, machine, extension.clone(), None);
    let handle = driver.handle();
    spawn_local(driver.run());
    (handle, extension)
}

pub(crate) async fn story<F: Future<Output = ()>>(tell: F) {
    LocalSet::new().run_until(tell).await;
}

#[tokio::test]
async fn without_a_first_frame_the_host_is_cut_off() {
    story(async {
        let hasty = Timeouts {
            first_frame: SHORT,
            ..PATIENT
        };
        let host = Host::connect(Handshake::ByVmm, hasty);
        assert!(matches!(host.ending().await, Ending::TooSlow));
        let mut host = Host::connect(Handshake::ByVmm, hasty);
        host.send(&[0, 0]).await;
        assert!(matches!(host.ending().await, Ending::TooSlow));
        let host = Host::connect(Handshake::ByAgent, hasty);
        assert!(matches!(host.ending().await, Ending::TooSlow));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_stalls_within_a_later_frame_is_cut_off() {
    story(async {
        let mut host = Host::connect(
            Handshake::ByVmm,
            Timeouts {
                within_frame: SHORT,
                ..PATIENT
            },
        );
        host.request(r#"{"type":"ping"}"#).await;
        assert_eq!(host.answer().await.answer, Answer::Pong);
        host.send(&[0, 0, 0, 9, b'{']).await;
        assert!(matches!(host.ending().await, Ending::TooSlow));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_idles_is_cut_off_and_one_that_watches_is_not() {
    story(async {
        let hasty = Timeouts {
            idle: SHORT,
            ..PATIENT
        };
        let mut idle = Host::connect(Handshake::ByVmm, hasty);
        let mut watching = Host::connect(Handshake::ByVmm, hasty);
        watching
            .request(r#"{"type":"watch","heartbeat_secs":0.2}"#)
            .await;
        idle.request(r#"{"type":"ping"}"#).await;
        assert_eq!(idle.answer().await.answer, Answer::Pong);
        assert!(matches!(idle.ending().await, Ending::TooSlow));
        assert!(matches!(watching.answer().await.answer, Answer::Status(_)));
        for _ in 0..2 {
            loop {
                if let Answer::Event(Event {
                    change: Change::Heartbeat { .. },
                    ..
                }) = watching.answer().await.answer
                {
                    break;
                }
            }
        }
        drop(watching.stream);
        assert!(matches!(watching.session.await.unwrap(), Ending::Closed));
    })
    .await;
}

#[tokio::test]
async fn a_host_that_never_reads_is_cut_off() {
    story(async {
        let mut host = Host::connect(
            Handshake::ByVmm,
            Timeouts {
                idle: SHORT * 4,
                ..PATIENT
            },
        );
        let body = encode_json(br#"{"type":"inspect"}"#).unwrap();
        // More answers than two socket buffers hold.
        let flood = body.repeat(2000);
        let _ = host.stream.write_all(&flood).await;
        assert!(matches!(host.ending().await, Ending::TooSlow));
    })
    .await;
}

#[tokio::test]
async fn a_frame_over_the_cap_is_answered_although_its_body_keeps_coming() {
    story(async {
        let mut host = Host::connect(
            Handshake::ByVmm,
            Timeouts {
                linger: SHORT,
                ..PATIENT
            },
        );
        host.send(&300_000_u32.to_be_bytes()).await;
        host.send(&[b' '; 10_000]).await;
        assert_eq!(host.error().await.code, ErrorCode::FrameTooLarge);
        assert!(matches!(host.ending().await, Ending::Broken));
    })
    .await;
}

#[tokio::test]
async fn a_refused_host_is_told_after_its_handshake() {
    story(async {
        let (ours, theirs) = pair();
        theirs.set_nonblocking(true).unwrap();
        let session = spawn_local(async {
            refuse(ours, Handshake::ByAgent, agent(|_| Ports::new(&[])).0).await;
            Ending::Closed
        });
        let stream = UnixStream::from_std(theirs).unwrap();
        let mut host = Host {
            stream,
            decoder: Decoder::default(),
            session,
        };
        host.send(b"CONNECT 52\n").await;
        let mut line = [0; 6];
        host.stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"OK 52\n");
        assert_eq!(host.error().await.code, ErrorCode::TooManyConnections);
    })
    .await;
}

/// What is asked on a watching connection costs it nothing, and what is no frame ends it as elsewhere.
#[tokio::test]
async fn a_watching_host_that_breaks_the_framing_or_stops_within_a_frame_is_cut_off() {
    story(async {
        let hasty = Timeouts {
            within_frame: SHORT,
            linger: SHORT,
            ..PATIENT
        };
        let mut broken = Host::connect(Handshake::ByVmm, hasty);
        let mut slow = Host::connect(Handshake::ByVmm, hasty);
        for host in [&mut broken, &mut slow] {
            host.request(r#"{"type":"watch","heartbeat_secs":60}"#)
                .await;
            assert!(matches!(host.answer().await.answer, Answer::Status(_)));
        }
        broken.send(&[0xff; 4]).await;
        let code = loop {
            if let Answer::Error(error) = broken.answer().await.answer {
                break error.code;
            }
        };
        assert_eq!(code, ErrorCode::FrameTooLarge);
        assert!(matches!(broken.ending().await, Ending::Broken));
        slow.send(&[0, 0]).await;
        assert!(matches!(slow.ending().await, Ending::TooSlow));
    })
    .await;
}

#[tokio::test]
async fn two_hundred_watchers_that_never_read_block_no_request() {
    story(async {
        let (handle, extension) = agent(|_| Ports::new(&[]));
        let mut watchers = Vec::new();
        for _ in 0..200 {
            let (ours, theirs) = pair();
            let (handle, extension) = (handle.clone(), extension.clone());
            spawn_local(serve(ours, Handshake::ByVmm, handle, extension, PATIENT));
            theirs.set_nonblocking(true).unwrap();
            let mut stream = UnixStream::from_std(theirs).unwrap();
            let watch = encode_json(br#"{"type":"watch","heartbeat_secs":0.05}"#).unwrap();
            stream.write_all(&watch).await.unwrap();
            watchers.push(stream);
        }
        for _ in 0..50 {
            assert_eq!(handle.ask(Request::Ping).await, Answer::Pong);
            assert!(matches!(
                handle.ask(Request::Status).await,
                Answer::Status(_)
            ));
        }
        let queue = Rc::new(Queue::default());
        assert!(matches!(handle.watch(queue).await, Answer::Status(_)));
    })
    .await;
}

/// A task that has a turn whenever others let it, and how many it had.
fn turns() -> Rc<std::cell::Cell<usize>> {
    let had = Rc::new(std::cell::Cell::new(0));
    let counter = Rc::clone(&had);
    spawn_local(async move {
        loop {
            counter.set(counter.get() + 1);
            tokio::task::yield_now().await;
        }
    });
    had
}

#[tokio::test]
async fn others_have_their_turn_between_two_requests_of_a_host() {
    const REQUESTS: usize = 400;
    let story = async {
        let mut host = Host::connect(Handshake::ByVmm, PATIENT);
        let ping = encode_json(br#"{"type":"ping"}"#).unwrap();
        host.request(r#"{"type":"ping"}"#).await;
        host.answer().await;
        let had = turns();
        host.send(&ping.repeat(REQUESTS)).await;
        for _ in 0..REQUESTS {
            host.answer().await;
        }
        assert!(had.get() >= REQUESTS, "{}", had.get());
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn others_have_their_turn_while_hundreds_ask() {
    const HOSTS: usize = 400;
    let story = async {
        let (handle, _) = agent(|_| Ports::new(&[]));
        let asked: Vec<_> = (0..HOSTS)
            .map(|_| {
                let handle = handle.clone();
                spawn_local(async move { handle.ask(Request::Status).await })
            })
            .collect();
        let had = turns();
        for asked in asked {
            asked.await.unwrap();
        }
        assert!(had.get() >= HOSTS / 10, "{}", had.get());
    };
    LocalSet::new().run_until(story).await;
}
