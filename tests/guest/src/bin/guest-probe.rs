//! Runs inside a test's guest: what a program there sees of the agent's port.
//!
//! The tests compile this file by itself, statically linked, so it uses the standard library alone.
//! `guest-probe dial CID PORT` dials an address of `AF_VSOCK` (`self` is the guest's own), sends a
//! ping and prints one line about what came of it. `guest-probe random COUNT` draws so many numbers
//! from the kernel's generator, a call each, and prints 12 hexadecimal digits of each. `guest-probe
//! reseed` has that generator take a new seed. `guest-probe clock` prints the milliseconds since
//! 1970. `guest-probe serve PORT` runs what a test sends it from the host. `guest-probe sleep-cost
//! SOCKET MOUNT ROUNDS` measures the agent's `sleep-prep` and the bare system calls in turn. `guest-probe
//! draw FILE` adds a line to a file each millisecond: the generation that the agent has written, a random
//! number, and both clocks in milliseconds; and when the generation is another, first of all a line with
//! the payload. `guest-probe fuse FOLDER [DEVICE]` serves a filesystem there.
//! `guest-probe watched` is a service with a watchdog. `guest-probe freeze-cost SOCKET ROUNDS` measures
//! the agent's `freeze` of 200 processes in 20 cgroups, and its bare writes and reads, in turn.
//! `guest-probe watch SOCKET FILE` adds a line to a file for each event of which the agent tells.
//! `guest-probe descriptors PID COUNT` lets a process have no more than so many.

#![allow(unsafe_code, reason = "the standard library knows no AF_VSOCK")]

#[path = "guest-probe/fuse.rs"]
mod fuse;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const CLOEXEC: i32 = 0o2_000_000;
/// `_IO(7, 0xb9)`: tells the guest's own CID.
const GET_LOCAL_CID: u64 = 0x7b9;
/// `_IO('R', 0x07)`
const RESEED: u64 = 0x5207;

/// `struct sockaddr_vm`
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn connect(socket: i32, address: *const Address, length: u32) -> i32;
    fn bind(socket: i32, address: *const Address, length: u32) -> i32;
    fn listen(socket: i32, backlog: i32) -> i32;
    fn accept(socket: i32, address: *mut Address, length: *mut u32) -> i32;
    fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize;
    fn ioctl(file: i32, request: u64, ...) -> i32;
    fn syncfs(file: i32) -> i32;
    fn poll(files: *mut PollFd, count: u64, timeout: i32) -> i32;
    fn clock_gettime(clock: i32, time: *mut i64) -> i32;
    fn prlimit(pid: i32, resource: u32, new: *const [u64; 2], old: *mut [u64; 2]) -> i32;
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let line = match words.as_slice() {
        ["dial", "self", port] => dial(own_cid()?, number(port)?),
        ["dial", cid, port] => dial(number(cid)?, number(port)?),
        ["random", count] => random(number(count)?)?,
        ["reseed"] => reseed()?,
        ["clock"] => clock()?,
        ["draw", file] => draw(file)?,
        ["fuse", folder] => fuse::serve(folder, None)?,
        ["fuse", folder, device] => fuse::serve(folder, Some(device))?,
        ["watched"] => watched()?,
        ["serve", port] => serve(number(port)?)?,
        ["freeze-cost", socket, rounds] => freeze_cost(socket, number(rounds)?)?,
        ["watch", socket, file] => watch(socket, file)?,
        ["descriptors", pid, count] => descriptors(number(pid)?, number(count)?)?,
        ["sleep-cost", socket, mount, rounds] => sleep_cost(socket, mount, number(rounds)?)?,
        _ => {
            return Err(io::Error::other(
                "usage: guest-probe dial CID|self PORT | random COUNT | reseed | clock \
                 | draw FILE | fuse FOLDER [DEVICE] | watched | serve PORT | sleep-cost SOCKET MOUNT ROUNDS \
                 | freeze-cost SOCKET ROUNDS | watch SOCKET FILE | descriptors PID COUNT",
            ));
        }
    };
    writeln!(io::stdout(), "{line}")
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(io::Error::other)
}

