//! Requests that change nothing, and who else is served meanwhile.

use super::{NOT_HERE, behaviours, ensure};
use crate::check::Agent;
use crate::conversation::{Conversation, Fault, frame_of, quoted, read, word};
use mvm_protocol::answer::Answer;
use mvm_protocol::request::REQUEST_TYPES;
use mvm_protocol::status::{Health, Inspect, IntegrationStatus, ProbeStatus, Status};
use serde_json::{Value, json};
use std::time::Duration;

behaviours! {
    Required hello: "hello", "`hello` has protocol 1, a boot id, and the request types that every agent serves";
    Required served: "capabilities", "whatever `hello` lists is served";
    Required status: "status", "`status` can be read, and the guest's health is that of its integrations";
    Required inspect: "inspect", "`inspect` can be read, and has all that `status` has";
    Required times: "times", "times of the guest's past are at most `now`, and `uptime_secs` does not run backwards";
    Required in_order: "in-order", "requests that are sent together are answered in order, each with its `id`";
    Required in_pieces: "in-pieces", "a frame that comes byte by byte is one frame";
    Required unknown_fields: "unknown-fields", "each request refuses a field that it does not have, and names it";
    Required reload: "reload", "`reload` counts what `inspect` then shows";
    Required check: "check", "`check` runs it now, and has an entry newer than any before";
    Required stalled: "stalled-peer", "a connection that stops within a frame delays no other";
    Required unread: "unread-answers", "a connection that does not read its answers delays no other";
    Recommended many: "many-connections", "32 connections are served at once";
    #[slow] Recommended silent: "silence", "a connection that sends nothing is closed, after 10 s";
    #[slow] Recommended half: "half-a-frame", "a connection that stops within a frame is closed, after 10 s";
}

async fn hello(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let answer = conversation
        .ask_for("hello", &json!({"type": "hello"}))
        .await?;
    let Answer::Hello(hello) = read(&answer)? else {
        return Err(format!("got {}", quoted(&answer)));
    };
    ensure(hello.protocol == 1, || {
        format!("protocol {}", hello.protocol)
    })?;
    ensure(!hello.boot_id.is_empty(), || "an empty boot id".into())?;
    let listed = |kind: &&str| hello.capabilities.iter().any(|one| one == kind);
    match REQUEST_TYPES.iter().find(|kind| !listed(kind)) {
        Some(missing) => Err(format!("its capabilities lack `{missing}`")),
        None => Ok(()),
    }
}

async fn served(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let hello = conversation.ask(&json!({"type": "hello"})).await?;
    let listed = hello["capabilities"].as_array().into_iter().flatten();
    for kind in listed.filter_map(Value::as_str) {
        // Those that change nothing; the others have checks of their own.
        let request = match kind {
            "ping" | "hello" | "status" | "inspect" | "reload" | "watch" => json!({"type": kind}),
            "check" => json!({"type": kind, "kind": "probe", "name": "no-such-probe"}),
            _ => continue,
        };
        let mut conversation = Conversation::open(agent).await?;
        let answer = conversation.ask(&request).await?;
        let code = word(&answer, "code");
        let refused = matches!(code, "unknown-request" | "not-allowed" | "bad-request");
        ensure(!refused, || {
            format!("lists `{kind}`, and answers {}", quoted(&answer))
        })?;
    }
    Ok(())
}

/// A whole status.
pub(super) async fn a_status(agent: &Agent) -> Result<Status, Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let answer = conversation
        .ask_for("status", &json!({"type": "status"}))
        .await?;
    match read(&answer)? {
        Answer::Status(status) => Ok(status),
        _ => Err(format!("got {}", quoted(&answer))),
    }
}

async fn an_inspect(agent: &Agent) -> Result<Inspect, Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let answer = conversation
        .ask_for("inspect", &json!({"type": "inspect"}))
        .await?;
    match read(&answer)? {
        Answer::Inspect(inspect) => Ok(*inspect),
        _ => Err(format!("got {}", quoted(&answer))),
    }
}

