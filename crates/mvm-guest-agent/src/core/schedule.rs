//! When each check runs: from start to start, never twice at once, a bounded number together.
//!
//! ```text
//!            add / ask                next (a slot is free)
//!   (none) ───────────▶ waiting ─────────────────────────────▶ running
//!                          ▲                                      │
//!                          └────────────── ended ─────────────────┘
//! ```
//!
//! A check's slots stand on a grid that begins with its first start. A slot that passes while the
//! check still runs, or while no place was free, is skipped: nothing is caught up.
//!
//! In its slot a check starts at a random moment of the first tenth of its interval, a second at
//! most. The kernel looks at what runs every five seconds and a tick for its load average; a check
//! that started every five seconds to the dot would be met by that look time and again.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// A check's number: given when its drop-in was loaded, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CheckId(pub(crate) u64);

/// A check is not started later in its slot than this.
const SPREAD_AT_MOST: Duration = Duration::from_secs(1);

/// What is shorter is taken for this: the agent wakes for each slot.
const LEAST_INTERVAL: Duration = Duration::from_millis(10);

/// After a freeze the first run of each comes within this time, and as much longer for each check
/// that there is: soon, since until then nothing is known of any service, and no burst.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
const FIRST_WITHIN_MORE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Plan {
    interval: Duration,
    /// The next slot on the monotonic clock; `None` before the first start, which is one.
    slot: Option<Duration>,
    /// When it is to be started in that slot.
    due: Duration,
    running: bool,
    /// Asked for while it ran: runs again when that run has ended, since whoever asked wants to
    /// know how things are now.
    again: bool,
}

/// The schedule of all checks. Times are on the monotonic clock.
#[derive(Debug)]
pub(crate) struct Schedule {
    places: usize,
    held: bool,
    running: usize,
    plans: HashMap<CheckId, Plan>,
    due: BTreeSet<(Duration, CheckId)>,
    asked: VecDeque<CheckId>,
    /// Whether the last one that was started was asked for.
    was_asked: bool,
    random: Random,
}

impl Schedule {
    /// A schedule that lets `places` checks run at once, at moments that `seed` decides.
    pub(crate) fn new(places: usize, seed: u64) -> Self {
        Self {
            places: places.max(1),
            held: false,
            running: 0,
            plans: HashMap::new(),
            due: BTreeSet::new(),
            asked: VecDeque::new(),
            was_asked: false,
            random: Random(seed),
        }
    }

    /// Adds a check whose first run is due now.
    pub(crate) fn add(&mut self, id: CheckId, interval: Duration, now: Duration) {
        self.due.insert((now, id));
        let plan = Plan {
            interval: interval.max(LEAST_INTERVAL),
            slot: None,
            due: now,
            running: false,
            again: false,
        };
        self.plans.insert(id, plan);
    }

    /// Forgets a check. A run of it that is under way keeps its place until it has ended.
    pub(crate) fn remove(&mut self, id: CheckId) {
        if let Some(plan) = self.plans.remove(&id) {
            self.due.remove(&(plan.due, id));
        }
        self.asked.retain(|asked| *asked != id);
    }

    /// Asks for a run as soon as there is a place; after the present one if it is running.
    pub(crate) fn ask(&mut self, id: CheckId) {
        if self.held {
            return;
        }
        let Some(plan) = self.plans.get_mut(&id) else {
            return;
        };
        if plan.running {
            plan.again = true;
        } else if !self.asked.contains(&id) {
            self.asked.push_back(id);
        }
    }

    /// The next check to start now, if one is due or asked for and a place is free. Its run has
    /// begun once it is returned.
    pub(crate) fn next(&mut self, now: Duration) -> Option<CheckId> {
        if self.held || self.running >= self.places {
            return None;
        }
        // In turns: whoever asks without a pause keeps nothing from its schedule.
        if self.was_asked {
            self.next_due(now).or_else(|| self.next_asked())
        } else {
            self.next_asked().or_else(|| self.next_due(now))
        }
    }

