//! What the agent is measured against: the least that does the same job.

use crate::Result;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const ECHO: &str = "--bare-echo";
pub(crate) const SPAWN: &str = "--bare-spawn";
pub(crate) const WRITE: &str = "--bare-write";
pub(crate) const RELAY: &str = "--bare-relay";

/// Sends back what comes, on one connection, with blocking calls.
pub(crate) fn echo(socket: &Path) -> Result<()> {
    let (mut stream, _) = UnixListener::bind(socket)?.accept()?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(buffer.get(..count).unwrap_or_default())?,
        }
    }
}

/// Starts the shell with `true` so many times a second, waits for each, and prints the CPU time
/// of it all in milliseconds.
pub(crate) fn spawn(seconds: &str, a_second: &str) -> Result<()> {
    let (seconds, a_second): (u32, u32) = (seconds.parse()?, a_second.parse()?);
    let start = Instant::now();
    for slot in 0..seconds * a_second {
        let due = start + Duration::from_secs(1) * slot / a_second;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let status = Command::new("/bin/sh")
            .args(["-c", "true"])
            .stdin(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("true: {status}").into());
        }
    }
    println!("{}", cpu("self")?);
    Ok(())
}

/// Writes so many bytes to standard output, a pipe's worth at a time.
pub(crate) fn write(bytes: &str) -> Result<()> {
    let mut left: usize = bytes.parse()?;
    let piece = vec![b'x'; 64 * 1024];
    let mut output = fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    while left > 0 {
        let now = piece.get(..left.min(piece.len())).unwrap_or_default();
        output.write_all(now)?;
        left -= now.len();
    }
    Ok(())
}

/// Starts the writer of so many bytes, and carries what it writes from a pipe to standard output with
/// blocking calls.
pub(crate) fn relay(bytes: &str) -> Result<()> {
    let mut writer = Command::new(std::env::current_exe()?)
        .args([WRITE, bytes])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut pipe = writer.stdout.take().ok_or("no pipe")?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match pipe.read(&mut buffer)? {
            0 => break,
            count => output.write_all(buffer.get(..count).unwrap_or_default())?,
        }
    }
    writer.wait()?;
    Ok(())
}

/// CPU time of a process and of all its children that it has waited for, in milliseconds.
///
/// From the 14th to 17th field of `/proc/PID/stat` (proc(5)), in ticks of 10 ms: the kernel shows
/// 100 a second to user space on every architecture that we run on.
pub(crate) fn cpu(pid: &str) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(')').ok_or("no `)` in /proc/PID/stat")?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() * 10)
}
