//! For tests alone: stand-ins for the VMMs. They are processes that keep the order of calls and
//! states, and the manners, that the real ones are known to have. They run no guest; see `guest` for
//! what is there instead.
//!
//! They take what the real ones take on the command line and over the API socket, and write down
//! each request with its answer in `calls.log`. A file named `fault` in the VM's folder, such as
//! `PUT /vsock 500`, makes them misbehave once; one named `guest-does` has the guest power off, restart
//! or panic. They are of the version that a file `version` there has, or one beside the program, such
//! as `firecracker.version`. With a file `memory-used` Firecracker's writes all of the guest's memory,
//! of which so many MiB are in use.
//!
//! The executable that has the tests is the stand-in as well: called by a VMM's name it is that VMM.
//! So its `main` begins with [`run_if_called`], and then [`install`]s itself for what is to start it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "for tests alone"
)]

mod cloud_hypervisor;
mod firecracker;
mod guest;
mod http;
mod memory;
mod qemu;
mod relay;
mod subject;

pub use subject::{Subject, calls, calls_so_far, forget_calls, subjects};

use http::{Answer, Request};
use serde::de::DeserializeOwned;
use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// What a VMM makes of a request.
trait Vmm: Send + 'static {
    fn answer(&mut self, request: &Request) -> Answer;

    /// Whether the request is none to the VMM, and has been seen to.
    fn is_own(&mut self, _: &Request) -> bool {
        false
    }

    /// Its end in the middle of a request.
    fn die(&mut self) -> ! {
        quit("injected")
    }
}

/// The programs, and the variables that have them found.
const PROGRAMS: [(&str, &str); 4] = [
    ("MVM_FIRECRACKER", "firecracker"),
    ("MVM_CLOUD_HYPERVISOR", "cloud-hypervisor"),
    ("MVM_QEMU", "qemu-system-x86_64"),
    ("MVM_VHOST_DEVICE_VSOCK", "vhost-device-vsock"),
];

/// Runs as the program that was called, if it is one of the VMMs.
pub fn run_if_called() {
    let arguments: Vec<String> = env::args().collect();
    let (called, arguments) = arguments.split_first().expect("a program has a name");
    if called == relay::RELAY {
        relay::relay(arguments);
    }
    let program = Path::new(called);
    let real = relay::link_beside(program).and_then(|link| fs::canonicalize(link).ok());
    if let Some(real) = real {
        relay::run(&real, arguments);
    }
    let called = program.file_name().and_then(|name| name.to_str());
    let version = fs::read_to_string("version");
    let version = version.or_else(|_| fs::read_to_string(program.with_extension("version")));
    let version = version.as_deref().map(str::trim);
    match called {
        Some("firecracker") => firecracker::run(arguments, version.unwrap_or("1.16.1")),
        Some("cloud-hypervisor") => cloud_hypervisor::run(arguments, version.unwrap_or("48.0.0")),
        Some("qemu-system-x86_64") => qemu::run(arguments),
        Some("vhost-device-vsock") => quit("there is no QEMU to serve"),
        _ => {}
    }
}

/// Makes this executable a program of each VMM's name in a folder of its own, which is to be kept,
/// and gives the variables by which they are found; with them a device that stands for KVM's.
pub fn install() -> (TempDir, Vec<(&'static str, PathBuf)>) {
    let folder = tempfile::tempdir().unwrap();
    let own = env::current_exe().unwrap();
    let kvm = folder.path().join("kvm");
    fs::write(&kvm, "").unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    let runner = std::process::id().to_string();
    let mut variables = vec![("MVM_KVM", kvm), (relay::RUNNER, runner.into())];
    for (variable, name) in PROGRAMS {
        let program = folder.path().join(name);
        symlink(&own, &program).unwrap();
        variables.push((variable, program));
    }
    (folder, variables)
}

/// As the real ones end when they cannot go on.
fn quit(why: &str) -> ! {
    eprintln!("{why}");
    exit(1);
}

/// Listens on a socket whose path must be free.
fn listen(path: &str) -> UnixListener {
    UnixListener::bind(path).unwrap_or_else(|error| quit(&format!("cannot bind {path}: {error}")))
}

/// How often is looked what the guest is to do.
const TICK: Duration = Duration::from_millis(5);

/// What the kernel of a guest says last that does so: the content of the file `guest-does`.
const LAST_WORDS: [(&str, &str); 3] = [
    ("power-off", "[    7.000000] reboot: Power down\r\n"),
    ("restart", "[    7.000000] reboot: Restarting system\r\n"),
    (
        "panic",
        "[    7.000000] Kernel panic - not syncing: sysrq triggered crash\r\n\
         [    7.000001] CPU: 0 PID: 1 Comm: sh\r\n",
    ),
];

/// Has the guest end by itself when the test says so, and with it the VMM: each of the real ones goes
/// with its guest.
fn obey_the_test() {
    loop {
        thread::sleep(TICK);
        let Ok(deed) = fs::read_to_string("guest-does") else {
            continue;
        };
        let words = LAST_WORDS.iter().find(|(name, _)| *name == deed);
        let Some((_, words)) = words else {
            continue;
        };
        // Which is its console.
        print!("{words}");
        exit(0);
    }
}

fn serve(socket: &str, vmm: impl Vmm) -> ! {
    thread::spawn(obey_the_test);
    serve_on(&listen(socket), vmm)
}

fn serve_on(listener: &UnixListener, mut vmm: impl Vmm) -> ! {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        while let Some(request) = Request::read(&stream) {
            handle(&stream, &request, &mut vmm);
        }
    }
    exit(0)
}

