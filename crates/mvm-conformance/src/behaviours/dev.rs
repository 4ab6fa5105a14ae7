//! What dev builds serve.

use super::{behaviours, ensure};
use crate::check::Agent;
use crate::conversation::{Conversation, Fault, is_of_type, quoted, word};
use mvm_protocol::Frame;
use mvm_protocol::frame::encode_data;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{sleep, timeout};

behaviours! {
    Required echo: "exec-input-and-output", "200 kB go through a command unchanged, and the connection serves on";
    Required ends: "exec-ends-with-its-connection", "a command is ended when its connection is closed";
    Required file: "put-and-get", "a file comes back as it was put, with its mode";
    Required whole: "put-whole-or-not", "a `put` that is cut off leaves nothing";
    Required job: "jobs", "a job outlives its connection, is listed, and can be ended";
}

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const CONTENT: u8 = 3;

impl Conversation {
    async fn send_data(&mut self, channel: u8, data: &[u8]) -> Result<(), Fault> {
        let frame = encode_data(channel, data).map_err(|error| error.to_string())?;
        self.send_bytes(&frame).await
    }

    /// Data of one channel, up to the JSON frame that ends it. No more of it is kept than that.
    async fn data(&mut self, channel: u8, most: usize) -> Result<(Vec<u8>, Value), Fault> {
        let mut all = Vec::new();
        loop {
            match self.frame().await? {
                Some(Frame::Data { channel: on, bytes }) if on == channel => all.extend(bytes),
                Some(Frame::Json(body)) => {
                    let end = serde_json::from_slice(&body);
                    return Ok((all, end.map_err(|error| error.to_string())?));
                }
                Some(other) => return Err(format!("sent {other:?}")),
                None => return Err("closed within its data".into()),
            }
            ensure(all.len() <= most, || {
                format!("more than {most} bytes of data")
            })?;
        }
    }
}

/// Runs a command to its end: what it printed, and how it exited.
async fn run(agent: &Agent, argv: &[&str]) -> Result<(Vec<u8>, Value), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let request = json!({"type": "exec", "argv": argv});
    conversation.ask_for("exec-started", &request).await?;
    let (printed, exited) = conversation.data(OUTPUT, 65_536).await?;
    is_of_type(&exited, "exec-exited")?;
    Ok((printed, exited))
}

