//! An agent that serves what dev builds do, as the test says.

use crate::{Peer, answer_to};
use mvm_protocol::request::{DEV_REQUEST_TYPES, REQUEST_TYPES};
use serde_json::{Value, json};

/// Shakes hands, answers `hello` as a dev build does, and `watch` without heartbeats, and gives each other request to the test.
pub fn dev(
    serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static,
) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer| {
        peer.shake_hands();
        while let Some(request) = peer.request() {
            if request["type"] == "hello" {
                let capabilities = [REQUEST_TYPES.as_slice(), DEV_REQUEST_TYPES.as_slice()];
                peer.reply(
                    &request,
                    json!({
                        "type": "hello", "protocol": 1, "agent_version": "0.1.0",
                        "profile": "dev", "capabilities": capabilities.concat(),
                        "boot_id": "6f0b7f52-6e44-4d51-9a4c-3e1b5c7b2a10", "generation": 0,
                    }),
                );
            } else if request["type"] == "watch" {
                peer.reply(&request, answer_to(&request));
                peer.until_closed();
            } else {
                serve(peer, &request);
            }
        }
    }
}

impl Peer {
    /// Sends an answer with the number of its request.
    pub fn reply(&mut self, request: &Value, mut answer: Value) {
        answer["id"] = request["id"].clone();
        self.answer(&answer);
    }

    /// Refuses a request.
    pub fn refuse(&mut self, request: &Value, code: &str, message: &str) {
        let retryable = code == "busy";
        self.reply(
            request,
            json!({"type": "error", "code": code, "message": message, "retryable": retryable}),
        );
    }

    /// Says that a command runs.
    pub fn exec_started(&mut self, request: &Value) {
        self.reply(request, json!({"type": "exec-started", "pid": 321}));
    }

    /// Says that a command has exited with that code.
    pub fn exec_exited(&mut self, request: &Value, exit_code: i32) {
        self.reply(
            request,
            json!({
                "type": "exec-exited", "exit_code": exit_code, "signal": null,
                "timed_out": false, "truncated": false,
            }),
        );
    }
}
