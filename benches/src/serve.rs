//! What `mvmctl fleet serve` costs over 10,000 fake guests, 1 % of them dead and 1 % stalled, all with
//! hostile names; and what asking them all takes, beside a bare client that does the same handshakes.

use crate::{Result, idle};
use mvm_fake_fleet::{Behaviour, FakeFleet, Guests};
use mvm_protocol::frame::encode_json;
use mvm_protocol::{Decoder, Frame};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How this program is called to be the agents of guests.
pub(crate) const AGENTS: &str = "--agents";

/// Each half of them is of one process: an agent takes two descriptors.
const HALVES: [&str; 2] = ["a", "b"];

/// How long the server is left alone for what it costs while nothing changes.
const QUIET: Duration = Duration::from_secs(30);

const ROUNDS: usize = 20;

pub(crate) struct Figures {
    pub(crate) complete_s: f64,
    pub(crate) quiet_percent: f64,
    pub(crate) rss_mb: f64,
    pub(crate) rss_no_per_vm_mb: f64,
    pub(crate) metrics_mb: f64,
    pub(crate) metrics_p50_ms: f64,
    pub(crate) pool_p50_ms: f64,
    pub(crate) left_behind: i64,
    pub(crate) status_s: f64,
    pub(crate) bare_s: f64,
    pub(crate) status_bad_s: f64,
    pub(crate) status_limited_s: f64,
}

/// The agents of guests until standard input ends; each line of it is a name and a behaviour.
pub(crate) fn agents(home: &str, groups: &[&str]) -> Result<()> {
    let guests = Guests {
        pool: None,
        is_hostile: true,
    };
    let mut fleet = FakeFleet::start(Path::new(home), guests);
    for group in groups.chunks(3) {
        let [name, behaviour, count] = group else {
            return Err("NAME BEHAVIOUR COUNT, each time".into());
        };
        let behaviour: Behaviour = behaviour.parse()?;
        for number in 1..=count.parse::<usize>()? {
            fleet.set(&format!("{name}-{number}"), behaviour);
        }
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if let Some((name, behaviour)) = line.split_once(' ') {
            fleet.set(name, behaviour.parse()?);
            println!("{line}");
        }
    }
    Ok(())
}

/// A process of agents.
struct Agents {
    child: Child,
    orders: Option<ChildStdin>,
    done: BufReader<ChildStdout>,
}

impl Agents {
    fn start(home: &Path, groups: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(AGENTS)
            .arg(home)
            .args(groups)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let done = BufReader::new(child.stdout.take().ok_or("no output")?);
        let orders = child.stdin.take();
        let mut agents = Self {
            child,
            orders,
            done,
        };
        agents.wait()?;
        Ok(agents)
    }