async fn status(agent: &Agent) -> Result<(), Fault> {
    let status = a_status(agent).await?;
    let known = status
        .integrations
        .iter()
        .filter_map(|one| one.health.known());
    let all_known = status
        .integrations
        .iter()
        .all(|one| one.health.known().is_some());
    if !all_known || status.integrations_omitted > 0 {
        return Ok(());
    }
    let verdict = Health::of_guest(known);
    ensure(status.health == verdict, || {
        format!(
            "says {:?} of a guest whose integrations make it {verdict:?}",
            status.health
        )
    })
}

async fn inspect(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let status = conversation.ask(&json!({"type": "status"})).await?;
    let inspect = conversation
        .ask_for("inspect", &json!({"type": "inspect"}))
        .await?;
    read(&inspect)?;
    let mut fields = status.as_object().into_iter().flatten();
    match fields.find(|(name, _)| inspect.get(name.as_str()).is_none()) {
        Some((missing, _)) => Err(format!("`inspect` lacks `{missing}`, which `status` has")),
        None => Ok(()),
    }
}

async fn times(agent: &Agent) -> Result<(), Fault> {
    let first = a_status(agent).await?;
    let second = a_status(agent).await?;
    ensure(second.uptime_secs >= first.uptime_secs, || {
        format!(
            "was up {} s, and then {} s",
            first.uptime_secs, second.uptime_secs
        )
    })?;
    let Some(now) = second.now else {
        return Err(format!("{NOT_HERE}`status` has no `now`"));
    };
    let worker = [Some(second.worker.since), second.worker.last_busy_at];
    let integrations = second.integrations.iter().flat_map(|one| {
        let checked = one.last_check.as_ref().map(|last| last.at);
        [Some(one.since), checked]
    });
    let mut past = worker.into_iter().chain(integrations).flatten();
    match past.find(|time| *time > now) {
        Some(later) => Err(format!(
            "tells of {later:?}, which is after its now, {now:?}"
        )),
        None => Ok(()),
    }
}

async fn in_order(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let sent = [
        ("status", "status"),
        ("ping", "pong"),
        ("hello", "hello"),
        ("no-such-request", "error"),
        ("inspect", "inspect"),
        ("ping", "pong"),
    ];
    let mut bytes = Vec::new();
    for (number, (kind, _)) in sent.iter().enumerate() {
        bytes.extend(frame_of(&json!({"type": kind, "id": 900 + number})));
    }
    conversation.send_bytes(&bytes).await?;
    for (number, (kind, wanted)) in sent.iter().enumerate() {
        let answer = conversation.answer().await?;
        let is_its = answer["id"] == json!(900 + number) && answer["type"] == *wanted;
        ensure(is_its, || {
            format!(
                "wanted `{wanted}` to `{kind}`, the one of `id` {}, got {}",
                900 + number,
                quoted(&answer)
            )
        })?;
    }
    Ok(())
}

