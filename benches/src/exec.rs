//! `exec true` over a Unix socket, against starting `true` and waiting for it.

use crate::Result;
use crate::agent::Agent;
use crate::cores::Cores;
use mvm_protocol::frame::encode_json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Each round measures both, so that a machine that slows down slows both down.
const ROUNDS: usize = 50;
const RUNS: usize = 20;

/// Medians in microseconds.
pub(crate) struct Figures {
    pub(crate) agent_us: f64,
    pub(crate) bare_us: f64,
}

pub(crate) fn measure(program: &Path, cores: Cores) -> Result<Figures> {
    let pinned = cores.pin()?;
    let mut agent = pinned.server(|| Agent::start(program, &[]))?;
    let mut connection = agent.connect()?;
    let frame = encode_json(br#"{"type":"exec","argv":["/bin/true"]}"#)?;
    let (mut agent_us, mut bare_us) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..RUNS {
            let start = Instant::now();
            connection.read_until(&frame, b"exec-exited")?;
            agent_us.push(start.elapsed().as_secs_f64() * 1e6);
        }
        for _ in 0..RUNS {
            let start = Instant::now();
            let mut child =
                pinned.server(|| Ok(Command::new("/bin/true").stdin(Stdio::null()).spawn()?))?;
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("true: {status}").into());
            }
            bare_us.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(Figures {
        agent_us: median(agent_us)?,
        bare_us: median(bare_us)?,
    })
}

fn median(mut times: Vec<f64>) -> Result<f64> {
    times.sort_by(f64::total_cmp);
    Ok(*times.get(times.len() / 2).ok_or("nothing was measured")?)
}
