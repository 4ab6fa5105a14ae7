//! What a decision is made of: what it is told beyond the view, and what it says.

use crate::actions::ActionKind;
use crate::input::FailedAction;
use crate::now::Now;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a decision depends on beyond the view and the policy. All of it is known to whoever carries
/// plans out; nothing of it needs to be kept over a restart.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What is being done, by VM. A clone that is being made is one too, whether its folder is there
    /// yet or not.
    pub under_way: BTreeMap<String, UnderWay>,
    /// How many connections of a pool are held until a VM can take them.
    pub waiting: BTreeMap<String, u32>,
    /// How many connections a VM serves that came by its pool's `wake`. One that serves any is not put
    /// down, whatever its guest says: little traffic makes no load.
    pub joined: BTreeMap<String, u32>,
    /// The last clone of a pool that failed, or [crashed](super::fates) at once, if none has come to
    /// something since.
    pub failed_clones: BTreeMap<String, FailedAction>,
}

/// An action that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderWay {
    /// What is done.
    pub kind: ActionKind,
    /// The pool of the VM.
    pub pool: String,
    /// When it was begun (`CLOCK_BOOTTIME`).
    pub since: Duration,
    /// Whether connections may wait for it: see [`Action::is_urgent`].
    pub is_urgent: bool,
}

/// What is to be done now, and what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the order in which they are to be begun; one a VM at most. Whoever cannot begin all at once
    /// begins some and asks again when one has ended.
    pub actions: Vec<Action>,
    /// What is not done although something speaks for it, a line a pool and cause.
    pub held: Vec<Held>,
    /// After how long time alone may change the plan. Events may do so earlier.
    pub look_again_after: Option<Duration>,
}

/// One thing that is to be done, to one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// What.
    pub kind: ActionKind,
    /// The VM; of a clone, the name that it is to have.
    pub vm: Box<str>,
    /// The VM's pool.
    pub pool: Box<str>,
    /// Why.
    pub reason: Reason,
}

impl Action {
    /// Whether connections may wait for it: it is to have a place beside those for which nobody does. What
    /// is there already and only comes up may be given some at any time; a clone is made for them or not.
    pub fn is_urgent(&self) -> bool {
        match self.kind {
            ActionKind::Wake | ActionKind::Resume => true,
            ActionKind::Clone => matches!(self.reason, Reason::Demand { .. }),
            ActionKind::Pause | ActionKind::Sleep | ActionKind::Stop | ActionKind::Remove => false,
        }
    }

    /// As what it counts while it is done, from then on.
    pub fn under_way(&self, since: Duration) -> UnderWay {
        UnderWay {
            kind: self.kind,
            pool: self.pool.to_string(),
            since,
            is_urgent: self.is_urgent(),
        }
    }
}

/// Why something is done. Shown to people as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Connections wait, and no VM is there or on its way to take them.
    Demand {
        /// How many.
        waiting: u32,
        /// That it is too old, and is taken all the same.
        old: Option<Old>,
    },
    /// Fewer run than the policy's `min`.
    BelowMin {
        /// How many run, or may.
        up: u32,
        /// The policy's `min`.
        min: u32,
        /// That it is too old, and is taken all the same.
        old: Option<Old>,
    },
    /// Fewer idle ones are at hand than the policy's `spare`.
    FewSpare {
        /// How many are idle, or on their way.
        idle: u32,
        /// How many there are to be within `max`.
        spare: u32,
    },
    /// It has been idle for so long.
    Idle {
        /// For how long.
        idle: Duration,
        /// The policy's period.
        after: Duration,
    },
    /// It has been paused for so long.
    Paused {
        /// For how long.
        paused: Duration,
        /// The policy's period, from the pause on.
        after: Duration,
    },
    /// It has been asleep for so long.
    Asleep {
        /// For how long.
        asleep: Duration,
        /// The policy's period.
        after: Duration,
    },
    /// It has lived for so long, and does not work.
    Lifetime {
        /// Its age.
        age: Duration,
        /// The policy's `max_lifetime`.
        after: Duration,
    },
    /// It has lived for twice as long as it should, whatever it does.
    TwiceLifetime {
        /// Its age.
        age: Duration,
        /// The policy's `max_lifetime`.
        after: Duration,
    },
    /// The fleet made it, and its start was broken off.
    BrokenOff,
    /// The fleet made it, and it has not run for so long.
    LeftOver {
        /// For how long.
        stopped: Duration,
    },
}

