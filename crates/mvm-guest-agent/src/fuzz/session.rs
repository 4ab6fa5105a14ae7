//! A host's whole conversation with the agent: its session, its driver and its core.
//!
//! The input's first two bytes are the sizes of the pieces in which the rest is sent. However it is
//! cut, the answers are the same; each request has one, in order, with its own number; and none has
//! anything in it that a terminal would obey where a message belongs.

use super::machine::FastMachine;
use super::settings;
use crate::core::Core;
use crate::core::lifecycle::Journal;
use crate::core::registry::Loaded;
use crate::machine::interface::Machine as _;
use crate::machine::stream::Stream;
use crate::ports::Ports;
use crate::serve::connection::{Handshake, Timeouts};
use crate::serve::driver::Driver;
use crate::serve::facts::Facts;
use crate::serve::session::serve;
use mvm_protocol::request::ParsedRequest;
use mvm_protocol::{Decoder, Frame, drop_in};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use serde_json::Value;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{LocalSet, spawn_local, yield_now};

/// The sizes of pieces, and what a host sends after the handshake.
pub fn agent_session() -> impl FnMut(&[u8]) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    move |input| {
        let Some((sizes, stream)) = input.split_first_chunk::<2>() else {
            return;
        };
        let whole = answers(&runtime, stream, &[]);
        check_numbers(stream, &whole);
        assert_eq!(answers(&runtime, stream, sizes), whole);
    }
}

/// All that the agent answers until the host closes.
fn answers(runtime: &Runtime, stream: &[u8], sizes: &[u8]) -> Vec<Value> {
    let (ours, host) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    let tasks = LocalSet::new();
    let received = tasks.block_on(runtime, async {
        let machine = FastMachine { loaded: loaded() };
        let core = Core::new(settings(), Journal::default(), machine.now());
        let facts = Facts::new(true, false);
        let driver = Driver::new(core, facts, machine, Ports::new(&[]), None);
        let handle = driver.handle();
        spawn_local(driver.run());
        // Until it has read its drop-ins, of which it would tell a watcher.
        for _ in 0..8 {
            yield_now().await;
        }
        let timeouts = Timeouts {
            linger: Duration::ZERO,
            ..Timeouts::default()
        };
        let ours = Stream::new(ours.into()).unwrap();
        let session = serve(ours, Handshake::ByVmm, handle, Ports::new(&[]), timeouts);
        spawn_local(session);
        let host = Rc::new(tokio::net::UnixStream::from_std(host).unwrap());
        let receiving = spawn_local(read_all(Rc::clone(&host)));
        for piece in pieces(stream, sizes) {
            // Nobody reads the rest if the framing is broken.
            if send(&*host, piece, SendFlags::NOSIGNAL).is_err() {
                break;
            }
            yield_now().await;
            yield_now().await;
        }
        shutdown(&*host, Shutdown::Write).unwrap();
        receiving.await.unwrap()
    });
    let mut decoder = Decoder::default();
    decoder.push(&received);
    let mut answers = Vec::new();
    while let Some(frame) = decoder.next_frame().unwrap() {
        let Frame::Json(body) = frame else {
            panic!("{frame:?}");
        };
        answers.push(lasting(serde_json::from_slice(&body).unwrap()));
    }
    assert!(!decoder.is_mid_frame());
    answers
}

/// All that comes until the agent closes.
async fn read_all(host: Rc<tokio::net::UnixStream>) -> Vec<u8> {
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    while host.readable().await.is_ok() {
        match host.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => received.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // It closed with something unread, which it may if the framing is broken.
            Err(_) => break,
        }
    }
    received
}

/// In pieces of these sizes, over and over; whole if there is none, or one is 0.
fn pieces<'a>(stream: &'a [u8], sizes: &[u8]) -> Vec<&'a [u8]> {
    if sizes.is_empty() || sizes.contains(&0) {
        return vec![stream];
    }
    let (mut pieces, mut rest) = (Vec::new(), stream);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(usize::from(*size)));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// What is the same in two conversations: not what is measured, and no token that was made up.
fn lasting(mut answer: Value) -> Value {
    let Some(fields) = answer.as_object_mut() else {
        panic!("{answer}");
    };
    for measured in ["token", "system", "agent", "uptime_secs", "boot"] {
        fields.remove(measured);
    }
    answer
}

/// Each request is answered once, in order, until the connection watches.
fn check_numbers(stream: &[u8], answers: &[Value]) {
    let mut decoder = Decoder::default();
    decoder.push(stream);
    for answer in answers {
        let Ok(Some(frame)) = decoder.next_frame() else {
            // It is what tells that the framing is broken.
            assert_eq!(answer["code"], "frame-too-large");
            return;
        };
        let (id, kind) = match frame {
            Frame::Json(body) => {
                let parsed = ParsedRequest::read(&body);
                (parsed.id, parsed.kind.filter(|_| parsed.request.is_ok()))
            }
            Frame::Data { .. } | Frame::EmptyData => (None, None),
        };
        assert_eq!(answer.get("id").and_then(Value::as_u64), id, "{answer}");
        if let Some(message) = answer.get("message") {
            let message = message.as_str().unwrap();
            assert!(!message.contains(char::is_control), "{message:?}");
        }
        if kind.as_deref() == Some("watch") {
            return;
        }
    }
    assert!(!matches!(decoder.next_frame(), Ok(Some(_))), "no answer");
}

fn loaded() -> Loaded {
    let web = r#"{"name":"web","health_cmd":"true","checkpoint_cmd":"true","restore_cmd":"true"}"#;
    let probe = r#"{"name":"disk","cmd":"true"}"#;
    Loaded {
        integrations: vec![drop_in::read(web.as_bytes()).unwrap()],
        probes: vec![drop_in::read(probe.as_bytes()).unwrap()],
        ..Loaded::default()
    }
}
