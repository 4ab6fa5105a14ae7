//! A gigabyte of a command's output through the agent, against two bare ways to the reader's socket: by
//! a process that carries it from a pipe, as the agent does, and from the command itself.

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
    pub(crate) agent: f64,
    pub(crate) relay: f64,
    pub(crate) socket: f64,
}

pub(crate) fn measure(program: &Path) -> Result<Figures> {
    let mut agent = Agent::start(program, &[])?;
    let mut connection = agent.connect()?;
    let mut figures = Figures {
        agent: 0.0,
        relay: 0.0,
        socket: 0.0,
    };
    for _ in 0..ROUNDS {
        figures.agent = figures.agent.max(through_agent(&mut connection)?);
        figures.relay = figures.relay.max(bare(bare::RELAY)?);
        figures.socket = figures.socket.max(bare(bare::WRITE)?);
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

fn bare(how: &str) -> Result<f64> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let start = Instant::now();
    let mut writer = Command::new(std::env::current_exe()?)
        .args([how, &BYTES.to_string()])
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