/// That a VM is over its pool's `max_lifetime`, and that there is nothing to clone in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Old {
    /// Its age.
    pub age: Duration,
    /// The policy's `max_lifetime`.
    pub after: Duration,
}

/// Behind what it is a part of.
struct Despite(Option<Old>);

impl fmt::Display for Despite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(Old { age, after }) = self.0 else {
            return Ok(());
        };
        let (age, after) = (For(age), For(after));
        write!(
            f,
            "; it is {age} old, over {after}, but there is no `golden` to clone in its place"
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Demand { waiting: 1, old } => write!(f, "a connection waits{}", Despite(*old)),
            Self::Demand { waiting, old } => {
                write!(f, "{waiting} connections wait{}", Despite(*old))
            }
            Self::BelowMin { up, min, old } => {
                write!(f, "{up} up, min is {min}{}", Despite(*old))
            }
            Self::FewSpare { idle, spare } => {
                write!(f, "{idle} idle or on their way, {spare} are to be at hand")
            }
            Self::Idle { idle, after } => {
                write!(f, "idle for {}, over {}", For(*idle), For(*after))
            }
            Self::Paused { paused, after } => {
                write!(f, "paused for {}, over {}", For(*paused), For(*after))
            }
            Self::Asleep { asleep, after } => {
                write!(f, "asleep for {}, over {}", For(*asleep), For(*after))
            }
            Self::Lifetime { age, after } => {
                write!(f, "{} old, over {}, and idle", For(*age), For(*after))
            }
            Self::TwiceLifetime { age, after } => {
                write!(f, "{} old, over twice {}", For(*age), For(*after))
            }
            Self::BrokenOff => f.write_str("its start was broken off"),
            Self::LeftOver { stopped } => write!(f, "not running for {}", For(*stopped)),
        }
    }
}

/// Something that speaks for an action which is not in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The pool.
    pub pool: Box<str>,
    /// Why not.
    pub cause: Cause,
}

/// Why nothing is done. Shown to people as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The view of the pool is not complete: nothing is done in it.
    Incomplete,
    /// One more is wanted, and there are as many as `max` allows.
    AtMax {
        /// How many are up, paused or on their way.
        up: u32,
        /// The policy's `max`.
        max: u32,
    },
    /// One more is wanted, and twice as many as `max` sleep that could not be woken: no further one is
    /// made.
    NotWoken {
        /// How many.
        vms: u32,
    },
    /// One more is wanted, none sleeps or is paused that may run, and the pool has no `golden`.
    NoneLeft,
    /// Connections wait, and VMs that were brought up just now are to take them.
    OnTheirWay {
        /// How many.
        vms: u32,
        /// After how long another one is brought up if none of them is there by then.
        for_now: Duration,
    },
    /// One more spare one is wanted, what sleeps or is paused is over its `max_lifetime`, and the pool has
    /// no `golden`.
    TooOld {
        /// How many.
        vms: u32,
        /// The policy's `max_lifetime`.
        after: Duration,
    },
    /// One more is wanted, and what could be had failed or slept just now.
    Waiting {
        /// For how long yet.
        for_now: Duration,
    },
    /// VMs of which nobody knows what they do are left alone.
    Unknown {
        /// How many.
        vms: u32,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Incomplete => {
                f.write_str("not every VM has answered or failed yet, or a folder cannot be looked at: nothing is done")
            }
            Self::AtMax { up, max } => write!(f, "one more is wanted: {up} are up, max is {max}"),
            Self::NotWoken { vms } => write!(
                f,
                "one more is wanted: {vms} sleep that could not be woken, and no further one is made"
            ),
            Self::NoneLeft => f.write_str(
                "one more is wanted: none sleeps or is paused that may run, and there is no `golden`",
            ),
            Self::OnTheirWay { vms, for_now } => write!(
                f,
                "connections wait for {vms} on the way up; another one comes up if none is there in {}",
                For(*for_now)
            ),
            Self::TooOld { vms, after } => write!(
                f,
                "one more is wanted: {vms} that sleep or are paused are over their `max_lifetime` of {}, \
                 and come up only for connections and `min`; there is no `golden`",
                For(*after)
            ),
            Self::Waiting { for_now } => {
                write!(f, "one more is wanted: the next try is in {}", For(*for_now))
            }
            Self::Unknown { vms: 1 } => f.write_str("1 VM is unknown, counts as busy, is left alone"),
            Self::Unknown { vms } => {
                write!(f, "{vms} VMs are unknown, count as busy, are left alone")
            }
        }
    }
}

