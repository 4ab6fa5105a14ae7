//! The guest that the model is in: what all of its connections share.

use crate::faults::Fault;
use crate::{inspect, status};
use mvm_protocol::lifecycle::{SleepPrep, Token, WakeCause};
use mvm_protocol::request::{CheckKind, DEV_REQUEST_TYPES, FEATURES, REQUEST_TYPES};
use mvm_protocol::{ErrorCode, Request, Timestamp};
use serde_json::{Value, json};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// A conforming agent, but for one fault if it has one.
#[derive(Debug, Clone)]
pub struct Model {
    guest: Arc<Guest>,
}

/// What its connections share.
#[derive(Debug)]
pub(super) struct Guest {
    fault: Option<Fault>,
    is_dev: bool,
    started: Instant,
    turn: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    sleep: Option<Sleep>,
    lease_expired: bool,
    /// The wake that was answered last, and its answer.
    answered: Option<(Value, Value)>,
    made_up: u64,
    used: Vec<String>,
    checked_at: Option<Timestamp>,
    events: Vec<Value>,
}

#[derive(Debug, Clone)]
struct Sleep {
    token: String,
    answer: Value,
    until: Instant,
}

impl Model {
    /// One with that fault, or none.
    pub fn new(fault: Option<Fault>) -> Self {
        Self::of_profile(fault, false)
    }

    /// One that says of itself that it is a dev build. It serves nothing of that.
    pub fn dev(fault: Fault) -> Self {
        Self::of_profile(Some(fault), true)
    }

    fn of_profile(fault: Option<Fault>, is_dev: bool) -> Self {
        let guest = Guest {
            fault,
            is_dev,
            started: Instant::now(),
            turn: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self {
            guest: Arc::new(guest),
        }
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }
}

/// An error answer.
pub(super) fn error(code: ErrorCode, message: &str) -> Value {
    json!({
        "type": "error", "code": code.as_str(), "message": message,
        "retryable": code.is_retryable(),
    })
}

/// Now, in the guest's clock.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp(i64::try_from(since.unwrap().as_millis()).unwrap())
}

fn step(name: &str, outcome: &str) -> Value {
    json!({"step": name, "integration": null, "outcome": outcome, "duration_ms": 1, "detail": null})
}

