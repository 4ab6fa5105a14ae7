//! A host that puts and gets files.

use super::dev::with;
use super::{Agent, Connection};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::{Builder, EntryType, Header};

pub fn put(path: &Path) -> Value {
    json!({"type": "put", "path": path.to_str().unwrap()})
}

pub fn get(path: &Path) -> Value {
    json!({"type": "get", "path": path.to_str().unwrap()})
}

pub fn archive(request: Value) -> Value {
    with(request, json!({"archive": "tar"}))
}

impl Connection {
    /// Puts content, and gives the last answer.
    pub fn put(&mut self, request: &Value, content: &[u8]) -> Value {
        let ready = self.begin(request);
        if ready["type"] != "put-ready" {
            return ready;
        }
        for piece in content.chunks(100_000) {
            self.data(3, piece);
        }
        self.send(&json!({"type": "put-end"}));
        self.json()
    }

    /// Gets content: the first answer, the content, and the last answer.
    pub fn get(&mut self, request: &Value) -> (Value, Vec<u8>, Value) {
        let started = self.begin(request);
        if started["type"] != "get-started" {
            return (started.clone(), Vec::new(), started);
        }
        let mut content = Vec::new();
        loop {
            match self.frame().unwrap() {
                Frame::Data { channel: 3, bytes } => content.extend(bytes),
                Frame::Json(body) => {
                    return (started, content, serde_json::from_slice(&body).unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What is in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// An agent, and a folder for files.
pub fn agent() -> (Agent, std::path::PathBuf) {
    let agent = Agent::start(&[], &[]);
    let files = agent.path("files");
    fs::create_dir(&files).unwrap();
    (agent, files)
}

/// Regular files with these names and contents, as a tar stream.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = header(EntryType::Regular, 0o640);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

pub fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_size(0);
    header
}
