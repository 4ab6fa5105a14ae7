//! Looks at both hosts all the time, as nobody could whose hosts are apart: which VM runs where.

use crate::conf::HOSTS;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(50);

/// What runs: host and VM, and its process.
pub(crate) type Running = BTreeMap<(String, String), u64>;

#[derive(Debug, Default)]
struct State {
    now: Running,
    looks: u64,
    /// The VMs that ran on two hosts at one look.
    twice: BTreeSet<String>,
    /// What ran since when, in seconds since 1970.
    history: Vec<(f64, Running)>,
}

/// The looks, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    state: Arc<Mutex<State>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks at the hosts' folders `host-NAME` in that one.
    pub(crate) fn start(folder: &Path) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let over = Arc::new(AtomicBool::new(false));
        let (its, ends, folder) = (Arc::clone(&state), Arc::clone(&over), folder.to_owned());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let now = look(&folder);
                let mut state = its.lock().unwrap_or_else(PoisonError::into_inner);
                state.twice.extend(on_both(&now));
                if state.now != now {
                    state.history.push((seconds(), now.clone()));
                }
                state.now = now;
                state.looks += 1;
                drop(state);
                std::thread::sleep(PERIOD);
            }
        });
        Self {
            state,
            over,
            thread: Some(thread),
        }
    }

    /// What runs now.
    pub(crate) fn now(&self) -> Running {
        self.locked(|state| state.now.clone())
    }

    /// The VMs that were seen on two hosts at one time so far, and the number of looks.
    pub(crate) fn twice(&self) -> (BTreeSet<String>, u64) {
        self.locked(|state| (state.twice.clone(), state.looks))
    }

    /// What ran since when, in seconds since 1970.
    pub(crate) fn history(&self) -> Vec<(f64, Running)> {
        self.locked(|state| state.history.clone())
    }

    fn locked<T>(&self, get: impl FnOnce(&State) -> T) -> T {
        get(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Now, in seconds since 1970.
pub(crate) fn seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn on_both(now: &Running) -> Vec<String> {
    let vms = now.keys().filter(|(host, vm)| {
        let elsewhere = |other: &(String, String)| other.0 != *host && other.1 == *vm;
        now.keys().any(elsewhere)
    });
    vms.map(|(_, vm)| vm.clone()).collect()
}

fn look(folder: &Path) -> Running {
    let mut now = Running::new();
    for host in HOSTS {
        let vms = folder.join(format!("host-{}", host.name)).join("vms");
        for vm in fs::read_dir(vms).into_iter().flatten().flatten() {
            if let Some(pid) = process(&vm.path()) {
                let name = vm.file_name().to_string_lossy().into_owned();
                now.insert((host.name.to_owned(), name), pid);
            }
        }
    }
    now
}

/// The process that is the VM, if it runs: its VMM, or the agent that stands for it.
fn process(vm: &Path) -> Option<u64> {
    let record: Value = serde_json::from_slice(&fs::read(vm.join("vm.json")).ok()?).ok()?;
    let processes = record.get("processes")?.as_array()?;
    let is_it_all = |process: &&Value| {
        let role = process.get("role");
        role.is_some_and(|role| role == "agent" || role == "vmm")
    };
    let process = processes.iter().find(is_it_all)?;
    let pid = process.get("pid")?.as_u64()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let begun = process.get("start_ticks")?.as_u64()?;
    is_it(&stat, begun).then_some(pid)
}

/// Whether a process's `stat` is that of the one that was begun then, and it has not ended.
fn is_it(stat: &str, begun: u64) -> bool {
    // The name before may have anything in it.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split(' ').collect();
    let lives = fields.first().is_some_and(|state| *state != "Z");
    lives
        && fields
            .get(19)
            .is_some_and(|ticks| *ticks == begun.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_was_begun() {
        let stat = |state: &str| {
            format!("7 (a) b) {state} 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 168276 9 9")
        };
        assert!(is_it(&stat("S"), 168_276));
        assert!(!is_it(&stat("S"), 168_277));
        assert!(!is_it(&stat("Z"), 168_276));
        assert!(!is_it("", 0));
    }

    #[test]
    fn one_that_runs_on_both_is_seen() {
        let run = |host: &str, vm: &str| ((host.to_owned(), vm.to_owned()), 1);
        let apart = Running::from([run("a", "web-1"), run("b", "web-2")]);
        assert!(on_both(&apart).is_empty());
        let both = Running::from([run("a", "web-1"), run("b", "web-1"), run("b", "web-2")]);
        assert_eq!(on_both(&both), ["web-1", "web-1"]);
    }
}