async fn in_pieces(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    for byte in frame_of(&json!({"type": "ping", "id": 5})) {
        conversation.send_bytes(&[byte]).await?;
        // So that it comes alone.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let answer = conversation.answer().await?;
    ensure(answer == json!({"type": "pong", "id": 5}), || {
        format!("got {}", quoted(&answer))
    })
}

async fn unknown_fields(agent: &Agent) -> Result<(), Fault> {
    for kind in [
        "ping", "hello", "status", "inspect", "check", "reload", "watch",
    ] {
        let mut conversation = Conversation::open(agent).await?;
        let mut request = json!({"type": kind, "no_such_field": 1});
        if kind == "check" {
            request["kind"] = "probe".into();
            request["name"] = "no-such-probe".into();
        }
        let refusal = conversation.ask_refused("bad-request", &request).await?;
        ensure(word(&refusal, "message").contains("no_such_field"), || {
            format!(
                "`{kind}` refuses without the field's name: {}",
                quoted(&refusal)
            )
        })?;
    }
    Ok(())
}

async fn reload(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let answer = conversation
        .ask_for("reloaded", &json!({"type": "reload"}))
        .await?;
    let Answer::Reloaded(reloaded) = read(&answer)? else {
        return Err(format!("got {}", quoted(&answer)));
    };
    let inspect = an_inspect(agent).await?;
    let shown = (
        inspect.status.integrations.len() + inspect.status.integrations_omitted,
        inspect.probes.len() + inspect.probes_omitted,
    );
    let counted = (reloaded.integrations, reloaded.probes);
    ensure(shown == counted, || {
        format!("counts {counted:?} integrations and probes, and shows {shown:?}")
    })
}

async fn check(agent: &Agent) -> Result<(), Fault> {
    let inspect = an_inspect(agent).await?;
    let checked = |one: &&IntegrationStatus| one.health != Health::Unchecked;
    let integration = inspect.status.integrations.iter().find(checked);
    let (kind, name, before) = match (integration, inspect.probes.first()) {
        (Some(one), _) => ("integration", &one.name, one.last_check.as_ref()),
        (
            None,
            Some(ProbeStatus {
                name, last_check, ..
            }),
        ) => ("probe", name, last_check.as_ref()),
        (None, None) => {
            return Err(format!(
                "{NOT_HERE}it has neither an integration with a check nor a probe"
            ));
        }
    };
    let mut conversation = Conversation::open(agent).await?;
    let request = json!({"type": "check", "kind": kind, "name": name});
    let answer = conversation.ask_for("checked", &request).await?;
    read(&answer)?;
    let entry = &answer[kind];
    ensure(entry["name"] == **name, || {
        format!("no entry of `{name}` under `{kind}`: {}", quoted(&answer))
    })?;
    let at = serde_json::from_value(entry["last_check"]["at"].clone());
    let at: mvm_protocol::Timestamp = at.map_err(|error| format!("`last_check`: {error}"))?;
    ensure(before.is_none_or(|before| at > before.at), || {
        format!(
            "has an entry that is no newer than the one before: {}",
            quoted(entry)
        )
    })
}

async fn stalled(agent: &Agent) -> Result<(), Fault> {
    let mut stalled = Conversation::open(agent).await?;
    stalled.send_bytes(&[0, 0]).await?;
    let mut another = Conversation::open(agent).await?;
    another.send_bytes(&[0, 0, 0, 90, b'{']).await?;
    Conversation::ping(agent)
        .await
        .map_err(|fault| format!("beside two that stalled: {fault}"))
}

async fn unread(agent: &Agent) -> Result<(), Fault> {
    let mut greedy = Conversation::open(agent).await?;
    let many = frame_of(&json!({"type": "inspect"})).repeat(2000);
    let asking = async {
        // It may stop reading, or give this one up.
        let _ = greedy.send_bytes(&many).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = asking => Ok(()),
        served = async {
            // Nothing tells when its answers fill the way to one that does not read.
            for _ in 0..30 {
                Conversation::ping(agent).await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, Fault>(())
        } => served.map_err(|fault| format!("beside one that does not read: {fault}")),
    }
}

async fn many(agent: &Agent) -> Result<(), Fault> {
    let mut open = Vec::new();
    for number in 1..=32 {
        let mut one = Conversation::open(agent)
            .await
            .map_err(|fault| format!("connection {number}: {fault}"))?;
        let answer = one.ask_for("pong", &json!({"type": "ping"})).await;
        answer.map_err(|fault| format!("connection {number}: {fault}"))?;
        open.push(one);
    }
    Ok(())
}

/// 10 s, and some for a busy machine.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);

async fn silent(agent: &Agent) -> Result<(), Fault> {
    is_closed_after(agent, &[]).await
}

async fn half(agent: &Agent) -> Result<(), Fault> {
    is_closed_after(agent, &[0, 0, 0]).await
}

async fn is_closed_after(agent: &Agent, bytes: &[u8]) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    conversation.send_bytes(bytes).await?;
    loop {
        match conversation.frame_within(CLOSED_WITHIN).await {
            Ok(None) => return Ok(()),
            // It may say why first.
            Ok(Some(_)) => {}
            Err(_) => return Err(format!("is open after {CLOSED_WITHIN:?}")),
        }
    }
}
