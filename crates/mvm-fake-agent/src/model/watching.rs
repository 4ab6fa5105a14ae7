//! A watch of the model's.

use super::guest::{Guest, error, now};
use super::send;
use crate::Peer;
use crate::faults::Fault;
use mvm_protocol::frame::encode_json;
use mvm_protocol::request::{ParsedRequest, Watch};
use mvm_protocol::{ErrorCode, Frame};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Serves a watch until its client closes.
pub(super) fn serve(guest: &Guest, peer: &mut Peer, watch: Watch, id: Option<u64>) {
    let _turn = guest.has(Fault::WatchBlocksOthers).then(|| guest.turn());
    let begun = guest.told();
    send(guest, peer, &guest.first(), id);
    peer.stream.set_read_timeout(None).unwrap();
    let writer = Mutex::new(peer.stream.try_clone().unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| tell(guest, &writer, watch, id, begun, &is_over));
        while let Some(frame) = peer.frame() {
            let own = match frame {
                Frame::Json(body) => ParsedRequest::read(&body).id,
                Frame::Data { .. } | Frame::EmptyData => None,
            };
            let refusal = error(ErrorCode::BadRequest, "the connection watches");
            write(&writer, refusal, own);
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

/// Tells what happens from there on.
fn tell(
    guest: &Guest,
    writer: &Mutex<UnixStream>,
    watch: Watch,
    id: Option<u64>,
    begun: usize,
    is_over: &AtomicBool,
) {
    let mut next = begun;
    // So that the end of the connection is noticed as well.
    let pause = watch.heartbeat().min(std::time::Duration::from_millis(200));
    let mut silent = std::time::Duration::ZERO;
    while !is_over.load(Ordering::SeqCst) {
        if let Some(event) = guest.event(next, pause) {
            next += 1;
            silent = std::time::Duration::ZERO;
            write(writer, event, id);
            continue;
        }
        silent += pause;
        if silent >= watch.heartbeat() && !guest.has(Fault::NoHeartbeats) {
            silent = std::time::Duration::ZERO;
            write(
                writer,
                json!({"type": "event", "at": now(), "heartbeat": true}),
                id,
            );
        }
    }
}

fn write(writer: &Mutex<UnixStream>, mut frame: Value, id: Option<u64>) {
    if let Some(id) = id {
        frame["id"] = id.into();
    }
    let frame = encode_json(frame.to_string().as_bytes()).unwrap();
    let _ = writer.lock().unwrap().write_all(&frame);
}
