//! What only a guest can show: the cost of going to sleep, and of the first answer after a restore.

use crate::Result;
use crate::agent::Connection;
use crate::start::median;
use mvm_guest_tests::{AGENT_SOCKET, MOUNT_A_DISK, Parts, build_bare, remote};
use mvm_protocol::frame::encode_json;
use mvm_protocol::lifecycle::Token;
use mvm_vmm::machine::{self, Spec, Stop};
use mvm_vmm::suspend::{self, RestoreSpec};
use mvm_vmm::{Deadline, Home, Snapshot, VmName};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SLEEPS: usize = 30;
const RESTORES: usize = 10;

/// Longer than anything takes.
const LONG: Duration = Duration::from_mins(2);

/// Medians in milliseconds.
pub(crate) struct Figures {
    /// `syncfs` of the one disk, dropping the page cache, `syncfs` again: within the guest.
    pub(crate) bare_ms: f64,
    /// From `sleep-prep` to `ready`, asked from within the guest.
    pub(crate) sleep_ms: f64,
    /// Of an agent that freezes the guest's work.
    pub(crate) freeze: Option<Freeze>,
    /// From the command to restore to the first `OK`.
    pub(crate) accepted_ms: f64,
    /// From the same moment to the first `status`.
    pub(crate) status_ms: f64,
}

/// Freezing 200 processes in 20 cgroups, medians in milliseconds.
pub(crate) struct Freeze {
    /// By the files that the agent writes and reads.
    pub(crate) bare_ms: f64,
    /// The step `freeze` of a `sleep-prep` of the same guest.
    pub(crate) agent_ms: f64,
}

/// Whether an agent freezes the guest's work while it sleeps: older ones do not know the setting.
pub(crate) fn freezes(agent: &Path) -> Result<bool> {
    let help = Command::new(agent).arg("--help").output()?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--freeze-exempt"))
}

pub(crate) fn measure(parts: &Parts, freezes: bool) -> Result<Figures> {
    let folder = TempDir::new()?;
    build_bare(parts, folder.path(), freezes);
    let guests = Guests {
        home: Home::at(folder.path().join("home")),
    };
    let vm = VmName::new("golden")?;
    let spec = Spec {
        image: Some(folder.path().join("image")),
        backend: Some("qemu".into()),
        memory_mib: Some(128),
        ..Spec::default()
    };
    let starting = machine::start(&guests.home, &vm, &spec, deadline())?;
    starting.wait_for_agent(deadline())?;
    let socket = starting.socket();
    starting.confirm()?;

    let (bare_ms, sleep_ms) = in_turn(
        &socket,
        &format!("{MOUNT_A_DISK} && exec guest-probe sleep-cost {AGENT_SOCKET} /mnt {SLEEPS}"),
    )?;
    let freeze = freezes.then(|| {
        let script = format!("exec guest-probe freeze-cost {AGENT_SOCKET} {SLEEPS}");
        in_turn(&socket, &script).map(|(bare_ms, agent_ms)| Freeze { bare_ms, agent_ms })
    });
    let freeze = freeze.transpose()?;
    let snapshot = guests.snapshot(&vm, &socket, &folder.path().join("snapshot"))?;
    let (mut accepted, mut answered) = (Vec::new(), Vec::new());
    for number in 0..RESTORES {
        let (first, second) = guests.restore(&snapshot, number)?;
        accepted.push(first);
        answered.push(second);
    }
    Ok(Figures {
        bare_ms,
        sleep_ms,
        freeze,
        accepted_ms: median(accepted)?,
        status_ms: median(answered)?,
    })
}

fn deadline() -> Deadline<'static> {
    Deadline::new(LONG, None)
}

/// What a program in the guest has measured in turn: the bare operations, and the agent.
fn in_turn(socket: &Path, script: &str) -> Result<(f64, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let printed = runtime.block_on(remote::run(socket, script));
    let (mut bare, mut agents) = (Vec::new(), Vec::new());
    for line in printed.lines() {
        let (first, second) = line.split_once(' ').ok_or("not two numbers")?;
        bare.push(first.parse::<f64>()? / 1e3);
        agents.push(second.parse::<f64>()? / 1e3);
    }
    Ok((median(bare)?, median(agents)?))
}

/// VMs that end with it.
struct Guests {
    home: Home,
}

impl Guests {
    /// The guest, asleep, and its VM ended.
    fn snapshot(&self, vm: &VmName, socket: &Path, to: &Path) -> Result<Snapshot> {
        let request = encode_json(br#"{"type":"sleep-prep","token":"bench"}"#)?;
        let ready = Connection::dial(socket)?.ask(&request)?;
        if !String::from_utf8_lossy(&ready).contains(r#""type":"ready""#) {
            return Err(format!("not ready: {}", String::from_utf8_lossy(&ready)).into());
        }
        let (mut session, snapshot_dir) = suspend::take(&self.home, vm, Some(to))?;
        let pending = session.freeze(snapshot_dir, deadline())?;
        session.stop(to)?;
        let token = Token::new("bench").ok_or("a token")?;
        Ok(pending.publish(token, "bench".into())?)
    }

    /// Milliseconds from the command to the first connection, and to the first answer on it.
    fn restore(&self, snapshot: &Snapshot, number: usize) -> Result<(f64, f64)> {
        let vm = VmName::new(&format!("clone-{number}"))?;
        let status = encode_json(br#"{"type":"status"}"#)?;
        let spec = RestoreSpec {
            clone: true,
            ..RestoreSpec::default()
        };
        let begun = Instant::now();
        let restored = suspend::restore(&self.home, &vm, snapshot, &spec, deadline())?;
        let mut connection = Connection::dial(&restored.socket())?;
        let accepted = begun.elapsed();
        connection.ask(&status)?;
        let answered = begun.elapsed();
        drop((connection, restored));
        machine::stop(&self.home, &vm, Stop::Force)?;
        Ok((accepted.as_secs_f64() * 1e3, answered.as_secs_f64() * 1e3))
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        for vm in std::fs::read_dir(self.home.vms())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = VmName::new(&vm.file_name().to_string_lossy()).map_err(mvm_vmm::Error::from);
            if let Err(error) = name.and_then(|vm| machine::stop(&self.home, &vm, Stop::Force)) {
                eprintln!("mvm-benches: a guest is left: {error}");
            }
        }
    }
}
