//! A guest and those who ask it, for minutes on end: what of memory, descriptors, processes and threads
//! is more afterwards than it was at the beginning, in the agent, in `mvmctl fleet serve` and in the vsock
//! device.
//!
//! It goes by rounds. Each does everything at once, much of it broken off in the middle, and ends with
//! nothing open; then is counted. `cargo xtask soak --minutes 60` goes on for an hour.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_client::dev::Output;
use mvm_client::{Deadlines, Endpoint, Session, Watcher};
use mvm_guest_tests::{Mvmctl, Parts, SOON, build_pool, eventually, remote};
use mvm_protocol::dev::exec::{Argv, Exec};
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::signal::Signal;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const VM: &str = "soak";

/// For how long, in minutes, if nobody says otherwise: what CI has time for.
const MINUTES: u64 = 2;

/// Before these are over something is still being used for the first time.
const FIRST_ROUNDS: usize = 2;

/// What one process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    rss_kb: i64,
    descriptors: i64,
    children: i64,
    threads: i64,
}

impl Count {
    /// Of text that [`COUNT`] has printed.
    fn read(text: &str) -> Self {
        let numbers: Vec<i64> = text
            .split_whitespace()
            .map(|it| it.parse().unwrap())
            .collect();
        let &[rss_kb, threads, descriptors, children] = numbers.as_slice() else {
            panic!("not four numbers: {text}");
        };
        Self {
            rss_kb,
            descriptors,
            children,
            threads,
        }
    }

    fn fields(self) -> [i64; 4] {
        [self.rss_kb, self.descriptors, self.children, self.threads]
    }

    /// All but memory, which need not be given back; so many descriptors more are no matter.
    fn is_no_more_than(self, other: Self, descriptors: i64) -> bool {
        self.descriptors <= other.descriptors + descriptors
            && self.children <= other.children
            && self.threads <= other.threads
    }
}

/// Counts a process, whose number is in `$p`: here, and by busybox. It has a descriptor of the folder
/// open that it lists, but not in that process.
const COUNT: &str = "sed -n 's/^Rss: *\\([0-9]*\\) kB/\\1/p' /proc/$p/smaps_rollup; \
     sed -n 's/^Threads:[^0-9]*//p' /proc/$p/status; ls /proc/$p/fd | wc -l; \
     cat /proc/$p/task/*/children | wc -w";

