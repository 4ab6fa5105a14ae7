//! What happens in a walk, and what hosts are answered.

use mvm_protocol::lifecycle::Outcome;
use serde_json::json;

/// What happens next.
#[derive(Debug, Clone)]
pub(super) enum Transition {
    /// A host, whose token is its own, asks for sleep.
    Sleep { host: usize, asked: SleepAsked },
    /// A host wakes the guest.
    Wake { host: usize, asked: WakeAsked },
    /// A host asks for a check.
    Check { host: usize },
    /// A host's connection ends, with whatever it was waiting for; another begins.
    Lose { host: usize, half_a_frame: bool },
    /// What is under way in the guest ends so.
    End(Outcome),
    /// Time passes.
    Pass { secs: u8 },
    /// The clocks jump: an hour ahead the one, back by a year the other.
    Jump,
    /// The agent is killed and started again.
    Crash,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SleepAsked {
    pub(super) lease_ms: i64,
    pub(super) deadline_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WakeAsked {
    /// The host whose token it has.
    pub(super) token: Option<usize>,
    pub(super) restored: bool,
    pub(super) tells_time: bool,
}

impl SleepAsked {
    pub(super) fn to_json(self, host: usize) -> String {
        let secs = |ms: i64| f64::from(u16::try_from(ms).unwrap()) / 1000.0;
        json!({
            "type": "sleep-prep", "token": token(host),
            "lease_secs": secs(self.lease_ms), "deadline_secs": secs(self.deadline_ms),
        })
        .to_string()
    }
}

impl WakeAsked {
    pub(super) fn to_json(self) -> String {
        let cause = if self.restored { "restored" } else { "aborted" };
        let mut wake = json!({"type": "wake", "cause": cause});
        if let Some(host) = self.token {
            wake["token"] = token(host).into();
        }
        if self.tells_time {
            wake["wall_clock"] = "2026-11-24T06:02:11.123Z".into();
        }
        wake.to_string()
    }
}

fn token(host: usize) -> String {
    format!("host-{host}")
}

/// An answer, as far as the model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Ready,
    Failed,
    Busy,
    WrongToken,
    Checked,
    Awake {
        was_ready: bool,
        lease_expired: bool,
        generation: u64,
    },
}
