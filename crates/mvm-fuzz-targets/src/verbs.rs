//! A hostile agent against each verb of mvmctl: whatever it answers, the verb ends, with an error that
//! fits a terminal, or with answers to its own requests.
//!
//! The input's first byte is the verb, the next two are the sizes of the pieces in which the answers
//! come, and each line after them is a frame: data if it begins with a digit, which is its channel;
//! raw bytes if it begins with `!`; else a body of JSON.

use crate::stream::{Script, check_error, ids, runtime};
use mvm_client::dev::{FromPort, Output};
use mvm_client::{Deadlines, Endpoint, Error, Session, Watcher, watch};
use mvm_protocol::dev::exec::{Argv, Exec, Path};
use mvm_protocol::dev::files::{Archive, Get, Put};
use mvm_protocol::dev::jobs::{Attach, JobSignal};
use mvm_protocol::frame::{encode_data, encode_json};
use mvm_protocol::lifecycle::{SleepPrep, Wake};
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::signal::Signal;
use std::num::NonZeroU16;
use std::time::Duration;

/// A verb, and what an agent answers to it.
pub fn verbs() -> impl FnMut(&[u8]) {
    let runtime = runtime();
    move |input| {
        let Some(([verb, sizes @ ..], lines)) = input.split_first_chunk::<3>() else {
            return;
        };
        let frames = frames(lines);
        let stream = [b"OK 1\n", &*frames].concat();
        let mut heard = Heard::default();
        let asked = Script::new(&stream, sizes);
        let ended = runtime.block_on(run(*verb, asked, &mut heard));
        if let Err(error) = ended {
            check_error(&error);
        }
        assert!(heard.bytes <= lines.len(), "{} bytes", heard.bytes);
        let ids = ids(&frames);
        for request in heard.answered {
            assert!(ids.contains(&Some(request)), "{request} of {ids:?}");
        }
    }
}

/// What a verb was given.
#[derive(Debug, Default)]
struct Heard {
    /// The numbers of the requests that were answered.
    answered: Vec<u64>,
    /// How much content came.
    bytes: usize,
}

fn frames(lines: &[u8]) -> Vec<u8> {
    let frame = |line: &[u8]| match line.split_first() {
        None => Vec::new(),
        Some((b'!', raw)) => raw.to_vec(),
        Some((digit @ b'0'..=b'9', bytes)) => encode_data(digit - b'0', bytes).unwrap_or_default(),
        Some(_) => encode_json(line).unwrap_or_default(),
    };
    lines.split(|byte| *byte == b'\n').flat_map(frame).collect()
}

const WATCH: u8 = 11;
const VERBS: u8 = 21;

async fn run(verb: u8, stream: Script, heard: &mut Heard) -> Result<(), Error> {
    let endpoint = Endpoint::unix("/agent.sock");
    let deadlines = Deadlines::all(Duration::from_secs(3600));
    let mut session = Session::over(stream, &endpoint, &deadlines).await?;
    let verb = verb % VERBS;
    if verb == WATCH {
        return follow(session, heard).await;
    }
    one(verb, &mut session, heard).await?;
    // What was refused, or came to its end, leaves a session for the next request.
    let _ = session.ping().await;
    Ok(())
}

async fn one(verb: u8, session: &mut Session, heard: &mut Heard) -> Result<(), Error> {
    // Those with questions before their own have another number.
    let mut first = 1;
    match verb {
        0 => {
            session.ping().await?;
        }
        1 => {
            session.hello().await?;
        }
        2 => {
            session.status().await?;
        }
        3 => {
            session.inspect().await?;
        }
        4 => {
            let check = Check {
                kind: CheckKind::Integration,
                name: "web".into(),
            };
            session.check(check).await?;
        }
        5 => {
            session.reload().await?;
        }
        6 => {
            session.sleep_prep(SleepPrep::default()).await?;
        }
        7 => {
            let asked = SleepPrep {
                require_freeze: true,
                ..SleepPrep::default()
            };
            session.sleep_prep(asked).await?;
            first = 2;
        }
        8 => {
            session.wake(Wake::default()).await?;
        }
        9 => {
            session.serves("exec").await?;
        }
        10 => {
            session.jobs().await?;
        }
        12 => {
            session.start_job(exec()).await?;
        }
        13 => {
            let signal = Signal::TERM;
            session.job_signal(JobSignal { job: 1, signal }).await?;
        }
        14 | 15 => command(verb, session, heard).await?,
        16 | 17 => put(verb, session).await?,
        18 | 19 => get(verb, session, heard).await?,
        _ => port(session, heard).await?,
    }
    heard.answered.push(first);
    Ok(())
}

fn exec() -> Exec {
    Exec::new(Argv::new(vec!["true".into()]).unwrap())
}

fn path() -> Path {
    Path::new("/file".into()).unwrap()
}

async fn follow(session: Session, heard: &mut Heard) -> Result<(), Error> {
    let (mut status, mut watcher) = Watcher::start(session, Duration::from_secs(60)).await?;
    heard.answered.push(1);
    while let Some(event) = watcher.next().await? {
        watch::apply(&mut status, &event.change);
        assert!(status.integrations.len() <= watch::MOST_INTEGRATIONS);
    }
    Ok(())
}

async fn command(verb: u8, session: &mut Session, heard: &mut Heard) -> Result<(), Error> {
    let command = if verb == 14 {
        session.exec(exec()).await?
    } else {
        let asked = Attach {
            job: 1,
            follow: true,
        };
        session.attach(asked).await?
    };
    let (mut input, mut output) = command.split();
    let _ = input.write(b"input").await;
    let _ = input.close().await;
    loop {
        match output.next().await? {
            Output::Stdout(bytes) | Output::Stderr(bytes) => heard.bytes += bytes.len(),
            Output::Exited(_) | Output::RunsOn => return Ok(()),
        }
    }
}

async fn put(verb: u8, session: &mut Session) -> Result<(), Error> {
    let asked = Put {
        path: path(),
        mode: None,
        name: None,
        archive: (verb == 17).then_some(Archive::Tar),
    };
    let mut upload = session.put(asked).await?;
    upload.send(b"content").await?;
    upload.finish().await?;
    Ok(())
}

async fn get(verb: u8, session: &mut Session, heard: &mut Heard) -> Result<(), Error> {
    let archive = (verb == 19).then_some(Archive::Tar);
    let asked = Get {
        path: path(),
        archive,
    };
    let mut download = session.get(asked).await?;
    let told = download.bytes;
    while let Some(bytes) = download.next().await? {
        heard.bytes += bytes.len();
    }
    // A file that is shorter than it was said to be is none.
    assert!(heard.bytes as u64 >= told.unwrap_or_default());
    Ok(())
}

async fn port(session: &mut Session, heard: &mut Heard) -> Result<(), Error> {
    let port = session.forward(NonZeroU16::MIN).await?;
    let (mut input, mut output) = port.split();
    let _ = input.write(b"request").await;
    let _ = input.end().await;
    loop {
        match output.next().await? {
            FromPort::Bytes(bytes) => heard.bytes += bytes.len(),
            FromPort::End => {}
            FromPort::Done(_) => return Ok(()),
        }
    }
}
