//! Sleep and wake, as around a snapshot. Each check leaves the guest awake; one that is cut off leaves
//! it a lease that ends its sleep.

use super::{behaviours, ensure};
use crate::check::Agent;
use crate::conversation::{Conversation, Fault, is_of_type, quoted, read, word};
use serde_json::{Value, json};

behaviours! {
    Required ready: "ready", "`sleep-prep` is answered with its token and steps, and the guest is `ready`";
    Required replayed: "replayed", "the same `sleep-prep` again gets the same answer";
    Required joined: "joined", "a `sleep-prep` of the same token joins the one under way";
    Required rival: "rival", "a `sleep-prep` with another token gets `busy`, which is retryable";
    Required wrong_token: "wrong-token", "a `wake` with another token gets `wrong-token`, and the guest stays ready";
    Required no_checks: "no-checks", "`check` gets `busy` while the guest is ready";
    Required runs_on: "wake", "a `wake` with the token is answered with `was_ready`, and the guest runs";
    Required wake_replayed: "wake-replayed", "the same `wake` again gets the same answer, and nothing is done again";
    Required without_token: "wake-without-token", "a `wake` without a token ends any sleep";
    Required counts: "generation", "the wake of a restore makes the generation one more, an aborted sleep does not";
    Required made_up: "token-made-up", "a `sleep-prep` without a token gets one, which then counts";
    Required again: "again", "a token can be used for another sleep after the guest has woken";
    Required lease: "lease", "a guest that is not woken wakes by itself, and the next `wake` says so, once";
    Required deadline: "deadline", "by its deadline a guest is ready, or runs again and the answer says why";
}

pub(super) fn of_freezing() -> Vec<crate::behaviours::Behaviour> {
    freezing::all()
}

/// Whatever sleep there is ends.
pub(crate) async fn wake_up(agent: &Agent) -> Result<(), Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let aborted = json!({"type": "wake", "cause": "aborted"});
    conversation.ask_for("awake", &aborted).await.map(drop)
}

fn sleep_prep(token: &str) -> Value {
    json!({"type": "sleep-prep", "token": token, "lease_secs": 120})
}

fn wake(token: &str) -> Value {
    json!({"type": "wake", "token": token, "cause": "aborted"})
}

async fn ask(agent: &Agent, request: &Value) -> Result<Value, Fault> {
    Conversation::open(agent).await?.ask(request).await
}

/// Makes it ready, from wherever it is.
pub(super) async fn asleep(agent: &Agent, token: &str) -> Result<Value, Fault> {
    wake_up(agent).await?;
    let ready = ask(agent, &sleep_prep(token)).await?;
    is_of_type(&ready, "ready")?;
    Ok(ready)
}

/// Wakes it whatever was found, which is then told.
async fn then_awake<T>(agent: &Agent, found: Result<T, Fault>) -> Result<T, Fault> {
    let woken = wake_up(agent).await;
    let found = found?;
    woken?;
    Ok(found)
}

async fn is_in(agent: &Agent, lifecycle: &str) -> Result<(), Fault> {
    let status = ask(agent, &json!({"type": "status"})).await?;
    let found = word(&status, "lifecycle");
    ensure(found == lifecycle, || {
        format!("the guest is `{found}` and not `{lifecycle}`")
    })
}

async fn ready(agent: &Agent) -> Result<(), Fault> {
    let ready = asleep(agent, "one").await?;
    let found = async {
        read(&ready)?;
        ensure(ready["token"] == "one", || {
            format!("another token: {}", quoted(&ready))
        })?;
        let steps = ready["steps"].as_array().map_or(0, Vec::len);
        ensure(steps > 0, || format!("no steps: {}", quoted(&ready)))?;
        is_in(agent, "ready").await
    };
    then_awake(agent, found.await).await
}

async fn replayed(agent: &Agent) -> Result<(), Fault> {
    let first = asleep(agent, "one").await?;
    let second = ask(agent, &sleep_prep("one")).await;
    let second = then_awake(agent, second).await?;
    ensure(first == second, || {
        format!("answered {}, and then {}", quoted(&first), quoted(&second))
    })
}

