//! How long a host waits for a ping while others keep the agent busy: whether turns are fair.
//!
//! The others are a process of their own that yields to whoever pings, so that it is the agent that is
//! waited for and not this machine. Agent and clients have a core each.

use crate::agent::{Agent, Connection, ping};
use crate::cores::Cores;
use crate::{Result, row};
use mvm_protocol::frame::{Decoder, Frame, encode_json};
use mvm_protocol::handshake::{connect_line, ok_line};
use mvm_protocol::{MAX_BODY, PORT};
use std::fmt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

/// The argument that makes this program the others.
pub(crate) const BUSY: &str = "busy-hosts";

/// Between two pings.
const PAUSE: Duration = Duration::from_millis(5);

/// How long the others are at it before the first.
const WARM_UP: Duration = Duration::from_secs(1);

/// What the others do, each of so many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Ask for the status, one after the other.
    Ask(usize),
    /// Ping, with many pings under way.
    Pipeline(usize),
    /// Read the output of a command that writes without end.
    Flood(usize),
    /// Start commands that end at once.
    Start(usize),
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (name, count) = match self {
            Self::Ask(count) => ("ask", count),
            Self::Pipeline(count) => ("pipeline", count),
            Self::Flood(count) => ("flood", count),
            Self::Start(count) => ("start", count),
        };
        write!(f, "{name}:{count}")
    }
}

impl FromStr for Load {
    type Err = Box<dyn std::error::Error>;

    fn from_str(text: &str) -> Result<Self> {
        let (name, count) = text.split_once(':').ok_or("it is KIND:COUNT")?;
        let count = count.parse()?;
        Ok(match name {
            "ask" => Self::Ask(count),
            "pipeline" => Self::Pipeline(count),
            "flood" => Self::Flood(count),
            "start" => Self::Start(count),
            _ => return Err(format!("there is no load {name}").into()),
        })
    }
}

/// Round trip times in milliseconds.
#[derive(Debug)]
struct Figures {
    p50: f64,
    p99: f64,
    most: f64,
}

/// How long all of it at once is measured.
const MIXED: Duration = Duration::from_secs(60);

/// How long each of the others is.
const LASTING: Duration = Duration::from_secs(15);

/// Pings while others keep the agent busy.
pub(crate) fn report(agent: &str, dev: &str, secs: &[&str]) -> Result<()> {
    let (agent, dev) = (Path::new(agent), Path::new(dev));
    let mixed = match secs {
        [] => MIXED,
        [secs, ..] => Duration::from_secs(secs.parse()?),
    };
    let all = [
        Load::Ask(200),
        Load::Pipeline(50),
        Load::Flood(20),
        Load::Start(20),
    ];
    for (what, program, loads, lasting, goal) in [
        (
            "500 connections that ask for the status without a pause",
            agent,
            &[Load::Ask(500)][..],
            LASTING,
            "p99 at most 20 ms",
        ),
        (
            "500 connections with 200 pings under way each",
            agent,
            &[Load::Pipeline(500)],
            LASTING,
            "p99 at most 20 ms",
        ),
        (
            "40 commands that flood",
            dev,
            &[Load::Flood(40)],
            LASTING,
            "p99 at most 15 ms",
        ),
        (
            "40 connections that start one command after the other",
            dev,
            &[Load::Start(40)],
            LASTING,
            "",
        ),
        (
            "200 of the first, 50 of the second, 20 of the third and 20 of the fourth",
            dev,
            &all,
            mixed,
            "p99 at most 100 ms",
        ),
    ] {
        let Figures { p50, p99, most } = measure(program, loads, lasting)?;
        row(
            &format!("ping beside {what}, {} s", lasting.as_secs()),
            &format!("p50 {p50:.1} ms, p99 {p99:.1}, longest {most:.1}"),
            "",
            "",
            goal,
        );
    }
    Ok(())
}