fn dial(cid: u32, port: u32) -> String {
    let mut stream = match open(cid, port) {
        Ok(stream) => stream,
        Err(error) => return format!("not connected: {error}"),
    };
    let body = b"{\"type\":\"ping\"}";
    let mut frame = vec![0, 0, 0, 15];
    frame.extend_from_slice(body);
    let mut answer = [0; 256];
    // A peer that has closed makes the write or the read fail, as it happens to be.
    match stream
        .write_all(&frame)
        .and_then(|()| stream.read(&mut answer))
    {
        Ok(0) => "connected, then closed without a byte".to_owned(),
        Ok(count) => {
            let answer = answer.get(..count).unwrap_or_default();
            format!("answered: {}", String::from_utf8_lossy(answer))
        }
        Err(error) => format!("connected, then closed without a byte ({})", error.kind()),
    }
}

fn open(cid: u32, port: u32) -> io::Result<File> {
    let stream = new_socket()?;
    let address = address(cid, port);
    // SAFETY: the pointer is to an address that lives until the call returns, and 16 is its size.
    let result = unsafe { connect(stream.as_raw_fd(), &raw const address, 16) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stream)
}

fn new_socket() -> io::Result<File> {
    // SAFETY: takes three numbers and gives a new descriptor, or a negative number.
    let descriptor = unsafe { socket(AF_VSOCK, SOCK_STREAM | CLOEXEC, 0) };
    owned(descriptor)
}

fn owned(descriptor: i32) -> io::Result<File> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

fn address(cid: u32, port: u32) -> Address {
    Address {
        family: 40,
        reserved: 0,
        port,
        cid,
        zero: [0; 4],
    }
}

/// Runs scripts, one connection after the other. A script comes as its length in decimal, a newline
/// and itself; its exit code, the length of what it printed, a newline and that go back.
fn serve(port: u32) -> io::Result<String> {
    let listener = new_socket()?;
    let anywhere = address(u32::MAX, port);
    // SAFETY: the pointer is to an address that lives until the call returns, and 16 is its size.
    let bound = unsafe { bind(listener.as_raw_fd(), &raw const anywhere, 16) };
    // SAFETY: takes two numbers.
    if bound < 0 || unsafe { listen(listener.as_raw_fd(), 8) } < 0 {
        return Err(io::Error::last_os_error());
    }
    loop {
        let nobody = std::ptr::null_mut();
        // SAFETY: a null address asks for none, and the length is not looked at then.
        let descriptor = unsafe { accept(listener.as_raw_fd(), nobody, std::ptr::null_mut()) };
        // A host that goes away in the middle of a script is the test's affair.
        if let Err(error) = owned(descriptor).and_then(run) {
            eprintln!("guest-probe: {error}");
        }
    }
}

fn run(mut stream: File) -> io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut length = String::new();
    reader.read_line(&mut length)?;
    let mut script = vec![0; number(length.trim())? as usize];
    reader.read_exact(&mut script)?;
    let script = String::from_utf8(script).map_err(io::Error::other)?;
    let output = Command::new("/bin/sh").arg("-c").arg(script).output()?;
    let printed = [output.stdout, output.stderr].concat();
    let code = output.status.code().unwrap_or(-1);
    let mut answer = format!("{code} {}\n", printed.len()).into_bytes();
    answer.extend(printed);
    stream.write_all(&answer)?;
    // The host closes first.
    stream.read_exact(&mut [0]).or(Ok(()))
}

fn random(count: u32) -> io::Result<String> {
    let mut text = String::new();
    for _ in 0..count {
        let _ = write!(text, "{:012x}", number_drawn()? >> 16);
    }
    Ok(text)
}

fn number_drawn() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the kernel writes at most as many bytes as the array has.
    let got = unsafe { getrandom(bytes.as_mut_ptr(), bytes.len(), 0) };
    if got != 8 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

