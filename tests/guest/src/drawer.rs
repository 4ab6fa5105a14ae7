//! The guest whose work is watched: a service that draws random numbers all the time and writes down
//! when.

use crate::image::{Guest, REMOTE_CGROUP, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::{Built, Service};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// What it has drawn: a line a number, with the generation before it and both clocks behind it.
pub const DRAWN: &str = "/run/drawn";

/// Builds its image in a folder, which has to be there; `settings` are the agent's beyond the exemption
/// of the service by which tests look into the guest.
pub fn build_drawer(
    parts: &Parts,
    folder: &Path,
    settings: &Value,
    integrations: Vec<Value>,
) -> Built {
    let mut agent = json!({"freeze_exempt": [REMOTE_CGROUP]});
    for (name, value) in settings.as_object().into_iter().flatten() {
        agent[name] = value.clone();
    }
    let draw = Service {
        name: "draw".into(),
        command: format!("exec guest-probe draw {DRAWN}"),
    };
    let guest = Guest {
        agent,
        integrations,
        probes: vec![json!({
            "name": "reseed",
            "command": "guest-probe reseed",
            "interval_secs": 86_400,
        })],
        services: vec![draw, remote()],
        modules: ["brd", "fuse", "loop"].map(str::to_owned).into(),
        dev: false,
        network_payload: false,
        files: Vec::new(),
    };
    build_guest(parts, folder, guest)
}

/// How far a clock may be off that was set, in milliseconds.
const CLOCK: i64 = 500;

/// What a restored guest has drawn since it said that it was ready.
#[derive(Debug)]
pub struct Drawn {
    /// When it was restored, in milliseconds since 1970 by this machine's clock.
    pub since: i64,
    /// As the service has written them.
    pub lines: Vec<String>,
}

/// A line of what was drawn.
#[derive(Debug)]
pub struct Draw {
    /// As the agent had written it.
    pub generation: u64,
    /// 16 hexadecimal digits.
    pub number: String,
    /// Milliseconds since 1970.
    pub wall: i64,
    /// Milliseconds since the boot.
    pub monotonic: i64,
}

impl Draw {
    /// Of a line, which has to be one.
    pub fn of(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [generation, number, wall, monotonic] = words[..] else {
            panic!("{line}")
        };
        Self {
            generation: generation.parse().expect("a number"),
            number: number.to_owned(),
            wall: wall.parse().expect("a number"),
            monotonic: monotonic.parse().expect("a number"),
        }
    }
}

/// How many numbers more than one guest has drawn, and how many lines carry the snapshot's time.
pub fn amiss(clones: &[Drawn]) -> (usize, usize) {
    let (mut all, mut seen, mut old) = (0, BTreeSet::new(), 0);
    for clone in clones {
        let lines = clone.lines.iter();
        for line in lines.filter(|line| !line.starts_with("payload ")) {
            let draw = Draw::of(line);
            all += 1;
            seen.insert(draw.number);
            old += usize::from(draw.wall < clone.since - CLOCK);
        }
    }
    (all - seen.len(), old)
}
