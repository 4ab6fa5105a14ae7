//! Agents that misbehave, for those who write clients or agents.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "for tests alone"
)]

use mvm_conformance::{Outcome, Report, Verdict};
use mvm_fake_agent::conduct::{Misbehaviour, WORDS, hold, misbehaviours};
use mvm_fake_agent::{FakeAgent, Fault, Model};
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const USAGE: &str = "\
Agents that misbehave, for those who write clients or agents

Usage:
  mvm-fake-agent list [--json]
      What a client can be held against, with what it has to make of each; and what an agent can get
      wrong, with the checks of `mvmctl conformance` that find it
  mvm-fake-agent serve NAME --socket PATH
      Serve one of them, or `conforming`, until standard input ends
  mvm-fake-agent check [--json] -- COMMAND [ARGUMENT…]
      Hold a client against all of them. COMMAND is run with two more arguments for each: what to do
      (ping, status or watch) and the socket. It takes no longer than 1 s for any answer, watches with
      a heartbeat of 0.2 s up to the third event, and prints one word:
";

fn usage() -> ExitCode {
    eprint!("{USAGE}");
    for (word, meaning) in WORDS {
        eprintln!("        {word:12} {meaning}");
    }
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => list(false),
        ["list", "--json"] => list(true),
        ["serve", name, "--socket", path] => serve(name, Path::new(path)),
        ["check", "--", command @ ..] if !command.is_empty() => check(command, false),
        ["check", "--json", "--", command @ ..] if !command.is_empty() => check(command, true),
        _ => usage(),
    }
}

fn list(as_json: bool) -> ExitCode {
    let all = misbehaviours();
    if as_json {
        let clients = all.iter().map(|one| {
            json!({
                "name": one.name, "level": one.level, "about": one.about,
                "action": one.action.as_str(), "said": one.said,
            })
        });
        let agents = Fault::ALL.iter().map(|fault| {
            json!({"name": fault.name(), "about": fault.about(), "found_by": fault.found_by()})
        });
        let all = json!({
            "clients": clients.collect::<Vec<_>>(), "agents": agents.collect::<Vec<_>>(),
        });
        println!("{all:#}");
        return ExitCode::SUCCESS;
    }
    println!("What a client can be held against:");
    for one in &all {
        let said = one.said.join(" or ");
        println!(
            "  {:30} {:7} {said}: {}",
            one.name,
            one.action.as_str(),
            one.about
        );
    }
    println!("What an agent can get wrong:");
    for fault in Fault::ALL {
        println!(
            "  {:30} {}: {}",
            fault.name(),
            fault.found_by().join(", "),
            fault.about()
        );
    }
    ExitCode::SUCCESS
}

fn serve(name: &str, path: &Path) -> ExitCode {
    let conduct = misbehaviours().into_iter().find(|one| one.name == name);
    let fault = Fault::ALL.iter().find(|fault| fault.name() == name);
    let agent = match (conduct, fault, name) {
        (Some(one), _, _) => FakeAgent::at(path, one.serve),
        (None, None, "conforming") => model(path, None),
        (None, Some(fault), _) => model(path, Some(*fault)),
        (None, None, _) => {
            eprintln!("nothing is called `{name}`: see `mvm-fake-agent list`");
            return ExitCode::from(2);
        }
    };
    eprintln!(
        "serving {}; end it by the end of standard input",
        agent.address()
    );
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

fn model(path: &Path, fault: Option<Fault>) -> FakeAgent {
    let model = Model::new(fault);
    FakeAgent::at(path, move |peer| model.serve(peer))
}

fn check(command: &[&str], as_json: bool) -> ExitCode {
    let report = hold(|one, socket| said(command, one, socket));
    if as_json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap());
    } else {
        tell(&report);
    }
    match report.verdict {
        Verdict::Fails => ExitCode::FAILURE,
        Verdict::Conforms | Verdict::Incomplete => ExitCode::SUCCESS,
    }
}

fn tell(report: &Report) {
    for one in &report.checks {
        if let Outcome::Failed { why } = &one.outcome {
            println!("FAILED   {}: {}\n         {why}", one.name, one.about);
        }
    }
    for (level, counts) in [
        ("required", report.required),
        ("recommended", report.recommended),
    ] {
        println!(
            "{level}: {} passed, {} failed",
            counts.passed, counts.failed
        );
    }
}

/// How long a client may take for one of them, its own start included.
const WITHIN: Duration = Duration::from_secs(30);

/// What a driver says: its first word.
fn said(command: &[&str], one: Misbehaviour, socket: &Path) -> Result<String, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let child = Command::new(program)
        .args(arguments)
        .arg(one.action.as_str())
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("cannot run {program}: {error}"))?;
    let until = Instant::now() + WITHIN;
    while child
        .try_wait()
        .map_err(|error| error.to_string())?
        .is_none()
    {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("still runs after {WITHIN:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    let mut out = child.stdout.take().ok_or("no standard output")?.take(4096);
    out.read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    let word = text.split_whitespace().next();
    word.map(str::to_owned)
        .ok_or_else(|| "said nothing".to_owned())
}
