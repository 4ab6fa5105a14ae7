//! A host of a dev build: commands with their output, and what they leave behind.

use super::{Agent, Connection};
use mvm_protocol::frame::encode_data;
use mvm_protocol::{Decoder, Frame};
use serde_json::{Value, json};
use std::io::Write;

/// What came of a command.
#[derive(Debug, Default)]
pub struct Ran {
    /// `exec-started`, `exec-exited` or `error`.
    pub started: Value,
    pub last: Value,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// What it exited with, or the signal that ended it.
    pub fn end(&self) -> (Option<i64>, Option<&str>) {
        (
            self.last["exit_code"].as_i64(),
            self.last["signal"].as_str(),
        )
    }
}

pub fn exec(argv: &[&str]) -> Value {
    json!({"type": "exec", "argv": argv})
}

pub fn shell(text: &str) -> Value {
    exec(&["/bin/sh", "-c", text])
}

/// The request with these fields in addition.
pub fn with(mut request: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!()
    };
    request.as_object_mut().unwrap().extend(fields);
    request
}

impl Agent {
    /// Runs a command on a connection of its own.
    pub fn exec(&self, request: &Value) -> Ran {
        self.connection().exec(request)
    }
}

impl Connection {
    /// The same connection once more, for a thread that sends.
    pub fn sender(&self) -> Self {
        Self {
            stream: self.stream.try_clone().unwrap(),
            decoder: Decoder::default(),
        }
    }

    pub fn data(&mut self, channel: u8, bytes: &[u8]) {
        let frame = encode_data(channel, bytes).unwrap();
        self.stream.write_all(&frame).unwrap();
    }

    /// Sends a request and waits for the first frame of its answer.
    pub fn begin(&mut self, request: &Value) -> Value {
        self.send(request);
        self.json()
    }

    /// The next frame, which has to be an object.
    pub fn json(&mut self) -> Value {
        match self.frame() {
            Some(Frame::Json(body)) => serde_json::from_slice(&body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a command to its end.
    pub fn exec(&mut self, request: &Value) -> Ran {
        let started = self.begin(request);
        if started["type"] != "exec-started" {
            return Ran {
                last: started.clone(),
                started,
                ..Ran::default()
            };
        }
        Ran {
            started,
            ..self.rest()
        }
    }

    /// What is left of a command's answer.
    pub fn rest(&mut self) -> Ran {
        let mut ran = Ran::default();
        loop {
            match self.frame() {
                Some(Frame::Data { channel: 1, bytes }) => ran.stdout.extend(bytes),
                Some(Frame::Data { channel: 2, bytes }) => ran.stderr.extend(bytes),
                Some(Frame::Json(body)) => {
                    ran.last = serde_json::from_slice(&body).unwrap();
                    return ran;
                }
                other => panic!("{other:?} after {:?}", ran.text()),
            }
        }
    }

    /// Reads output until this text has come.
    pub fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.frame() {
                Some(Frame::Data { bytes, .. }) => seen += &String::from_utf8_lossy(&bytes),
                other => panic!("{other:?} after {seen:?}, waiting for {text:?}"),
            }
        }
        seen
    }
}
