//! A program that is measured: how it is started, what it costs, and how it is asked.

use crate::{Result, idle};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The core of what is measured; of the bare counterparts, too.
pub(super) const MEASURED: usize = 0;

/// The core of all others.
pub(super) const OTHERS: usize = 1;

/// A program that runs on one core alone, where there are two.
pub(super) fn on_core(core: usize, program: &Path) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 && core == OTHERS {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

/// `mvmctl` on that fleet.
pub(super) fn mvmctl(program: &Path, home: &Path) -> Command {
    let mut command = on_core(MEASURED, program);
    command
        .env("MVM_HOME", home)
        .env("MVM_CONFIG", home.join("mvmctl.toml"))
        .env_remove("NOTIFY_SOCKET");
    command
}

/// For how many seconds a process has had a CPU so far: that of its threads that have not ended.
pub(super) fn on_cpu(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let figures = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let first: f64 = figures
            .split(' ')
            .next()
            .unwrap_or_default()
            .parse()
            .unwrap_or_default();
        nanoseconds += first;
    }
    Ok(nanoseconds / 1e9)
}

/// What part of a core a process takes, over that time.
pub(super) fn share(pid: u32, over: Duration) -> Result<f64> {
    let (before, began) = (on_cpu(pid)?, Instant::now());
    std::thread::sleep(over);
    Ok((on_cpu(pid)? - before) / began.elapsed().as_secs_f64())
}

pub(super) fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The fewest within some seconds: VMs that do not answer are dialled now and then.
pub(super) fn fewest_descriptors(pid: u32) -> Result<usize> {
    let mut fewest = usize::MAX;
    for _ in 0..200 {
        fewest = fewest.min(descriptors(pid)?);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(fewest)
}

pub(super) fn rss_mb(pid: u32) -> Result<f64> {
    Ok(idle::rss_bytes(pid)? as f64 / 1e6)
}

/// How a program ran that ends by itself.
pub(super) struct Ran {
    pub(super) seconds: f64,
    /// CPU time, also of the kernel's work for it, in seconds.
    pub(super) cpu: f64,
    /// The most memory that it had, in MB.
    pub(super) peak_mb: f64,
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs it to its end.
pub(super) fn run(command: &mut Command) -> Result<Ran> {
    let began = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = child.id();
    let watch = std::thread::spawn(move || {
        let (mut peak, mut cpu) = (0.0_f64, 0.0_f64);
        // Once it has ended it has no memory, and soon no file.
        while let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let Some(kb) = line.and_then(|line| line.trim().split(' ').next()?.parse().ok()) else {
                break;
            };
            peak = peak.max(kb);
            cpu = cpu.max(on_cpu(pid).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(5));
        }
        (peak * 1024.0 / 1e6, cpu)
    });
    let output = child.wait_with_output()?;
    let seconds = began.elapsed().as_secs_f64();
    let (peak_mb, cpu) = watch.join().map_err(|_| "the watcher panicked")?;
    Ok(Ran {
        seconds,
        cpu,
        peak_mb,
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A server over HTTP, ended when dropped.
pub(super) struct Server {
    child: Child,
    address: String,
    /// Whoever writes there finds somebody who reads.
    _said: Box<dyn std::io::BufRead>,
}

impl Server {
    /// Its first line of that output says where it listens.
    pub(super) fn start(command: &mut Command, says_on_stdout: bool) -> Result<Self> {
        let mut child = if says_on_stdout {
            command.stdout(Stdio::piped()).spawn()?
        } else {
            command.stderr(Stdio::piped()).spawn()?
        };
        let mut said: Box<dyn std::io::BufRead> = if says_on_stdout {
            Box::new(BufReader::new(child.stdout.take().ok_or("no output")?))
        } else {
            Box::new(BufReader::new(child.stderr.take().ok_or("no errors")?))
        };
        let mut line = String::new();
        said.read_line(&mut line)?;
        let (_, address) = line.trim().split_once("://").ok_or_else(|| line.clone())?;
        Ok(Self {
            address: address.to_owned(),
            child,
            _said: said,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address
        )?;
        let mut answer = Vec::with_capacity(32 << 20);
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8(answer)?)
    }

    /// Waits until that GET gives what is asked for; how long that took.
    pub(super) fn until(&self, path: &str, is_so: impl Fn(&str) -> bool) -> Result<f64> {
        let began = Instant::now();
        loop {
            let answer = self.get(path)?;
            if is_so(&answer) {
                return Ok(began.elapsed().as_secs_f64());
            }
            if began.elapsed() > Duration::from_secs(180) {
                return Err(format!("{path} has answered for three minutes: {answer:.300}").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