fn count_here(pid: i64) -> Count {
    let script = format!("p={pid}; {COUNT}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    Count::read(&String::from_utf8_lossy(&output.stdout))
}

struct Soak {
    mvmctl: Mvmctl,
    server: Child,
    /// Where the fleet is served.
    address: String,
    agent: u32,
    backend: i64,
    folder: tempfile::TempDir,
}

impl Soak {
    async fn new(parts: &Parts) -> Self {
        let folder = tempfile::tempdir().unwrap();
        build_pool(parts, folder.path(), true);
        let image = folder.path().join("image");
        let image = image.to_str().unwrap();
        let mvmctl = Mvmctl::new();
        mvmctl.ok(&["vm", "start", VM, "--image", image, "--backend", "qemu"]);
        let is_backend = |pid: &i64| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("vhost-device-v")
        };
        let backend = mvmctl.pids(VM).into_iter().find(is_backend).unwrap();
        let mut server = mvmctl.start(&["fleet", "serve", "--listen", "127.0.0.1:0"]);
        let stderr = BufReader::new(server.stderr.take().unwrap());
        let mut lines = stderr.lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("http://")?.1.to_owned()));
        // Whatever else it says is read, so that it never waits for that.
        std::thread::spawn(move || lines.for_each(drop));
        let mut soak = Self {
            address: address.expect("where it serves"),
            agent: 0,
            backend,
            mvmctl,
            server,
            folder,
        };
        soak.agent = soak.session().await.inspect().await.unwrap().agent.pid;
        soak
    }

    fn socket(&self) -> PathBuf {
        self.mvmctl.file(VM, "v.sock")
    }

    async fn session(&self) -> Session {
        session(&self.socket()).await
    }

    async fn count(&self) -> [Count; 3] {
        let script = format!("p={}; {COUNT}", self.agent);
        let agent = Count::read(&remote::run(&self.socket(), &script).await);
        let server = i64::from(self.server.id());
        [agent, count_here(server), count_here(self.backend)]
    }

    /// What there is once what was closed is gone, which is noticed when its turn comes.
    ///
    /// vhost-device-vsock 0.3.0 now and then keeps a connection that the host has closed, and does not
    /// tell the guest. The agent cannot know, and keeps it until it has been silent for ten minutes: of
    /// descriptors it has two for each at most, and otherwise no more than at first.
    async fn settled(&self, first: &[Count; 3]) -> [Count; 3] {
        let until = Instant::now() + SOON;
        loop {
            let now = self.count().await;
            let [agent, server, device] = [0, 1, 2].map(|which| (now[which], first[which]));
            let kept = (device.0.descriptors - device.1.descriptors).max(0);
            if agent.0.is_no_more_than(agent.1, 2 * kept) && server.0.is_no_more_than(server.1, 0) {
                return now;
            }
            assert!(Instant::now() < until, "{first:?} became {now:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Everything at once. What is begun and not ended here is dropped in the middle.
    async fn round(&self, number: usize) {
        let mut hosts = JoinSet::new();
        for host in 0..12 {
            let socket = self.socket();
            hosts.spawn(async move {
                let mut session = session(&socket).await;
                for _ in 0..3 {
                    session.status().await.unwrap();
                    session.inspect().await.unwrap();
                }
                match host % 4 {
                    0 => drop(
                        Watcher::start(session, Duration::from_secs(5))
                            .await
                            .unwrap(),
                    ),
                    1 => flood(session).await,
                    2 => short(session).await,
                    _ => check(session).await,
                }
            });
        }
        let scraped = self.address.clone();
        hosts.spawn_blocking(move || (0..3).for_each(|_| scrape(&scraped)));
        let socket = self.socket();
        hosts.spawn_blocking(move || half_a_frame(&socket));
        while let Some(done) = hosts.join_next().await {
            done.unwrap();
        }
        let there = format!("{VM}:/tmp/copy");
        let back = self.folder.path().join(format!("copy-{number}"));
        let image = self.folder.path().join("etc");
        let cp = |from: &str, to: &str| self.mvmctl.ok(&["vm", "cp", from, to]);
        cp(image.to_str().unwrap(), &there);
        cp(&there, back.to_str().unwrap());
        fs::remove_dir_all(&back).unwrap();
        let job = ["vm", "exec", "--detach", VM, "--", "sleep", "100"];
        let job = self.mvmctl.ok(&job).stdout;
        self.mvmctl.ok(&["vm", "kill", VM, job.trim()]);
        remote::run(&self.socket(), "rm -r /tmp/copy").await;
    }
}

impl Drop for Soak {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

async fn session(socket: &Path) -> Session {
    let endpoint = Endpoint::unix(socket.to_owned());
    let session = Session::connect(&endpoint, &Deadlines::default()).await;
    session.unwrap()
}

fn exec(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec::new(Argv::new(words.to_vec()).unwrap())
}

/// Reads a part of what has no end, and ends it: what is dropped with much on its way is kept even more
/// often, see [`Soak::settled`].
async fn flood(mut session: Session) {
    let command = session.exec(exec("exec cat /dev/zero")).await.unwrap();
    let (mut input, mut output) = command.split();
    let mut read = 0;
    loop {
        match output.next().await.unwrap() {
            Output::Stdout(bytes) if read < 4 << 20 => {
                read += bytes.len();
                if read >= 4 << 20 {
                    input.signal(Signal::new("KILL").unwrap()).await.unwrap();
                }
            }
            Output::Exited(_) => return,
            _ => {}
        }
    }
}

async fn short(mut session: Session) {
    for _ in 0..3 {
        let command = session.exec(exec("echo out; exit 3")).await.unwrap();
        let (_input, mut output) = command.split();
        while !matches!(output.next().await.unwrap(), Output::Exited(_)) {}
    }
}

async fn check(mut session: Session) {
    let name = "web".to_owned();
    let kind = CheckKind::Integration;
    session.check(Check { kind, name }).await.unwrap();
}

fn half_a_frame(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let mut line = [0; 6];
    stream.read_exact(&mut line).unwrap();
    stream.write_all(&[0, 0, 1, 0, b'{']).unwrap();
}

fn scrape(address: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("mvm_"), "{answer}");
}

/// What a line through these points rises by in an hour: least squares.
fn slope_an_hour(points: &[(f64, f64)]) -> f64 {
    let mean =
        |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over = points.iter().map(|point| (point.0 - x) * (point.1 - y));
    let under = points.iter().map(|point| (point.0 - x).powi(2));
    3600.0 * over.sum::<f64>() / under.sum::<f64>().max(f64::MIN_POSITIVE)
}

const NAMES: [&str; 3] = ["agent", "fleet serve", "vsock device"];

/// How much more memory there may be at the end, in KB: what is beyond that is a leak, and not what an
/// allocator keeps. The device is no program of ours.
const MORE_KB: [i64; 2] = [1024, 8192];

#[tokio::test]
async fn nothing_is_more_after_minutes_than_it_was_at_the_beginning() {
    let Some(parts) = Parts::find() else { return };
    let minutes = std::env::var("MVM_SOAK_MINUTES");
    let minutes = minutes.map_or(MINUTES, |minutes| minutes.parse().unwrap());
    let soak = Soak::new(&parts).await;
    for number in 0..FIRST_ROUNDS {
        soak.round(number).await;
    }
    // What was closed is noticed when its turn comes.
    let mut before = None;
    let first = eventually("the same twice", async || {
        let count = soak.count().await;
        let same = before.replace(count) == Some(count);
        same.then_some(count)
    });
    let first = first.await;
    let began = Instant::now();
    let mut counts = vec![(0.0, first)];
    while began.elapsed() < Duration::from_secs(60 * minutes) {
        soak.round(counts.len()).await;
        let count = soak.settled(&first).await;
        counts.push((began.elapsed().as_secs_f64(), count));
    }
    let (_, last) = *counts.last().unwrap();
    eprintln!("{} rounds in {minutes} minutes", counts.len() - 1);
    eprintln!("| process | what | at first | at last | an hour |");
    eprintln!("| --- | --- | --- | --- | --- |");
    for (which, name) in NAMES.into_iter().enumerate() {
        let fields = ["KB resident", "descriptors", "children", "threads"];
        for (field, what) in fields.into_iter().enumerate() {
            let of = |counts: &[Count; 3]| counts[which].fields()[field];
            let points = counts.iter().map(|(at, counts)| (*at, of(counts) as f64));
            let slope = slope_an_hour(&points.collect::<Vec<_>>());
            let (first, last) = (of(&first), of(&last));
            eprintln!("| {name} | {what} | {first} | {last} | {slope:+.1} |");
        }
    }
    for ((name, more_kb), (last, first)) in NAMES.iter().zip(MORE_KB).zip(last.iter().zip(&first)) {
        let more = last.rss_kb - first.rss_kb;
        assert!(more <= more_kb, "{name} has {more} KB more");
    }
}
