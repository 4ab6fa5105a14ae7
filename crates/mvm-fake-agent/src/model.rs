//! An agent that keeps to the whole protocol of prod builds, but for one fault if it is given one.
//!
//! It has a guest that nothing happens to: one integration, one probe, and a sleep that takes no time.

mod guest;
mod watching;

pub use guest::Model;

use crate::Peer;
use crate::faults::Fault;
use guest::{Guest, error};
use mvm_protocol::frame::encode_json;
use mvm_protocol::handshake::{LineReader, ok_line, parse_connect};
use mvm_protocol::request::{DEV_REQUEST_TYPES, ParsedRequest};
use mvm_protocol::{Decoder, ErrorCode, Frame, FrameError, MAX_BODY, PORT, Request};
use serde_json::{Value, json};
use std::io::Read as _;
use std::time::Duration;

/// How long the first frame may take, and a pause within one.
const FRAME_WITHIN: Duration = Duration::from_secs(10);

impl Model {
    /// Serves a connection.
    pub fn serve(&self, peer: &mut Peer) {
        let guest = self.guest();
        let _turn = guest.has(Fault::OneAtATime).then(|| guest.turn());
        if guest.has(Fault::FewConnections) && peer.connected > 8 {
            peer.stall();
            return;
        }
        if !self.shake_hands(peer) {
            return;
        }
        let within = (!guest.has(Fault::NeverCloses)).then_some(FRAME_WITHIN);
        peer.stream.set_read_timeout(within).unwrap();
        let mut buffer = vec![0; MAX_BODY];
        loop {
            let mut frames = Vec::new();
            let over = loop {
                match peer.decoder.next_frame() {
                    Ok(Some(frame)) if guest.has(Fault::OutOfOrder) => frames.push(frame),
                    Ok(Some(frame)) => {
                        if !self.answer_frame(peer, frame) {
                            return;
                        }
                    }
                    Ok(None) => break false,
                    Err(FrameError::TooLarge { .. }) => break true,
                }
            };
            for frame in frames.into_iter().rev() {
                self.answer_frame(peer, frame);
            }
            if over && guest.has(Fault::SilentAtTooLarge) {
                return;
            }
            if over {
                let message = format!("a frame has at most {MAX_BODY} bytes");
                send(
                    guest,
                    peer,
                    &error(ErrorCode::FrameTooLarge, &message),
                    None,
                );
                return;
            }
            if guest.has(Fault::ReadIsAFrame) && peer.decoder.is_mid_frame() {
                send(guest, peer, &error(ErrorCode::BadRequest, "cut off"), None);
                peer.decoder = Decoder::default();
            }
            if guest.has(Fault::AgreesToAll) && peer.decoder.is_mid_frame() {
                send(guest, peer, &json!({"type": "pong"}), None);
            }
            let count = match peer.stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            peer.decoder.push(&buffer[..count]);
        }
    }

    fn shake_hands(&self, peer: &mut Peer) -> bool {
        let guest = self.guest();
        let mut reader = LineReader::default();
        let mut byte = [0];
        let line = loop {
            match peer.stream.read(&mut byte) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
            if guest.has(Fault::TakesAnyLine) {
                // The rest of the line, if it is one.
                let _ = peer.read();
                return peer.send(ok_line(PORT + 1).as_bytes());
            }
            match reader.push(&byte) {
                Ok((_, Some(line))) => break line,
                Ok((_, None)) => {}
                Err(_) => return false,
            }
        };
        parse_connect(&line) == Ok(PORT) && peer.send(ok_line(PORT).as_bytes())
    }

    /// Answers one frame, and says whether the connection goes on.
    fn answer_frame(&self, peer: &mut Peer, frame: Frame) -> bool {
        let guest = self.guest();
        let Frame::Json(body) = frame else {
            let refusal = error(ErrorCode::BadRequest, "data outside of a request");
            return send(guest, peer, &refusal, None);
        };
        let parsed = read(guest, &body);
        let id = parsed.id;
        if guest.has(Fault::RefusesAll) && !matches!(parsed.request, Ok(Request::Hello)) {
            let refusal = error(ErrorCode::Failed, "");
            return send(guest, peer, &refusal, None);
        }
        if guest.has(Fault::AgreesToAll) && !matches!(parsed.request, Ok(Request::Hello)) {
            return send(guest, peer, &json!({"type": "pong"}), id);
        }
        match parsed.request {
            Ok(Request::Watch(watch)) => {
                watching::serve(guest, peer, watch, id);
                false
            }
            Ok(request) => {
                let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
                match guest.answer(&request, asked) {
                    Some(answer) => send(guest, peer, &answer, id),
                    None => true,
                }
            }
            Err(refusal) => {
                let kind = parsed.kind.unwrap_or_default();
                let is_dev = DEV_REQUEST_TYPES.contains(&kind.as_str());
                let code = refusal.code.known().unwrap_or(ErrorCode::BadRequest);
                let refusal = if is_dev && code == ErrorCode::UnknownRequest {
                    error(ErrorCode::NotAllowed, &format!("`{kind}` is not served"))
                } else {
                    error(code, &refusal.message)
                };
                send(guest, peer, &refusal, id)
            }
        }
    }
}

/// Reads a request; one with a fault takes fields that it does not know.
fn read(guest: &Guest, body: &[u8]) -> ParsedRequest {
    let parsed = ParsedRequest::read(body);
    let Err(refusal) = &parsed.request else {
        return parsed;
    };
    let unknown = refusal.message.split("unknown field `").nth(1);
    let unknown = unknown.and_then(|rest| rest.split('`').next());
    match unknown {
        Some(name) if guest.has(Fault::TakesUnknownFields) => {
            let mut object: Value = serde_json::from_slice(body).unwrap();
            object.as_object_mut().unwrap().remove(name);
            ParsedRequest::read(object.to_string().as_bytes())
        }
        _ => parsed,
    }
}

/// Sends an answer with its request's number, and says whether the client is still there.
fn send(guest: &Guest, peer: &mut Peer, answer: &Value, id: Option<u64>) -> bool {
    let mut answer = answer.clone();
    if let Some(id) = id {
        answer["id"] = id.into();
    }
    let _turn = guest.has(Fault::BlocksOnUnread).then(|| guest.turn());
    peer.send(&encode_json(answer.to_string().as_bytes()).unwrap())
}