fn handle(mut stream: &UnixStream, request: &Request, vmm: &mut impl Vmm) {
    let call = format!("{} {}", request.method, request.path);
    if vmm.is_own(request) {
        let _ = stream.write_all(&Answer::done().bytes());
        return;
    }
    match fault(&call).as_deref() {
        None => {
            let answer = vmm.answer(request);
            note(&format!("{call} {}", answer.status));
            let _ = stream.write_all(&answer.bytes());
            if let Some(why) = answer.then_quit {
                quit(&why);
            }
            if answer.then_exit {
                exit(0);
            }
        }
        Some("500") => {
            note(&format!("{call} fault 500"));
            let answer = Answer::refusal(500, "{\"fault_message\":\"injected\"}");
            let _ = stream.write_all(&answer.bytes());
        }
        // Done once nobody waits for it any more.
        Some("late") => {
            note(&format!("{call} fault late"));
            while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
            let answer = vmm.answer(request);
            note(&format!("{call} {}", answer.status));
        }
        // Done when the test says so, by a file `go`.
        Some("wait") => {
            note(&format!("{call} fault wait"));
            while fs::remove_file("go").is_err() {
                thread::sleep(TICK);
            }
            let answer = vmm.answer(request);
            note(&format!("{call} {}", answer.status));
            let _ = stream.write_all(&answer.bytes());
        }
        // Done, and the answer is lost.
        Some("cut") => {
            let answer = vmm.answer(request);
            note(&format!("{call} {} fault cut", answer.status));
            let _ = stream.write_all(b"HTTP/1.1 2");
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        Some("hang") => {
            note(&format!("{call} fault hang"));
            loop {
                thread::park();
            }
        }
        Some("die") => {
            note(&format!("{call} fault die"));
            vmm.die();
        }
        Some("extra") => {
            let mut answer = vmm.answer(request);
            answer.body.insert_str(1, "\"unheard_of\":1,");
            let _ = stream.write_all(&answer.bytes());
        }
        Some(other) => quit(&format!("no such fault: {other}")),
    }
}

/// The fault that is due at this call. It is used up.
fn fault(call: &str) -> Option<String> {
    let wanted = fs::read_to_string("fault").ok()?;
    let kind = wanted.trim().strip_prefix(call)?.strip_prefix(' ')?;
    fs::remove_file("fault").expect("the fault is there");
    Some(kind.to_owned())
}

fn note(line: &str) {
    append_line(Path::new("calls.log"), line).expect("a log of calls");
}

/// Each line is one write: the VMM and its guest write to one file at one time, and neither may come
/// into the other's line.
fn append_line(file: &Path, line: &str) -> std::io::Result<()> {
    let mut log = File::options().append(true).create(true).open(file)?;
    log.write_all(format!("{line}\n").as_bytes())
}

/// A request's body, of exactly the shape that is published.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, String> {
    serde_json::from_slice(&request.body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_write_at_one_time_stays_in_lines() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("calls.log");
        thread::scope(|scope| {
            for word in ["GET / 200", "guest watch"] {
                let log = &log;
                scope.spawn(move || (0..2000).for_each(|_| append_line(log, word).unwrap()));
            }
        });
        let text = fs::read_to_string(log).unwrap();
        let count = |word| text.lines().filter(|line| *line == word).count();
        assert_eq!((count("GET / 200"), count("guest watch")), (2000, 2000));
    }
}
