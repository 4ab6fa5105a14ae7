//! What `mvmctl fleet serve`, `vm status` and `vm top` cost over 10,000 fake guests, beside a client and
//! a server that do nothing else.
//!
//! What is measured has a core of its own, and so have its bare counterparts, in turn; the agents and
//! those who ask have the other one.

mod agents;
mod bare;
mod process;

use crate::Result;
use agents::Agents;
pub(crate) use agents::{AGENTS, agents};
pub(crate) use bare::{ASK, SERVE, ask, serve};
use process::{MEASURED, OTHERS, Ran, Server, mvmctl, on_core, rss_mb, run, share};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program is left alone for what it costs while nothing changes: four heartbeats.
const QUIET: Duration = Duration::from_secs(60);

const ROUNDS: usize = 20;

/// How often as many VMs come and go as a tenth of the fleet. What stays once is room that is kept for
/// the next ones; what stays each time is a leak.
const TIDES: usize = 3;

/// Of programs that run for seconds.
const FEW_ROUNDS: usize = 5;

pub(crate) struct Serving {
    pub(crate) complete_s: f64,
    pub(crate) quiet: f64,
    pub(crate) rss_mb: f64,
    /// After the scrapes.
    pub(crate) rss_scraped_mb: f64,
    pub(crate) rss_no_per_vm_mb: f64,
    pub(crate) metrics_mb: f64,
    pub(crate) metrics: Times,
    pub(crate) bare: Times,
    pub(crate) pool: Times,
    pub(crate) dead_s: f64,
    pub(crate) silent_s: f64,
}

/// What is left of VMs that came and went.
pub(crate) struct Left {
    pub(crate) descriptors: i64,
    pub(crate) series: usize,
    /// How much more memory there is after each time.
    pub(crate) rss_mb: Vec<f64>,
}

pub(crate) struct Asking {
    pub(crate) status: Times,
    pub(crate) bare: Times,
    pub(crate) peak_mb: f64,
}

pub(crate) struct Bad {
    pub(crate) status: f64,
    pub(crate) limited: f64,
    /// What was said where few descriptors are allowed.
    pub(crate) note: String,
}

pub(crate) struct Top {
    pub(crate) quiet: f64,
    pub(crate) rss_mb: f64,
}

/// How long something took, in seconds.
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) most: f64,
    /// CPU time each, which other programs do not make longer by much.
    pub(crate) cpu: f64,
}

impl Times {
    /// Of rounds that took so long, and together so much CPU time.
    fn of(mut times: Vec<f64>, cpu: f64) -> Self {
        times.sort_by(f64::total_cmp);
        Self {
            p50: times.get(times.len() / 2).copied().unwrap_or_default(),
            most: times.last().copied().unwrap_or_default(),
            cpu: cpu / times.len() as f64,
        }
    }
}

/// A fleet of guests, and the program that is measured over it.
pub(crate) struct Fleet<'a> {
    program: &'a Path,
    folder: tempfile::TempDir,
    agents: Agents,
    vms: usize,
}

