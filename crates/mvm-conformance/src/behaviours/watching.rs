//! A status, then what changes.

use super::sleeping::{asleep, wake_up};
use super::{behaviours, ensure};
use crate::check::Agent;
use crate::conversation::{Conversation, Fault, quoted, word};
use mvm_protocol::Timestamp;
use serde_json::{Value, json};

behaviours! {
    Required heartbeats: "heartbeats", "a quiet guest sends heartbeats, each with `at` and the watch's `id`";
    Required beside: "beside-requests", "others are served while a connection watches";
    Required tells_reload: "drop-ins", "a watch is told when the drop-ins were reread";
}

pub(super) fn of_sleeps() -> Vec<crate::behaviours::Behaviour> {
    sleeps::all()
}

async fn watching(agent: &Agent, heartbeat_secs: f64) -> Result<(Conversation, Value), Fault> {
    let mut watch = Conversation::open(agent).await?;
    let request = json!({"type": "watch", "heartbeat_secs": heartbeat_secs, "id": 77});
    let status = watch.ask_for("status", &request).await?;
    Ok((watch, status))
}

async fn heartbeats(agent: &Agent) -> Result<(), Fault> {
    let (mut watch, _) = watching(agent, 0.1).await?;
    for _ in 0..3 {
        let beat = watch.event("heartbeat").await?;
        let at = serde_json::from_value::<Timestamp>(beat["at"].clone());
        ensure(at.is_ok(), || {
            format!("a heartbeat without a good `at`: {}", quoted(&beat))
        })?;
        ensure(beat["id"] == 77, || {
            format!("a heartbeat with another `id`: {}", quoted(&beat))
        })?;
    }
    Ok(())
}

async fn beside(agent: &Agent) -> Result<(), Fault> {
    let (_one, _) = watching(agent, 15.0).await?;
    let (_other, _) = watching(agent, 15.0).await?;
    Conversation::ping(agent)
        .await
        .map_err(|fault| format!("beside two watches: {fault}"))
}

async fn tells_reload(agent: &Agent) -> Result<(), Fault> {
    let (mut watch, _) = watching(agent, 15.0).await?;
    let mut other = Conversation::open(agent).await?;
    let reloaded = other
        .ask_for("reloaded", &json!({"type": "reload"}))
        .await?;
    let event = watch.event("drop_ins").await?;
    let same = event["drop_ins"]["integrations"] == reloaded["integrations"];
    ensure(same, || {
        format!("after {} it tells {}", quoted(&reloaded), quoted(&event))
    })
}

mod sleeps {
    use super::{
        Agent, Conversation, Fault, asleep, behaviours, ensure, json, wake_up, watching, word,
    };

    behaviours! {
        Required tells_sleep: "sleep", "a watch is told that the guest prepares, and that it is ready";
        Required tells_wake: "wake", "a watch that begins while the guest is ready says so first, and is told when it runs";
    }

    async fn tells_sleep(agent: &Agent) -> Result<(), Fault> {
        wake_up(agent).await?;
        let (mut watch, _) = watching(agent, 15.0).await?;
        let mut other = Conversation::open(agent).await?;
        let request = json!({"type": "sleep-prep", "token": "watched", "lease_secs": 120});
        other.ask_for("ready", &request).await?;
        let told = async {
            for wanted in ["preparing", "ready"] {
                let event = watch.event("lifecycle").await?;
                let lifecycle = word(&event, "lifecycle");
                ensure(lifecycle == wanted, || {
                    format!("wanted `{wanted}`, was told `{lifecycle}`")
                })?;
            }
            Ok(())
        };
        let told = told.await;
        wake_up(agent).await?;
        told
    }

    async fn tells_wake(agent: &Agent) -> Result<(), Fault> {
        asleep(agent, "watched").await?;
        let (mut watch, status) = watching(agent, 15.0).await?;
        let first = word(&status, "lifecycle").to_owned();
        wake_up(agent).await?;
        ensure(first == "ready", || format!("began with `{first}`"))?;
        loop {
            let event = watch.event("lifecycle").await?;
            match word(&event, "lifecycle") {
                "running" => return Ok(()),
                "waking" => {}
                other => return Err(format!("was told `{other}` of a guest that wakes")),
            }
        }
    }
}