/// A duration for people: its two largest units.
struct For(Duration);

impl fmt::Display for For {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let secs = self.0.as_secs();
        let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
        let pair = |f: &mut fmt::Formatter, more: u64, unit: &str, less: u64, small: &str| {
            if less == 0 {
                write!(f, "{more}{unit}")
            } else {
                write!(f, "{more}{unit}{less}{small}")
            }
        };
        match (days, hours, minutes) {
            (0, 0, 0) if secs < 1 => write!(f, "{}ms", self.0.as_millis()),
            (0, 0, 0) => write!(f, "{secs}s"),
            (0, 0, _) => pair(f, minutes, "m", secs % 60, "s"),
            (0, ..) => pair(f, hours, "h", minutes, "m"),
            _ => pair(f, days, "d", hours, "h"),
        }
    }
}

/// The first pause after a failure. Long enough that a VMM which cannot be started, or a checkpoint
/// that fails at once, is not tried all the time; short enough that a passing fault costs little.
const FIRST_RETRY: Duration = Duration::from_secs(10);

/// The longest pause. A fault that somebody mends is noticed within it.
const LAST_RETRY: Duration = Duration::from_secs(600);

/// How long to leave it yet after a failure: 10 s after the first one, doubled with each further one
/// up to 10 min. None once it may be tried again.
pub(crate) fn backoff(
    failed: Option<FailedAction>,
    kind: ActionKind,
    now: &Now,
) -> Option<Duration> {
    let failed = failed.filter(|failed| failed.action == kind)?;
    let doubled = failed.times.saturating_sub(1).min(16);
    let pause = FIRST_RETRY.saturating_mul(1 << doubled).min(LAST_RETRY);
    // A failure of the future was dated by a clock that has been set since: it is over at once.
    if failed.at > now.wall {
        return None;
    }
    let left = pause.saturating_sub(now.since(failed.at));
    (!left.is_zero()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::Timestamp;

    #[test]
    fn durations_for_people() {
        for (secs, text) in [
            (0, "0ms"),
            (59, "59s"),
            (60, "1m"),
            (95, "1m35s"),
            (3600, "1h"),
            (5430, "1h30m"),
            (86_400 * 7 + 7200, "7d2h"),
        ] {
            assert_eq!(For(Duration::from_secs(secs)).to_string(), text);
        }
    }

    #[test]
    fn pauses_grow_to_ten_minutes() {
        let left = |times: u32, ago: i64| {
            let now = Now {
                monotonic: Duration::ZERO,
                boottime: Duration::ZERO,
                wall: Timestamp(1_000_000_000),
            };
            let at = Timestamp(now.wall.0 - ago * 1000);
            let action = ActionKind::Sleep;
            backoff(Some(FailedAction { action, at, times }), action, &now)
        };
        assert_eq!(left(1, 0), Some(Duration::from_secs(10)));
        assert_eq!(left(1, 9), Some(Duration::from_secs(1)));
        assert_eq!(left(1, 10), None);
        assert_eq!(left(4, 0), Some(Duration::from_secs(80)));
        assert_eq!(left(u32::MAX, 0), Some(Duration::from_secs(600)));
        assert_eq!(left(u32::MAX, -100), None);
    }
}
