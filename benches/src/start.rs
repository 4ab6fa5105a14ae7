//! From starting the agent to its first pong, against starting `/bin/true` and waiting for it.

use crate::Result;
use crate::agent::{Agent, ping};
use crate::cores::Cores;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const STARTS: usize = 100;

/// Medians in milliseconds.
pub(crate) struct Figures {
    pub(crate) agent_ms: f64,
    pub(crate) true_ms: f64,
}

pub(crate) fn measure(program: &Path, cores: Cores) -> Result<Figures> {
    let pinned = cores.pin()?;
    let frame = ping()?;
    let (mut agent_ms, mut true_ms) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let start = Instant::now();
        // Includes making a folder and a small file, which is some 0.1 ms.
        let mut agent = pinned.server(|| Agent::start(program, &[]))?;
        agent.connect()?.ask(&frame)?;
        agent_ms.push(start.elapsed().as_secs_f64() * 1e3);
        drop(agent);

        let start = Instant::now();
        let mut child =
            pinned.server(|| Ok(Command::new("/bin/true").stdin(Stdio::null()).spawn()?))?;
        let status = child.wait()?;
        true_ms.push(start.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            return Err(format!("/bin/true: {status}").into());
        }
    }
    Ok(Figures {
        agent_ms: median(agent_ms)?,
        true_ms: median(true_ms)?,
    })
}

pub(crate) fn median(mut times: Vec<f64>) -> Result<f64> {
    times.sort_by(f64::total_cmp);
    let middle = times.get(times.len() / 2).copied();
    Ok(middle.ok_or("nothing was measured")?)
}
