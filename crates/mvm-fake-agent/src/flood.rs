//! Agents that would have their host keep more and more.

use crate::{Peer, status};
use serde_json::{Value, json};

/// Answers `watch` with a sick status and then tells of ever new integrations, each with as much text
/// as given, until the client closes.
pub fn ever_new_names(peer: &mut Peer, text: usize) {
    let Some(id) = first(peer) else { return };
    for number in 0.. {
        let mut one = status("unhealthy")["integrations"][0].clone();
        one["name"] = format!("{number}-{}", "x".repeat(text)).into();
        if !tell(peer, &id, "integration", one) {
            return;
        }
    }
}

/// Answers `watch` with a sick status, and says each time that the drop-ins were read anew: whoever
/// keeps a status up to date has to ask for it again.
pub fn ever_new_drop_ins(peer: &mut Peer) {
    let Some(id) = first(peer) else { return };
    let read = json!({"integrations": 1, "probes": 0, "errors": []});
    while tell(peer, &id, "drop_ins", read.clone()) {}
}

fn first(peer: &mut Peer) -> Option<Value> {
    if !peer.shake_hands_if_asked() {
        return None;
    }
    let request = peer.request()?;
    let mut first = status("unhealthy");
    first["id"] = request["id"].clone();
    peer.answer(&first);
    Some(request["id"].clone())
}

fn tell(peer: &mut Peer, id: &Value, field: &str, value: Value) -> bool {
    let mut event = json!({"type": "event", "at": "2026-11-24T06:02:11Z", "id": id});
    event[field] = value;
    let frame = mvm_protocol::frame::encode_json(event.to_string().as_bytes());
    peer.send(&frame.unwrap())
}