    fn order(&mut self, line: &str) -> Result<()> {
        let orders = self.orders.as_mut().ok_or("no input")?;
        writeln!(orders, "{line}")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        if self.done.read_line(&mut line)? == 0 {
            return Err("the agents have ended".into());
        }
        Ok(())
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// `mvmctl fleet serve`, ended when dropped.
struct Server {
    child: Child,
    address: String,
    complete: Duration,
}

impl Server {
    fn start(mvmctl: &Path, home: &Path, args: &[&str]) -> Result<Self> {
        let began = Instant::now();
        let mut child = command(mvmctl, home)
            .args(["fleet", "serve", "--listen", "127.0.0.1:0"])
            .args(args)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stderr.take().ok_or("no errors")?).read_line(&mut line)?;
        let (_, address) = line.trim().split_once("://").ok_or(line.clone())?;
        let mut server = Self {
            child,
            address: address.to_owned(),
            complete: Duration::ZERO,
        };
        while !server.get("/readyz")?.starts_with("HTTP/1.1 200") {
            std::thread::sleep(Duration::from_millis(50));
        }
        server.complete = began.elapsed();
        Ok(server)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How long a GET takes, p50, in ms; and how much comes, in bytes.
    fn time(&self, path: &str) -> Result<(f64, usize)> {
        let mut times = Vec::new();
        let mut length = 0;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            length = self.get(path)?.len();
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        Ok((times.get(ROUNDS / 2).copied().unwrap_or_default(), length))
    }

    fn descriptors(&self) -> Result<i64> {
        let folder = format!("/proc/{}/fd", self.child.id());
        Ok(i64::try_from(std::fs::read_dir(folder)?.count())?)
    }

    fn rss_mb(&self) -> Result<f64> {
        Ok(idle::rss_bytes(self.child.id())? as f64 / 1e6)
    }

    /// CPU time so far, in seconds.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').ok_or("no stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |number: usize| -> Result<f64> {
            Ok(fields.get(number - 3).ok_or("no field")?.parse()?)
        };
        // In hundredths of a second, as Linux tells everybody.
        Ok((ticks(14)? + ticks(15)?) / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(mvmctl: &Path, home: &Path) -> Command {
    let mut command = Command::new(mvmctl);
    command
        .env("MVM_HOME", home)
        .env("MVM_CONFIG", home.join("mvmctl.toml"))
        .env_remove("NOTIFY_SOCKET");
    command
}

/// The agents of two halves; `good` of each answer, `bad` are dead and as many stalled.
fn fleet(home: &Path, good: usize, bad: usize) -> Result<Vec<Agents>> {
    let of = |half: &str| {
        let groups = [
            ("", "idle:60", good),
            ("dead", "dead", bad),
            ("stall", "stalled", bad),
        ];
        let groups = groups.map(|(name, behaviour, count)| {
            [
                format!("{half}{name}"),
                behaviour.to_owned(),
                count.to_string(),
            ]
        });
        Agents::start(home, &groups.concat())
    };
    HALVES.into_iter().map(of).collect()
}

pub(crate) fn measure(mvmctl: &Path, vms: usize) -> Result<Figures> {
    let home = tempfile::tempdir()?;
    let home = home.path();
    std::fs::write(home.join("mvmctl.toml"), "")?;
    let (half, bad) = (vms / 2, vms / 200);
    let mut agents = fleet(home, half - 2 * bad, bad)?;

    let lean = Server::start(mvmctl, home, &["--no-per-vm"])?;
    let rss_no_per_vm_mb = lean.rss_mb()?;
    drop(lean);

    let server = Server::start(mvmctl, home, &[])?;
    let (cpu, began) = (server.cpu()?, Instant::now());
    std::thread::sleep(QUIET);
    let quiet = (server.cpu()? - cpu) / began.elapsed().as_secs_f64();
    let (metrics_p50_ms, length) = server.time("/metrics")?;
    let (pool_p50_ms, _) = server.time("/v1/pools/a")?;
    let rss_mb = server.rss_mb()?;
    let before = server.descriptors()?;
    for behaviour in ["idle", "gone"] {
        for number in 0..vms / 10 {
            let half = number % HALVES.len();
            let agents = agents.get_mut(half).ok_or("no agents")?;
            agents.order(&format!("come-{number} {behaviour}"))?;
        }
    }
    let end = Instant::now() + Duration::from_secs(10);
    while server.descriptors()? > before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    let left_behind = server.descriptors()? - before;
    let complete_s = server.complete.as_secs_f64();
    drop(server);

    let status_bad_s = status(command(mvmctl, home).arg("vm").arg("status"), Some(4))?;
    let mut limited = command(Path::new("sh"), home);
    limited
        .args(["-c", "ulimit -n 256; exec \"$0\" vm status"])
        .arg(mvmctl);
    let status_limited_s = status(&mut limited, Some(4))?;
    drop(agents);

    let home = tempfile::tempdir()?;
    let home = home.path();
    std::fs::write(home.join("mvmctl.toml"), "")?;
    let _agents = fleet(home, half, 0)?;
    let bare_s = bare(home)?;
    let status_s = status(command(mvmctl, home).arg("vm").arg("status"), Some(0))?;
    Ok(Figures {
        complete_s,
        quiet_percent: quiet * 100.0,
        rss_mb,
        rss_no_per_vm_mb,
        metrics_mb: length as f64 / 1e6,
        metrics_p50_ms,
        pool_p50_ms,
        left_behind,
        status_s,
        bare_s,
        status_bad_s,
        status_limited_s,
    })
}

/// How long `vm status` takes. Its rows have to be in name order.
fn status(command: &mut Command, code: Option<i32>) -> Result<f64> {
    let began = Instant::now();
    let ran = command.stderr(Stdio::piped()).output()?;
    let took = began.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&ran.stderr);
    if ran.status.code() != code || said.contains("Too many open files") {
        return Err(format!("vm status ended with {}: {said}", ran.status).into());
    }
    let rows = String::from_utf8_lossy(&ran.stdout);
    let names: Vec<&str> = rows
        .lines()
        .skip(1)
        .filter_map(|row| row.split(' ').next())
        .collect();
    if !names.is_sorted() {
        return Err("vm status is not in name order".into());
    }
    Ok(took)
}

/// The same handshakes and requests by a client that does nothing else, as many at once.
fn bare(home: &Path) -> Result<f64> {
    let entries = std::fs::read_dir(home.join("vms"))?;
    let sockets: std::io::Result<Vec<PathBuf>> = entries
        .map(|entry| Ok(entry?.path().join("v.sock")))
        .collect();
    let sockets = sockets?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let began = Instant::now();
    runtime.block_on(async {
        let next = std::cell::Cell::new(0);
        let one = async || -> Result<()> {
            while let Some(socket) = sockets.get(next.replace(next.get() + 1)) {
                ask(socket).await?;
            }
            Ok(())
        };
        let all = futures_util::future::join_all((0..256).map(|_| one()));
        all.await.into_iter().collect::<Result<()>>()
    })?;
    Ok(began.elapsed().as_secs_f64())
}

async fn ask(socket: &Path) -> Result<()> {
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(b"CONNECT 52\n").await?;
    while stream.read_u8().await? != b'\n' {}
    stream
        .write_all(&encode_json(br#"{"type":"status","id":1}"#)?)
        .await?;
    let mut decoder = Decoder::default();
    let mut buffer = [0; 2048];
    loop {
        let count = stream.read(&mut buffer).await?;
        decoder.push(buffer.get(..count).unwrap_or_default());
        match decoder.next_frame()? {
            Some(Frame::Json(_)) => return Ok(()),
            Some(_) => return Err("no JSON".into()),
            None if count == 0 => return Err("closed".into()),
            None => {}
        }
    }
}
