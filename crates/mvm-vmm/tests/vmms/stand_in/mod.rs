//! Stand-ins for the VMMs: processes that keep the order of calls and states, and the manners, that
//! the real ones are known to have. They run no guest.
//!
//! They take what the real ones take on the command line and over the API socket, and write down
//! each request with its answer in `calls.log`. A file named `fault` in the VM's folder, such as
//! `PUT /vsock 500`, makes them misbehave once.

mod cloud_hypervisor;
mod firecracker;
mod http;

use http::{Answer, Request};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::thread;

/// What a VMM makes of a request.
trait Vmm: Send + 'static {
    fn answer(&mut self, request: &Request) -> Answer;
}

/// Runs as the program that was called.
pub(crate) fn run(program: &str, arguments: &[String]) -> ! {
    let version = fs::read_to_string("version");
    let version = version.as_deref().map(str::trim);
    match program {
        "firecracker" => firecracker::run(arguments, version.unwrap_or("1.16.1")),
        "cloud-hypervisor" => cloud_hypervisor::run(arguments, version.unwrap_or("48.0.0")),
        other => quit(&format!("no stand-in for {other}")),
    }
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

/// The hybrid vsock socket is there from now on; nobody is behind it.
fn open_vsock(path: &str) -> Result<(), String> {
    let listener = UnixListener::bind(path).map_err(|error| format!("{path}: {error}"))?;
    thread::spawn(move || listener.incoming().for_each(drop));
    Ok(())
}

fn serve(socket: &str, mut vmm: impl Vmm) -> ! {
    for stream in listen(socket).incoming() {
        let Ok(stream) = stream else { continue };
        while let Some(request) = Request::read(&stream) {
            handle(&stream, &request, &mut vmm);
        }
    }
    exit(0)
}

fn handle(mut stream: &UnixStream, request: &Request, vmm: &mut impl Vmm) {
    let call = format!("{} {}", request.method, request.path);
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
            quit("injected");
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
    let log = File::options().append(true).create(true).open("calls.log");
    writeln!(log.expect("a log of calls"), "{line}").expect("a log of calls");
}

/// A request's body, of exactly the shape that is published.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, String> {
    serde_json::from_slice(&request.body).map_err(|error| error.to_string())
}