async fn joined(agent: &Agent) -> Result<(), Fault> {
    wake_up(agent).await?;
    let found = async {
        let mut one = Conversation::open(agent).await?;
        let mut other = Conversation::open(agent).await?;
        one.send(&sleep_prep("one")).await?;
        other.send(&sleep_prep("one")).await?;
        Ok([one.answer().await?, other.answer().await?])
    };
    let [one, other] = then_awake(agent, found.await).await?;
    is_of_type(&one, "ready")?;
    ensure(one == other, || {
        format!("answered {} and {}", quoted(&one), quoted(&other))
    })
}

async fn rival(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let found = async {
        let mut conversation = Conversation::open(agent).await?;
        let busy = conversation
            .ask_refused("busy", &sleep_prep("another"))
            .await?;
        ensure(busy["retryable"] == true, || {
            format!("is not retryable: {}", quoted(&busy))
        })?;
        is_in(agent, "ready").await
    };
    then_awake(agent, found.await).await
}

async fn wrong_token(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let found = async {
        let mut conversation = Conversation::open(agent).await?;
        conversation
            .ask_refused("wrong-token", &wake("another"))
            .await?;
        is_in(agent, "ready").await
    };
    then_awake(agent, found.await).await
}

async fn no_checks(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let found = async {
        let mut conversation = Conversation::open(agent).await?;
        let request = json!({"type": "check", "kind": "probe", "name": "no-such-probe"});
        let answer = conversation.ask(&request).await?;
        // Of something that is not there an agent may say that first.
        match word(&answer, "code") {
            "busy" | "not-found" => Ok(()),
            _ => Err(format!("got {}", quoted(&answer))),
        }
    };
    then_awake(agent, found.await).await
}

async fn runs_on(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let awake = ask(agent, &wake("one")).await;
    let running = is_in(agent, "running").await;
    let awake = then_awake(agent, awake).await?;
    is_of_type(&awake, "awake")?;
    read(&awake)?;
    ensure(awake["was_ready"] == true, || {
        format!("does not say `was_ready`: {}", quoted(&awake))
    })?;
    ensure(awake["lease_expired"] == false, || {
        format!("says `lease_expired`: {}", quoted(&awake))
    })?;
    running
}

async fn wake_replayed(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let restored = json!({"type": "wake", "token": "one"});
    let first = ask(agent, &restored).await;
    let second = ask(agent, &restored).await;
    let first = then_awake(agent, first).await?;
    let second = second?;
    is_of_type(&first, "awake")?;
    ensure(first == second, || {
        format!("answered {}, and then {}", quoted(&first), quoted(&second))
    })
}

async fn without_token(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    let awake = ask(agent, &json!({"type": "wake", "cause": "aborted"})).await?;
    is_of_type(&awake, "awake")?;
    ensure(awake["was_ready"] == true, || {
        format!("got {}", quoted(&awake))
    })?;
    is_in(agent, "running").await
}

async fn generation(agent: &Agent) -> Result<u64, Fault> {
    let hello = ask(agent, &json!({"type": "hello"})).await?;
    hello["generation"]
        .as_u64()
        .ok_or_else(|| format!("no generation: {}", quoted(&hello)))
}

async fn counts(agent: &Agent) -> Result<(), Fault> {
    let before = generation(agent).await?;
    asleep(agent, "one").await?;
    let aborted = ask(agent, &wake("one")).await?;
    ensure(aborted["generation"] == before, || {
        format!(
            "was {before}, and after an aborted sleep {}",
            quoted(&aborted)
        )
    })?;
    asleep(agent, "two").await?;
    let restored = ask(
        agent,
        &json!({"type": "wake", "token": "two", "cause": "restored"}),
    )
    .await;
    let restored = then_awake(agent, restored).await?;
    let after = generation(agent).await?;
    let is_so = restored["generation"] == before + 1 && after == before + 1;
    ensure(is_so, || {
        format!(
            "was {before}, and after a restore {after} by `hello`; {}",
            quoted(&restored)
        )
    })
}

