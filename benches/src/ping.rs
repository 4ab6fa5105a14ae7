//! Ping to the agent against the same bytes to a bare echo server, both over a Unix socket.

use crate::agent::{Agent, ping};
use crate::cores::Cores;
use crate::{Result, bare};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Each round measures both, so that a machine that slows down slows both down.
const ROUNDS: usize = 100;
const PINGS: usize = 400;
const WARM_UP: usize = 50;

/// Round trip times in microseconds.
pub(crate) struct Figures {
    pub(crate) agent_us: Percentiles,
    pub(crate) bare_us: Percentiles,
}

pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

pub(crate) fn measure(program: &Path, cores: Cores) -> Result<Figures> {
    let pinned = cores.pin()?;
    let mut agent = pinned.server(|| Agent::start(program, &[]))?;
    let mut connection = agent.connect()?;
    let dir = tempfile::TempDir::new()?;
    let socket = dir.path().join("echo.sock");
    let mut server = pinned.server(|| {
        Ok(Command::new(std::env::current_exe()?)
            .arg(bare::ECHO)
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()?)
    })?;
    let mut echo = connect(&socket)?;
    let frame = ping()?;
    let mut buffer = vec![0; frame.len()];

    let (mut agent_us, mut bare_us) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        round(&mut agent_us, || connection.ask(&frame).map(drop))?;
        round(&mut bare_us, || {
            echo.write_all(&frame)?;
            echo.read_exact(&mut buffer)?;
            Ok(())
        })?;
    }
    // End of file ends the echo server.
    drop(echo);
    server.wait()?;
    Ok(Figures {
        agent_us: percentiles(agent_us)?,
        bare_us: percentiles(bare_us)?,
    })
}

fn round(times: &mut Vec<f64>, mut once: impl FnMut() -> Result<()>) -> Result<()> {
    for number in 0..WARM_UP + PINGS {
        let start = Instant::now();
        once()?;
        if number >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(())
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error)
                if Instant::now() < deadline
                    && matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn percentiles(mut times: Vec<f64>) -> Result<Percentiles> {
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    match (at(50), at(99)) {
        (Some(p50), Some(p99)) => Ok(Percentiles { p50, p99 }),
        _ => Err("nothing was measured".into()),
    }
}