/// Pings for so long.
fn measure(program: &Path, loads: &[Load], lasting: Duration) -> Result<Figures> {
    let pinned = Cores::Two.pin()?;
    let checks = vec![
        r#"{"name":"one","health_cmd":"true","health_interval_secs":0.2}"#.to_owned(),
        r#"{"name":"two","health_cmd":"true","health_interval_secs":0.2}"#.to_owned(),
    ];
    let mut agent = pinned.server(|| Agent::start(program, &checks))?;
    let mut connection = agent.connect()?;
    let others = Others::start(&agent, loads, lasting)?;
    std::thread::sleep(WARM_UP);
    let times = pings(&mut connection, lasting);
    drop(others);
    figures(times?)
}

fn pings(connection: &mut Connection, lasting: Duration) -> Result<Vec<f64>> {
    let frame = ping()?;
    let until = Instant::now() + lasting;
    let mut times = Vec::new();
    while Instant::now() < until {
        let start = Instant::now();
        connection.ask(&frame)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(PAUSE);
    }
    Ok(times)
}

fn figures(mut times: Vec<f64>) -> Result<Figures> {
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    match (at(50), at(99), times.last().copied()) {
        (Some(p50), Some(p99), Some(most)) => Ok(Figures { p50, p99, most }),
        _ => Err("nothing was measured".into()),
    }
}

/// The others, ended when dropped.
struct Others(Child);

impl Others {
    fn start(agent: &Agent, loads: &[Load], lasting: Duration) -> Result<Self> {
        // Should this process be killed they end by themselves.
        let at_most = (lasting + WARM_UP + Duration::from_secs(30)).as_secs();
        let child = Command::new("nice")
            .args(["-n", "5"])
            .arg(std::env::current_exe()?)
            .arg(BUSY)
            .arg(agent.socket())
            .arg(at_most.to_string())
            .args(loads.iter().map(ToString::to_string))
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // Both fail only if they have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The others' own side.
pub(crate) fn hosts(socket: &str, at_most: &str, loads: &[&str]) -> Result<()> {
    let socket = Path::new(socket);
    let at_most = Duration::from_secs(at_most.parse()?);
    let loads: Vec<Load> = loads
        .iter()
        .map(|load| load.parse())
        .collect::<Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    let frame = |json: &str| encode_json(json.as_bytes());
    let status = frame(r#"{"type":"status"}"#)?;
    let ping = ping()?;
    let flood = frame(r#"{"type":"exec","argv":["cat","/dev/zero"]}"#)?;
    let start = frame(r#"{"type":"exec","argv":["true"]}"#)?;
    for load in loads {
        let (count, frame, at_once, last) = match load {
            Load::Ask(count) => (count, &status, 1, "status"),
            Load::Pipeline(count) => (count, &ping, 200, "pong"),
            Load::Flood(count) => (count, &flood, 1, "exec-exited"),
            Load::Start(count) => (count, &start, 1, "exec-exited"),
        };
        for _ in 0..count {
            let (frame, socket) = (frame.clone(), socket.to_owned());
            local.spawn_local(async move {
                if let Err(error) = host(&socket, &frame, at_once, last).await {
                    eprintln!("mvm-benches: a busy host: {error}");
                }
            });
        }
    }
    runtime.block_on(local.run_until(async { tokio::time::sleep(at_most).await }));
    Ok(())
}

/// Asks again and again, with so many requests under way. What an answer ends with is a frame that this
/// word is in.
async fn host(socket: &Path, frame: &[u8], at_once: usize, last: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(connect_line(PORT).as_bytes()).await?;
    let mut answer = vec![0; ok_line(PORT).len()];
    stream.read_exact(&mut answer).await?;
    stream.write_all(&frame.repeat(at_once)).await?;
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; MAX_BODY];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err("the agent closed the connection".into());
        }
        decoder.push(buffer.get(..count).unwrap_or_default());
        let mut answered = 0;
        while let Some(next) = decoder.next_frame()? {
            if let Frame::Json(body) = next
                && body.windows(last.len()).any(|part| part == last.as_bytes())
            {
                answered += 1;
            }
        }
        stream.write_all(&frame.repeat(answered)).await?;
    }
}