async fn made_up(agent: &Agent) -> Result<(), Fault> {
    wake_up(agent).await?;
    let ready = ask(agent, &json!({"type": "sleep-prep", "lease_secs": 120})).await;
    let token = ready
        .as_ref()
        .map_or("", |ready| word(ready, "token"))
        .to_owned();
    let another = ask(agent, &wake("surely another")).await;
    let its = ask(agent, &wake(&token)).await;
    let ready = then_awake(agent, ready).await?;
    is_of_type(&ready, "ready")?;
    ensure(!token.is_empty(), || {
        format!("no token: {}", quoted(&ready))
    })?;
    let another = another?;
    ensure(word(&another, "code") == "wrong-token", || {
        format!("answers {} to a wake with another", quoted(&another))
    })?;
    is_of_type(&its?, "awake")
}

async fn again(agent: &Agent) -> Result<(), Fault> {
    asleep(agent, "one").await?;
    is_of_type(&ask(agent, &wake("one")).await?, "awake")?;
    let second = ask(agent, &sleep_prep("one")).await;
    let lifecycle = is_in(agent, "ready").await;
    let second = then_awake(agent, second).await?;
    is_of_type(&second, "ready")?;
    lifecycle
}

async fn lease(agent: &Agent) -> Result<(), Fault> {
    wake_up(agent).await?;
    let found = async {
        let mut watch = Conversation::open(agent).await?;
        watch.ask_for("status", &json!({"type": "watch"})).await?;
        let short = json!({"type": "sleep-prep", "token": "one", "lease_secs": 0.5});
        is_of_type(&ask(agent, &short).await?, "ready")?;
        loop {
            let event = watch.event("lifecycle").await;
            let event = event.map_err(|fault| format!("{fault}, with a lease of 0.5 s"))?;
            if word(&event, "lifecycle") == "running" {
                break;
            }
        }
        let first = ask(agent, &wake("one")).await?;
        let second = ask(agent, &json!({"type": "wake", "cause": "aborted"})).await?;
        Ok((first, second))
    };
    let (first, second) = then_awake(agent, found.await).await?;
    ensure(first["lease_expired"] == true, || {
        format!("the first wake does not say so: {}", quoted(&first))
    })?;
    ensure(second["lease_expired"] == false, || {
        format!("the second wake says so again: {}", quoted(&second))
    })
}

async fn deadline(agent: &Agent) -> Result<(), Fault> {
    wake_up(agent).await?;
    let request =
        json!({"type": "sleep-prep", "token": "one", "deadline_secs": 0.05, "lease_secs": 120});
    let answer = ask(agent, &request).await;
    let found = async {
        let answer = answer?;
        match (word(&answer, "type"), word(&answer, "code")) {
            ("ready", _) => is_in(agent, "ready").await,
            ("error", "sleep-prep-failed") => {
                read(&answer)?;
                ensure(answer["steps"].is_array(), || {
                    format!("no steps: {}", quoted(&answer))
                })?;
                is_in(agent, "running").await
            }
            _ => Err(format!("got {}", quoted(&answer))),
        }
    };
    then_awake(agent, found.await).await
}

mod freezing {
    use super::{
        Agent, Fault, ask, behaviours, ensure, is_in, json, quoted, then_awake, wake_up, word,
    };

    behaviours! {
        Required frozen: "require-freeze", "with `require_freeze` all work is frozen, or the sleep fails and the guest runs";
    }

    async fn frozen(agent: &Agent) -> Result<(), Fault> {
        wake_up(agent).await?;
        let request = json!({"type": "sleep-prep", "token": "one", "lease_secs": 120, "require_freeze": true});
        let answer = ask(agent, &request).await;
        let found = async {
            let answer = answer?;
            let steps = answer["steps"].as_array().into_iter().flatten();
            let mut freezes = steps.filter(|step| step["step"] == "freeze");
            match (word(&answer, "type"), word(&answer, "code")) {
                ("ready", _) => ensure(freezes.any(|step| step["outcome"] == "ok"), || {
                    format!(
                        "is ready, and no step says that it froze: {}",
                        quoted(&answer)
                    )
                }),
                ("error", "sleep-prep-failed") => is_in(agent, "running").await,
                _ => Err(format!("got {}", quoted(&answer))),
            }
        };
        then_awake(agent, found.await).await
    }
}