async fn echo(agent: &Agent) -> Result<(), Fault> {
    let content: Vec<u8> = (0..200_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let mut conversation = Conversation::open(agent).await?;
    let request = json!({"type": "exec", "argv": ["cat"], "stdin": true});
    conversation.ask_for("exec-started", &request).await?;
    // Less than an agent has to take of a command that does not read.
    for piece in content.chunks(10_000) {
        conversation.send_data(INPUT, piece).await?;
    }
    conversation.send(&json!({"type": "stdin-close"})).await?;
    let (come, exited) = conversation.data(OUTPUT, content.len()).await?;
    ensure(come == content, || {
        format!(
            "{} bytes came back of {}, or other ones",
            come.len(),
            content.len()
        )
    })?;
    ensure(exited["exit_code"] == 0, || {
        format!("ended with {}", quoted(&exited))
    })?;
    conversation
        .ask_for("pong", &json!({"type": "ping"}))
        .await
        .map(drop)
}

async fn ends(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let request = json!({"type": "exec", "argv": ["sleep", "600"]});
    let started = conversation.ask_for("exec-started", &request).await?;
    drop(conversation);
    let pid = started["pid"]
        .as_u64()
        .ok_or_else(|| format!("no pid: {}", quoted(&started)))?;
    let alive = format!("kill -0 {pid} 2>/dev/null");
    let gone = async {
        loop {
            let (_, exited) = run(agent, &["sh", "-c", &alive]).await?;
            if exited["exit_code"] != 0 {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    if let Ok(gone) = timeout(agent.deadlines.answer, gone).await {
        return gone;
    }
    let _ = run(agent, &["kill", "-KILL", &pid.to_string()]).await;
    Err(format!(
        "`sleep` runs {:?} after its connection was closed",
        agent.deadlines.answer
    ))
}

/// A path of our own in the guest.
async fn path(agent: &Agent) -> Result<String, Fault> {
    let (printed, _) = run(agent, &["mktemp", "-u", "/tmp/mvm-conformance-XXXXXXXX"]).await?;
    let path = String::from_utf8_lossy(&printed).trim().to_owned();
    ensure(path.starts_with("/tmp/mvm-conformance-"), || {
        format!("`mktemp` printed {path:?}")
    })?;
    Ok(path)
}

async fn file(agent: &Agent) -> Result<(), Fault> {
    let path = path(agent).await?;
    let content = b"\x00\xffconformance\n".repeat(20_000);
    let found = async {
        let mut conversation = Conversation::open(agent).await?;
        let put = json!({"type": "put", "path": path, "mode": 0o640});
        conversation.ask_for("put-ready", &put).await?;
        for piece in content.chunks(100_000) {
            conversation.send_data(CONTENT, piece).await?;
        }
        let done = conversation
            .ask_for("put-done", &json!({"type": "put-end"}))
            .await?;
        ensure(done["bytes"] == content.len(), || {
            format!("wrote {}", quoted(&done))
        })?;
        let started = conversation
            .ask_for("get-started", &json!({"type": "get", "path": path}))
            .await?;
        ensure(
            started["mode"]
                .as_u64()
                .is_some_and(|mode| mode & 0o777 == 0o640),
            || format!("another mode: {}", quoted(&started)),
        )?;
        let (come, done) = conversation.data(CONTENT, content.len()).await?;
        is_of_type(&done, "get-done")?;
        ensure(come == content, || {
            format!(
                "{} bytes came back of {}, or other ones",
                come.len(),
                content.len()
            )
        })
    };
    let found = found.await;
    let _ = run(agent, &["rm", "-f", &path]).await;
    found
}

async fn whole(agent: &Agent) -> Result<(), Fault> {
    let path = path(agent).await?;
    let mut conversation = Conversation::open(agent).await?;
    conversation
        .ask_for("put-ready", &json!({"type": "put", "path": path}))
        .await?;
    conversation.send_data(CONTENT, b"half of it").await?;
    drop(conversation);
    let mut conversation = Conversation::open(agent).await?;
    let answer = conversation
        .ask(&json!({"type": "get", "path": path}))
        .await;
    let _ = run(agent, &["rm", "-f", &path]).await;
    let answer = answer?;
    ensure(word(&answer, "code") == "not-found", || {
        format!("got {}", quoted(&answer))
    })
}

async fn job(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let request = json!({"type": "exec", "argv": ["sleep", "600"], "detach": true});
    let started = conversation.ask_for("job-started", &request).await?;
    drop(conversation);
    let number = &started["job"];
    let mut conversation = Conversation::open(agent).await?;
    let listed = conversation
        .ask_for("jobs", &json!({"type": "jobs"}))
        .await?;
    let jobs = listed["jobs"].as_array().into_iter().flatten();
    let state = jobs
        .clone()
        .find(|job| job["job"] == *number)
        .map(|job| word(job, "state"));
    ensure(state == Some("running"), || {
        format!("job {number} among {}", quoted(&listed))
    })?;
    let kill = json!({"type": "job-signal", "job": number, "signal": "KILL"});
    let answer = conversation.ask(&kill).await?;
    ensure(word(&answer, "type") != "error", || {
        format!("got {}", quoted(&answer))
    })?;
    let attach = json!({"type": "attach", "job": number});
    conversation.ask_for("exec-started", &attach).await?;
    let (_, exited) = conversation.data(OUTPUT, 65_536).await?;
    ensure(exited["signal"] == "KILL", || {
        format!("ended with {}", quoted(&exited))
    })
}
