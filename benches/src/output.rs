//! A gigabyte of a command's output through the agent, against the same command that writes into the
//! reader's socket itself. In between are a pipe, a process and the frames.

use crate::agent::{Agent, Connection};
use crate::{Result, bare};
use mvm_protocol::frame::encode_json;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;

/// Megabytes a second, of the best round each: the rest is what else the machine did.
pub(crate) struct Figures {
    pub(crate) agent_mb: f64,
    pub(crate) bare_mb: f64,
}

pub(crate) fn measure(program: &Path) -> Result<Figures> {
    let mut agent = Agent::start(program, &[])?;
    let mut connection = agent.connect()?;
    let mut figures = Figures {
        agent_mb: 0.0,
        bare_mb: 0.0,
    };
    for _ in 0..ROUNDS {
        figures.agent_mb = figures.agent_mb.max(through_agent(&mut connection)?);
        figures.bare_mb = figures.bare_mb.max(through_socket()?);
    }
    Ok(figures)
}

fn through_agent(connection: &mut Connection) -> Result<f64> {
    let own = std::env::current_exe()?;
    let own = own.to_str().ok_or("this program's path is not UTF-8")?;
    let body = format!(
        r#"{{"type":"exec","argv":["{own}","{}","{BYTES}"]}}"#,
        bare::WRITE
    );
    let start = Instant::now();
    let read = connection.read_until(&encode_json(body.as_bytes())?, b"exec-exited")?;
    speed(read, start)
}

fn through_socket() -> Result<f64> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let start = Instant::now();
    let mut writer = Command::new(std::env::current_exe()?)
        .args([bare::WRITE, &BYTES.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let mut buffer = vec![0; 256 * 1024];
    let mut read = 0;
    loop {
        match ours.read(&mut buffer)? {
            0 => break,
            count => read += count as u64,
        }
    }
    writer.wait()?;
    speed(read, start)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn speed(bytes: u64, start: Instant) -> Result<f64> {
    if bytes != BYTES {
        return Err(format!("{bytes} bytes came of {BYTES}").into());
    }
    Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
}