    fn next_asked(&mut self) -> Option<CheckId> {
        while let Some(id) = self.asked.pop_front() {
            if self.start(id) {
                self.was_asked = true;
                return Some(id);
            }
        }
        None
    }

    fn next_due(&mut self, now: Duration) -> Option<CheckId> {
        loop {
            let (_, id) = *self.due.first().filter(|(due, _)| *due <= now)?;
            self.due.pop_first();
            let Some(plan) = self.plans.get_mut(&id) else {
                continue;
            };
            let slot = match plan.slot {
                Some(ahead) if ahead > now => ahead,
                slot => slot_after(slot.unwrap_or(now), plan.interval, now),
            };
            let spread = SPREAD_AT_MOST.min(plan.interval / 10);
            plan.slot = Some(slot);
            plan.due = slot.saturating_add(spread.mul_f64(self.random.share()));
            self.due.insert((plan.due, id));
            if self.start(id) {
                self.was_asked = false;
                return Some(id);
            }
        }
    }

    fn start(&mut self, id: CheckId) -> bool {
        match self.plans.get_mut(&id) {
            Some(plan) if !plan.running => {
                plan.running = true;
                self.running += 1;
                true
            }
            _ => false,
        }
    }

    /// A run has ended, and its place is free.
    pub(crate) fn ended(&mut self, id: CheckId) {
        self.running = self.running.saturating_sub(1);
        if let Some(plan) = self.plans.get_mut(&id) {
            plan.running = false;
            if std::mem::take(&mut plan.again) {
                self.asked.push_back(id);
            }
        }
    }

    /// Starts nothing until [`Schedule::release`], and forgets what was asked for.
    pub(crate) fn hold(&mut self) {
        self.held = true;
        self.asked.clear();
        for plan in self.plans.values_mut() {
            plan.again = false;
        }
    }

    /// Starts checks again, at moments that `seed` decides: after a restore there is no burst, in
    /// this guest or in a host full of its clones. The first run of each is at a random point of its
    /// interval; of those that are `soon`, since nothing is known of their services, at one of the next
    /// seconds. The second follows after one interval to one and a half, so that clones get out of step.
    pub(crate) fn release(&mut self, now: Duration, seed: u64, soon: impl Fn(CheckId) -> bool) {
        self.held = false;
        self.random = Random(seed);
        self.due.clear();
        let checks = u32::try_from(self.plans.len()).unwrap_or(u32::MAX);
        let within = FIRST_WITHIN.saturating_add(FIRST_WITHIN_MORE.saturating_mul(checks));
        for (id, plan) in &mut self.plans {
            // Whatever order they come in.
            let mut random = Random(seed ^ id.0.rotate_left(32));
            let within = if soon(*id) { within } else { Duration::MAX };
            let first = within.min(plan.interval).mul_f64(random.share());
            let second = plan.interval.mul_f64(1.0 + random.share() / 2.0);
            plan.due = now.saturating_add(first);
            plan.slot = Some(plan.due.saturating_add(second));
            self.due.insert((plan.due, *id));
        }
    }

    /// When [`Schedule::next`] has to be asked again if nothing else comes about: never while all
    /// places are taken, since the end of a run is an event of its own.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        if self.held || self.running >= self.places {
            return None;
        }
        self.due.first().map(|(due, _)| *due)
    }
}

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bits = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or_default();
        f64::from(bits) / f64::from(u32::MAX)
    }
}

/// The first slot after `now` of the grid that goes through `slot`. A clock that stood still while
/// the guest was paused gives no burst: whatever was missed is one step.
pub(crate) fn slot_after(slot: Duration, interval: Duration, now: Duration) -> Duration {
    let missed = now.saturating_sub(slot).as_nanos() / interval.as_nanos().max(1);
    let ahead = interval
        .as_nanos()
        .max(1)
        .saturating_mul(missed.saturating_add(1));
    let ahead = Duration::new(
        u64::try_from(ahead / 1_000_000_000).unwrap_or(u64::MAX),
        u32::try_from(ahead % 1_000_000_000).unwrap_or(0),
    );
    slot.saturating_add(ahead)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