impl<'a> Fleet<'a> {
    /// All of them answer, but for `bad` that are dead and as many that are stalled.
    pub(crate) fn new(program: &'a Path, vms: usize, bad: usize) -> Result<Self> {
        // What asks is not to disturb what is measured. Without the program it does.
        let _ = Command::new("taskset")
            .args(["--cpu-list", "--pid", &OTHERS.to_string()])
            .arg(std::process::id().to_string())
            .stdout(Stdio::null())
            .status();
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("mvmctl.toml"), "")?;
        let agents = Agents::start(folder.path(), vms - 2 * bad, bad, bad)?;
        Ok(Self {
            program,
            folder,
            agents,
            vms,
        })
    }

    fn home(&self) -> &Path {
        self.folder.path()
    }

    fn mvmctl(&self, args: &[&str]) -> Command {
        let mut command = mvmctl(self.program, self.home());
        command.args(args);
        command
    }

    fn serve(&self, args: &[&str]) -> Result<(Server, f64)> {
        let began = Instant::now();
        let serve = ["fleet", "serve", "--listen", "127.0.0.1:0"];
        let server = Server::start(self.mvmctl(&serve).args(args), false)?;
        server.until("/readyz", |answer| answer.starts_with("HTTP/1.1 200"))?;
        Ok((server, began.elapsed().as_secs_f64()))
    }

    pub(crate) fn serving(&mut self) -> Result<Serving> {
        let (lean, _) = self.serve(&["--no-per-vm"])?;
        let rss_no_per_vm_mb = rss_mb(lean.pid())?;
        drop(lean);

        let (server, complete_s) = self.serve(&[])?;
        // What begins with it is over: the first heartbeats.
        std::thread::sleep(Duration::from_secs(20));
        let quiet = share(server.pid(), QUIET)?;
        let rss_quiet = rss_mb(server.pid())?;
        let (metrics, bare, metrics_mb) = self.scraped(&server)?;
        let rss_scraped_mb = rss_mb(server.pid())?;
        let mut pool = Rounds::default();
        for _ in 0..ROUNDS {
            pool.get(&server, "/v1/pools/a0")?;
        }
        let (dead_s, silent_s) = self.vanish(&server)?;
        Ok(Serving {
            complete_s,
            quiet,
            rss_mb: rss_quiet,
            rss_scraped_mb,
            rss_no_per_vm_mb,
            metrics_mb,
            metrics,
            bare,
            pool: pool.times(),
            dead_s,
            silent_s,
        })
    }

    /// How long a scrape takes, and one of a server that has the bytes already; and how large it is.
    fn scraped(&self, server: &Server) -> Result<(Times, Times, f64)> {
        let (_, body) = split(&server.get("/metrics")?)?;
        let file = self.home().join("metrics");
        fs::write(&file, &body)?;
        let mut bare = on_core(MEASURED, &own()?);
        let bare = Server::start(bare.arg(SERVE).arg(&file), true)?;
        let (mut measured, mut beside) = (Rounds::default(), Rounds::default());
        for _ in 0..ROUNDS {
            measured.get(server, "/metrics")?;
            beside.get(&bare, "/metrics")?;
        }
        Ok((measured.times(), beside.times(), body.len() as f64 / 1e6))
    }

    /// What is left of VMs that came and went. All others answer: a handshake with one that does not is
    /// kept for two minutes, and how many there are of those goes up and down.
    pub(crate) fn left(&mut self) -> Result<Left> {
        let (server, _) = self.serve(&[])?;
        std::thread::sleep(Duration::from_secs(20));
        self.come_and_go(&server)
    }

    /// A tenth as many VMs come, are seen, and go, some times.
    fn come_and_go(&mut self, server: &Server) -> Result<Left> {
        let pid = server.pid();
        let (before, memory) = (process::fewest_descriptors(pid)?, rss_mb(pid)?);
        let mut more = Vec::new();
        for _ in 0..TIDES {
            let count = self.vms / 10;
            for (behaviour, expected) in [("idle", count), ("gone", 0)] {
                for number in 0..count {
                    let name = format!("come-{number}");
                    self.agents.set(number, &name, behaviour)?;
                }
                server.until("/v1/pools/come", |answer| {
                    let is_gone = answer.starts_with("HTTP/1.1 404");
                    let idle = format!("\"idle\":{expected},");
                    answer.contains(&idle) || (expected == 0 && is_gone)
                })?;
            }
            // Tasks that end are freed by the next turn of their thread.
            std::thread::sleep(Duration::from_secs(2));
            server.get("/metrics")?;
            more.push(rss_mb(pid)? - memory);
        }
        let (_, body) = split(&server.get("/metrics")?)?;
        let descriptors =
            i64::try_from(process::fewest_descriptors(pid)?)? - i64::try_from(before)?;
        Ok(Left {
            descriptors,
            series: body.lines().filter(|line| line.contains("\"come")).count(),
            rss_mb: more,
        })
    }

    /// How long it takes until a VM is unknown whose connection is closed, and one that falls silent.
    fn vanish(&mut self, server: &Server) -> Result<(f64, f64)> {
        let mut took = [0.0; 2];
        for (took, behaviour) in took.iter_mut().zip(["dead", "stalled"]) {
            let name = format!("last{behaviour}");
            let path = format!("/v1/pools/{name}");
            self.agents.set(0, &format!("{name}-1"), "idle")?;
            server.until(&path, |answer| answer.contains("\"idle\":1,"))?;
            // Watched by now, and not merely asked once.
            std::thread::sleep(Duration::from_secs(2));
            self.agents.set(0, &format!("{name}-1"), behaviour)?;
            *took = server.until(&path, |answer| answer.contains("\"unknown\":1,"))?;
        }
        let [dead, silent] = took;
        Ok((dead, silent))
    }

    /// `vm status` where some are dead and some stalled, and the same with few descriptors.
    pub(crate) fn bad(&self) -> Result<Bad> {
        let ran = run(&mut self.mvmctl(&["vm", "status"]))?;
        self.check_rows(&ran, 4)?;
        let status = ran.seconds;
        let mut limited = mvmctl(Path::new("sh"), self.home());
        limited
            .args(["-c", "ulimit -n 256; exec \"$0\" vm status"])
            .arg(self.program);
        let ran = run(&mut limited)?;
        self.check_rows(&ran, 4)?;
        let note = ran.err.lines().find(|line| line.contains("at once"));
        Ok(Bad {
            status,
            limited: ran.seconds,
            note: note.unwrap_or("nothing was said").to_owned(),
        })
    }

    /// `vm status` where all answer, and a bare client, in turn.
    pub(crate) fn asking(&self) -> Result<Asking> {
        let (mut asked, mut bared, mut peak_mb) = (Vec::new(), Vec::new(), 0.0_f64);
        let (mut asked_cpu, mut bared_cpu) = (0.0, 0.0);
        for _ in 0..FEW_ROUNDS {
            let mut bare = on_core(MEASURED, &own()?);
            let ran = run(bare.arg(ASK).arg(self.home()))?;
            if ran.code != Some(0) {
                return Err(format!("the bare client failed: {}", ran.err).into());
            }
            bared.push(ran.seconds);
            bared_cpu += ran.cpu;
            let ran = run(&mut self.mvmctl(&["vm", "status"]))?;
            self.check_rows(&ran, 0)?;
            asked.push(ran.seconds);
            asked_cpu += ran.cpu;
            peak_mb = peak_mb.max(ran.peak_mb);
        }
        Ok(Asking {
            status: Times::of(asked, asked_cpu),
            bare: Times::of(bared, bared_cpu),
            peak_mb,
        })
    }

    /// There is a row for each VM, in order of their names.
    fn check_rows(&self, ran: &Ran, code: i32) -> Result<()> {
        if ran.code != Some(code) || ran.err.contains("Too many open files") {
            let said: String = ran.err.chars().take(500).collect();
            return Err(format!("vm status ended with {:?}: {said}", ran.code).into());
        }
        let rows = ran.out.lines().skip(1);
        let names: Vec<&str> = rows.filter_map(|row| row.split(' ').next()).collect();
        if names.len() != self.vms || !names.is_sorted() {
            return Err(format!("{} rows, or not in order", names.len()).into());
        }
        Ok(())
    }

    /// `vm top` in a terminal, at one refresh a second.
    pub(crate) fn top(&self) -> Result<Top> {
        let file = self.home().join("pid");
        let script = format!(
            "stty rows 24 cols 80; echo $$ >'{}'; exec taskset --cpu-list {MEASURED} '{}' vm top",
            file.display(),
            self.program.display()
        );
        let mut terminal = mvmctl(Path::new("script"), self.home());
        let mut terminal = terminal
            .args(["--quiet", "--flush", "--command", &script, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let measured = (|| {
            let deadline = Instant::now() + Duration::from_secs(180);
            let mut pid: Option<u32> = None;
            // A connection to each.
            loop {
                if Instant::now() > deadline {
                    return Err("`vm top` has not dialled all within three minutes".into());
                }
                std::thread::sleep(Duration::from_millis(200));
                let text = fs::read_to_string(&file).unwrap_or_default();
                pid = text.trim().parse().ok().or(pid);
                if let Some(pid) = pid
                    && process::descriptors(pid).unwrap_or_default() > self.vms
                {
                    std::thread::sleep(Duration::from_secs(10));
                    return Ok(Top {
                        quiet: share(pid, QUIET)?,
                        rss_mb: rss_mb(pid)?,
                    });
                }
            }
        })();
        // The end of its terminal is its own.
        let _ = terminal.kill();
        let _ = terminal.wait();
        measured
    }
}

/// This program.
fn own() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// GETs of a server.
#[derive(Default)]
struct Rounds {
    seconds: Vec<f64>,
    cpu: f64,
}

impl Rounds {
    fn get(&mut self, server: &Server, path: &str) -> Result<()> {
        let (cpu, began) = (process::on_cpu(server.pid())?, Instant::now());
        server.get(path)?;
        self.seconds.push(began.elapsed().as_secs_f64());
        self.cpu += process::on_cpu(server.pid())? - cpu;
        Ok(())
    }

    fn times(self) -> Times {
        Times::of(self.seconds, self.cpu)
    }
}

/// An answer's head and body. The body comes whole: the connection was closed behind it.
fn split(answer: &str) -> Result<(String, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok((head.to_owned(), body.to_owned()))
}