/// Each line is one write, so that who reads the file meanwhile sees whole lines. A number during whose
/// drawing the guest slept is left out: whether it was drawn before or after nobody knows.
fn draw(file: &str) -> io::Result<String> {
    let mut file = File::options().append(true).create(true).open(file)?;
    let mut last = generation();
    loop {
        let generation = generation();
        if generation != last {
            let payload = std::fs::read_to_string("/run/mvm/payload.json");
            let payload = payload.unwrap_or_else(|_| "none".to_owned());
            file.write_all(format!("payload {payload}\n").as_bytes())?;
            last = generation;
        }
        let number = number_drawn()?;
        let (wall, mono) = (clock()?, milliseconds(CLOCK_MONOTONIC));
        if self::generation() == generation {
            let line = format!("{generation} {number:016x} {wall} {mono}\n");
            file.write_all(line.as_bytes())?;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Tells systemd each second that it lives (sd_notify(3)).
fn watched() -> io::Result<String> {
    let socket = std::env::var_os("NOTIFY_SOCKET");
    let socket = socket.ok_or_else(|| io::Error::other("no NOTIFY_SOCKET"))?;
    let notify = UnixDatagram::unbound()?;
    notify.send_to(b"READY=1", &socket)?;
    loop {
        notify.send_to(b"WATCHDOG=1", &socket)?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// As the agent has written it; 0 before the first.
fn generation() -> u64 {
    let text = std::fs::read_to_string("/run/mvm/generation").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

const CLOCK_MONOTONIC: i32 = 1;

fn milliseconds(clock: i32) -> i64 {
    let mut time = [0_i64; 2];
    // SAFETY: the kernel writes seconds and nanoseconds to where the pointer leads.
    unsafe { clock_gettime(clock, time.as_mut_ptr()) };
    time[0] * 1000 + time[1] / 1_000_000
}

fn reseed() -> io::Result<String> {
    let device = File::open("/dev/urandom")?;
    // SAFETY: this request takes no argument.
    let result = unsafe { ioctl(device.as_raw_fd(), RESEED) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok("reseeded".to_owned())
}

fn clock() -> io::Result<String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.map_err(io::Error::other)?;
    Ok(since.as_millis().to_string())
}

/// A line a round: the microseconds of the bare calls, and of the agent's answer to `sleep-prep`.
fn sleep_cost(socket: &str, mount: &str, rounds: u32) -> io::Result<String> {
    let mut agent = dial_agent(socket)?;
    let mut lines = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        sync(mount)?;
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        sync(mount)?;
        let bare = begun.elapsed();
        let begun = Instant::now();
        ask(&mut agent, SLEEP, r#""type":"ready""#)?;
        let agents = begun.elapsed();
        ask(&mut agent, WAKE, r#""type":"awake""#)?;
        lines.push(format!("{} {}", bare.as_micros(), agents.as_micros()));
    }
    Ok(lines.join("\n"))
}

const SLEEP: &str = r#"{"type":"sleep-prep"}"#;
const WAKE: &str = r#"{"type":"wake","cause":"aborted"}"#;

fn dial_agent(socket: &str) -> io::Result<UnixStream> {
    let mut agent = UnixStream::connect(socket)?;
    agent.set_read_timeout(Some(Duration::from_secs(60)))?;
    agent.write_all(b"CONNECT 52\n")?;
    agent.read_exact(&mut [0; 6])?;
    Ok(agent)
}

/// Where the processes are that are frozen: in cgroups below this one.
const FROZEN: &str = "/sys/fs/cgroup/frozen";
const GROUPS: usize = 20;
const IN_EACH: usize = 10;

/// A line a round: the microseconds of the bare writes and reads, and those that the agent says its step
/// took, of which it counts milliseconds.
fn freeze_cost(socket: &str, rounds: u32) -> io::Result<String> {
    let groups: Vec<String> = (0..GROUPS).map(|it| format!("{FROZEN}/{it}")).collect();
    let mut sleepers = Vec::new();
    for group in &groups {
        std::fs::create_dir_all(group)?;
        for _ in 0..IN_EACH {
            let sleeper = Command::new("/bin/sleep").arg("86400").spawn()?;
            std::fs::write(format!("{group}/cgroup.procs"), sleeper.id().to_string())?;
            sleepers.push(sleeper);
        }
    }
    let all: Vec<&str> = std::iter::once(FROZEN)
        .chain(groups.iter().map(String::as_str))
        .collect();
    let mut agent = dial_agent(socket)?;
    let mut lines = Vec::new();
    for _ in 0..rounds {
        let begun = Instant::now();
        freeze(&all)?;
        let bare = begun.elapsed();
        for group in all.iter().rev() {
            std::fs::write(format!("{group}/cgroup.freeze"), "0")?;
        }
        let ready = ask(&mut agent, SLEEP, r#""type":"ready""#)?;
        let agents = duration_of(&ready, "freeze").ok_or_else(|| io::Error::other(ready))?;
        ask(&mut agent, WAKE, r#""type":"awake""#)?;
        lines.push(format!("{} {}", bare.as_micros(), agents * 1000));
    }
    for mut sleeper in sleepers {
        sleeper.kill()?;
        sleeper.wait()?;
    }
    Ok(lines.join("\n"))
}

/// Writes and reads what the agent does: whether each is frozen, and that it is to be; then waits for
/// all, and counts who is in it.
fn freeze(groups: &[&str]) -> io::Result<usize> {
    for group in groups {
        let file = format!("{group}/cgroup.freeze");
        std::fs::read(&file)?;
        std::fs::write(&file, "1")?;
    }
    let mut events = File::open(format!("{FROZEN}/cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.seek(SeekFrom::Start(0))?;
        events.read_to_string(&mut text)?;
        if text.contains("frozen 1") {
            break;
        }
        let mut wanted = PollFd {
            file: events.as_raw_fd(),
            events: POLLPRI,
            revents: 0,
        };
        // SAFETY: the kernel reads and writes the one entry that there is.
        unsafe { poll(&raw mut wanted, 1, 1000) };
    }
    let mut processes = 0;
    for group in groups {
        std::fs::read(format!("{group}/cgroup.events"))?;
        let members = std::fs::read_to_string(format!("{group}/cgroup.procs"))?;
        processes += members.lines().count();
    }
    Ok(processes)
}

const POLLPRI: i16 = 2;

/// `struct pollfd`
#[repr(C)]
struct PollFd {
    file: i32,
    events: i16,
    revents: i16,
}

/// The milliseconds of a step of an answer.
fn duration_of(answer: &str, step: &str) -> Option<u64> {
    let (_, rest) = answer.split_once(&format!(r#""step":"{step}""#))?;
    let (_, rest) = rest.split_once(r#""duration_ms":"#)?;
    let digits = rest.split(|it: char| !it.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn sync(mount: &str) -> io::Result<()> {
    let folder = File::open(mount)?;
    // SAFETY: takes a descriptor, which is open until the call has returned.
    if unsafe { syncfs(folder.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Until the agent ends the conversation.
fn watch(socket: &str, file: &str) -> io::Result<String> {
    let mut agent = dial_agent(socket)?;
    agent.set_read_timeout(None)?;
    let mut file = File::options().create(true).append(true).open(file)?;
    let mut text = ask(&mut agent, r#"{"type":"watch"}"#, "")?;
    loop {
        file.write_all(format!("{text}\n").as_bytes())?;
        text = frame(&mut agent)?;
    }
}

fn frame(agent: &mut UnixStream) -> io::Result<String> {
    let mut header = [0; 4];
    agent.read_exact(&mut header)?;
    let mut text = vec![0; u32::from_be_bytes(header) as usize];
    agent.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn ask(agent: &mut UnixStream, request: &str, wanted: &str) -> io::Result<String> {
    let length = u32::try_from(request.len()).map_err(io::Error::other)?;
    agent.write_all(&[&length.to_be_bytes(), request.as_bytes()].concat())?;
    let answer = frame(agent)?;
    if answer.contains(wanted) {
        Ok(answer)
    } else {
        Err(io::Error::other(format!("{request}: {answer}")))
    }
}

/// Sets the soft limit; what the process has open stays.
fn descriptors(pid: u32, count: u32) -> io::Result<String> {
    const NOFILE: u32 = 7;
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    let mut limit = [0; 2];
    // SAFETY: the kernel writes two numbers to where the second pointer leads, and reads none by the first.
    let read = unsafe { prlimit(pid, NOFILE, std::ptr::null(), &raw mut limit) };
    limit[0] = u64::from(count);
    // SAFETY: the kernel reads two numbers from where the first pointer leads.
    let set = unsafe { prlimit(pid, NOFILE, &raw const limit, std::ptr::null_mut()) };
    if read < 0 || set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(format!("{limit:?}"))
}

fn own_cid() -> io::Result<u32> {
    let device = File::open("/dev/vsock")?;
    let mut cid = 0_u32;
    // SAFETY: the request writes one u32 to where the pointer leads.
    let result = unsafe { ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cid)
}