impl Guest {
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        self.expire(&mut state);
        state
    }

    /// Ends a sleep whose lease has run out.
    fn expire(&self, state: &mut State) {
        let is_over = state
            .sleep
            .as_ref()
            .is_some_and(|sleep| sleep.until <= Instant::now());
        if is_over && !self.has(Fault::NeverWakesByItself) {
            state.sleep = None;
            state.lease_expired = true;
            self.tell(state, json!({"lifecycle": "waking"}));
            self.tell(state, json!({"lifecycle": "running"}));
        }
    }

    fn tell(&self, state: &mut State, mut event: Value) {
        event["type"] = "event".into();
        event["at"] = json!(now());
        let is_lost = match event["lifecycle"].as_str() {
            Some("preparing") => self.has(Fault::ForgetsPreparing),
            Some("running") => self.has(Fault::SilentWake),
            _ => event.get("drop_ins").is_some() && self.has(Fault::SilentReload),
        };
        if !is_lost {
            state.events.push(event);
            self.changed.notify_all();
        }
    }

    /// How many events there have been.
    pub(super) fn told(&self) -> usize {
        self.lock().events.len()
    }

    /// The event with that number, once there is one; nothing if there is none in time.
    pub(super) fn event(&self, number: usize, within: Duration) -> Option<Value> {
        let until = Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(event) = state.events.get(number) {
                return Some(event.clone());
            }
            let now = Instant::now();
            if now >= until {
                return None;
            }
            let lease = state.sleep.as_ref().map_or(until, |sleep| sleep.until);
            let next = lease.min(until).saturating_duration_since(now);
            let next = next.max(Duration::from_millis(1));
            state = self.changed.wait_timeout(state, next).unwrap().0;
            self.expire(&mut state);
        }
    }

    /// The answer to a request that is no watch; nothing where a fault swallows it.
    pub(super) fn answer(&self, request: &Request, mut asked: Value) -> Option<Value> {
        if let Some(asked) = asked.as_object_mut() {
            asked.remove("id");
        }
        let mut state = self.lock();
        Some(match request {
            Request::Ping => json!({"type": "pong"}),
            Request::Hello => self.hello(&state),
            Request::Status => self.status(&state),
            Request::Inspect => self.inspect(&state),
            Request::Check(check) => {
                if state.sleep.is_some() && !self.has(Fault::ChecksWhileReady) {
                    return Some(error(ErrorCode::Busy, "the guest is ready"));
                }
                let (list, key) = match check.kind {
                    CheckKind::Integration => ("integrations", "integration"),
                    CheckKind::Probe => ("probes", "probe"),
                };
                if !self.has(Fault::StaleCheck) {
                    state.checked_at = Some(now());
                }
                let all = self.inspect(&state);
                let entries = all[list].as_array().unwrap();
                match entries.iter().find(|entry| entry["name"] == *check.name) {
                    Some(entry) => json!({"type": "checked", key: entry}),
                    // One that would check while it sleeps says that all is well.
                    None if self.has(Fault::ChecksWhileReady) => {
                        json!({"type": "checked", key: entries[0]})
                    }
                    None => error(
                        ErrorCode::NotFound,
                        &format!("nothing is called `{}`", check.name.escape_debug()),
                    ),
                }
            }
            Request::Reload if self.has(Fault::ListsWhatItDoesNotServe) => {
                error(ErrorCode::UnknownRequest, "no `reload`")
            }
            Request::Reload => {
                let probes = if self.has(Fault::Miscounts) { 2 } else { 1 };
                let found = json!({"integrations": 1, "probes": probes, "errors": []});
                self.tell(&mut state, json!({"drop_ins": found}));
                json!({"type": "reloaded", "integrations": 1, "probes": probes, "errors": []})
            }
            Request::SleepPrep(prep) => return self.sleep_prep(&mut state, prep),
            Request::Wake(wake) => {
                let token = wake.token.as_ref().map(Token::as_str);
                self.wake(&mut state, token, wake.cause, &asked)
            }
            Request::Watch(_) => return None,
        })
    }

    fn hello(&self, state: &State) -> Value {
        let mut capabilities = [REQUEST_TYPES.as_slice(), FEATURES.as_slice()].concat();
        if self.is_dev {
            capabilities.extend(DEV_REQUEST_TYPES);
        }
        let protocol = if self.has(Fault::OtherProtocol) { 2 } else { 1 };
        json!({
            "type": "hello", "protocol": protocol, "agent_version": "0.0.0", "profile": "prod",
            "capabilities": capabilities,
            "boot_id": "6f0b7f52-6e44-4d51-9a4c-3e1b5c7b2a10", "generation": state.generation,
        })
    }

    fn status(&self, state: &State) -> Value {
        self.as_it_is(state, status("healthy"))
    }

    fn inspect(&self, state: &State) -> Value {
        let mut all = self.as_it_is(state, inspect("healthy"));
        if self.has(Fault::InspectLacks) {
            all.as_object_mut().unwrap().remove("uptime_secs");
        }
        all
    }

    fn as_it_is(&self, state: &State, mut all: Value) -> Value {
        let now = now();
        let checked_at = state.checked_at.unwrap_or(Timestamp(0));
        let lifecycle = if state.sleep.is_some() {
            "ready"
        } else {
            "running"
        };
        all["lifecycle"] = lifecycle.into();
        all["now"] = json!(now);
        all["uptime_secs"] = self.started.elapsed().as_secs_f64().into();
        let late = i64::from(self.has(Fault::FutureTimes)) * 60_000;
        for list in ["integrations", "probes"] {
            for entry in all[list].as_array_mut().into_iter().flatten() {
                entry["last_check"]["at"] = json!(Timestamp(checked_at.0 + late));
            }
        }
        let since = if self.has(Fault::FutureTimes) {
            now.0 + late
        } else {
            0
        };
        all["integrations"][0]["since"] = json!(Timestamp(since));
        all["worker"]["since"] = json!(Timestamp(0));
        if self.has(Fault::OtherHealth) {
            all["integrations"][0]["health"] = "unhealthy".into();
        }
        all
    }

    /// A whole status, as a watch begins with.
    pub(super) fn first(&self) -> Value {
        self.status(&self.lock())
    }

    fn sleep_prep(&self, state: &mut State, asked: &SleepPrep) -> Option<Value> {
        let given = asked.token.as_ref().map(|token| token.as_str().to_owned());
        if asked.deadline() < Duration::from_millis(100) && self.has(Fault::SilentDeadline) {
            return None;
        }
        if let Some(sleep) = &state.sleep {
            let is_same = given.as_deref() == Some(sleep.token.as_str());
            if is_same && !self.has(Fault::ForgetsItsAnswer) || self.has(Fault::TwoMasters) {
                return Some(sleep.answer.clone());
            }
            return Some(error(ErrorCode::Busy, "another sleep holds the guest"));
        }
        let token = given.unwrap_or_else(|| {
            state.made_up += 1;
            format!("made-up-{}", state.made_up)
        });
        if self.has(Fault::TokensWearOut) && state.used.contains(&token) {
            return Some(error(ErrorCode::Busy, "that token was used"));
        }
        state.used.push(token.clone());
        let mut steps = vec![step("drain", "ok"), step("sync", "ok")];
        let freezes = !self.has(Fault::PretendsToFreeze);
        steps.push(step("freeze", if freezes { "ok" } else { "skipped" }));
        steps.push(step("drop-caches", "ok"));
        let shown = if self.has(Fault::NoTokenMadeUp) && asked.token.is_none() {
            ""
        } else {
            &token
        };
        let steps = if self.has(Fault::NoSteps) {
            Vec::new()
        } else {
            steps
        };
        let answer = json!({"type": "ready", "token": shown, "steps": steps});
        state.lease_expired = false;
        state.answered = None;
        state.sleep = Some(Sleep {
            token,
            answer: answer.clone(),
            until: Instant::now() + asked.lease_secs.duration(),
        });
        self.tell(state, json!({"lifecycle": "preparing"}));
        self.tell(state, json!({"lifecycle": "ready"}));
        Some(answer)
    }

    fn wake(
        &self,
        state: &mut State,
        token: Option<&str>,
        cause: WakeCause,
        asked: &Value,
    ) -> Value {
        let held = state.sleep.as_ref().map(|sleep| sleep.token.clone());
        let is_other = match (&held, token) {
            (Some(held), Some(token)) => held != token && !self.has(Fault::AnyTokenWakes),
            (Some(_), None) => self.has(Fault::WantsAToken),
            (None, _) => false,
        };
        if is_other {
            return error(ErrorCode::WrongToken, "another token holds the guest");
        }
        if let (None, Some(_), Some((before, answer))) = (&held, token, &state.answered)
            && before == asked
            && !self.has(Fault::WakesTwice)
        {
            return answer.clone();
        }
        let counts = cause == WakeCause::Restored && !self.has(Fault::NeverCounts);
        state.generation += u64::from(counts);
        let lease_expired = std::mem::take(&mut state.lease_expired);
        if self.has(Fault::SaysItTwice) {
            state.lease_expired = lease_expired;
        }
        let was_ready = held.is_some() && !self.has(Fault::ForgetsThatItSlept);
        if state.sleep.take().is_some() {
            self.tell(state, json!({"lifecycle": "waking"}));
            self.tell(state, json!({"lifecycle": "running"}));
        }
        let answer = json!({
            "type": "awake", "was_ready": was_ready, "lease_expired": lease_expired,
            "generation": state.generation, "steps": [step("resume", "ok")],
        });
        state.answered = Some((asked.clone(), answer.clone()));
        answer
    }
}
