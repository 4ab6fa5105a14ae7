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
        let is_due = self.due.first().is_some_and(|(due, _)| *due <= now);
        if !(self.was_asked && is_due)
            && let Some(id) = self.next_asked()
        {
            self.was_asked = true;
            return Some(id);
        }
        self.was_asked = false;
        self.next_due(now).or_else(|| self.next_asked())
    }

    fn next_asked(&mut self) -> Option<CheckId> {
        while let Some(id) = self.asked.pop_front() {
            if self.start(id) {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: CheckId = CheckId(1);
    const B: CheckId = CheckId(2);
    const NONE: [u64; 0] = [];

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn started(schedule: &mut Schedule, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.next(secs(now)))
            .map(|id| id.0)
            .collect()
    }

    /// Whether it is due in the slot that begins then, of a check whose interval is 10 s.
    fn is_due_in(schedule: &Schedule, slot: u64) -> bool {
        schedule
            .deadline()
            .is_some_and(|due| (secs(slot)..=secs(slot + 1)).contains(&due))
    }

    #[test]
    fn the_first_run_is_at_once_and_the_others_from_start_to_start() {
        let mut schedule = Schedule::new(4, 7);
        schedule.add(A, secs(10), secs(100));
        assert_eq!(started(&mut schedule, 100), [1]);
        assert!(is_due_in(&schedule, 110));
        schedule.ended(A);
        assert_eq!(started(&mut schedule, 109), NONE);
        assert_eq!(started(&mut schedule, 111), [1]);
        assert!(is_due_in(&schedule, 120));
    }

    #[test]
    fn whoever_asks_without_a_pause_keeps_nothing_else_from_its_schedule() {
        let mut schedule = Schedule::new(1, 7);
        for id in [A, B] {
            schedule.add(id, secs(10), secs(0));
        }
        assert_eq!(started(&mut schedule, 0), [1]);
        let mut runs = Vec::new();
        for now in 0..100 {
            let running = if runs.last() == Some(&2) { B } else { A };
            // Two hosts, while it runs.
            schedule.ask(A);
            schedule.ask(A);
            schedule.ended(running);
            runs.extend(started(&mut schedule, now));
        }
        assert_eq!(runs.len(), 100);
        let of_b = runs.iter().filter(|run| **run == 2).count();
        assert!((10..=11).contains(&of_b), "{runs:?}");
    }

    #[test]
    fn a_tiny_interval_does_not_wake_the_agent_without_a_pause() {
        let mut schedule = Schedule::new(4, 7);
        schedule.add(A, Duration::from_nanos(1), secs(1));
        assert_eq!(started(&mut schedule, 1), [1]);
        assert!(schedule.deadline() >= Some(secs(1) + LEAST_INTERVAL));
    }

    #[test]
    fn a_slot_that_passes_during_a_run_is_skipped() {
        let mut schedule = Schedule::new(4, 7);
        schedule.add(A, secs(10), secs(0));
        assert_eq!(started(&mut schedule, 0), [1]);
        assert_eq!(started(&mut schedule, 11), NONE);
        assert_eq!(started(&mut schedule, 21), NONE);
        schedule.ended(A);
        assert_eq!(started(&mut schedule, 25), NONE);
        assert!(is_due_in(&schedule, 30));
        assert_eq!(started(&mut schedule, 31), [1]);
    }

    #[test]
    fn a_jump_of_the_clock_is_one_run_and_the_grid_stays() {
        let mut schedule = Schedule::new(4, 7);
        schedule.add(A, secs(10), secs(0));
        assert_eq!(started(&mut schedule, 0), [1]);
        schedule.ended(A);
        assert_eq!(started(&mut schedule, 31_536_003), [1]);
        schedule.ended(A);
        assert_eq!(started(&mut schedule, 31_536_003), NONE);
        assert!(is_due_in(&schedule, 31_536_010));
    }

    #[test]
    fn a_freed_slot_goes_to_the_check_that_is_longest_due() {
        let mut schedule = Schedule::new(2, 7);
        for id in 1..=4 {
            schedule.add(CheckId(id), secs(10), secs(id));
        }
        assert_eq!(started(&mut schedule, 5), [1, 2]);
        assert_eq!(schedule.deadline(), None);
        schedule.ended(B);
        assert_eq!(started(&mut schedule, 6), [3]);
        // The grid begins with the first start, so a first burst is spread from then on.
        schedule.ended(A);
        schedule.ended(CheckId(3));
        assert_eq!(started(&mut schedule, 7), [4]);
        assert!(is_due_in(&schedule, 15));
    }

    #[test]
    fn asking_goes_first_and_never_makes_two_at_once() {
        let mut schedule = Schedule::new(1, 7);
        schedule.add(A, secs(10), secs(0));
        schedule.add(B, secs(10), secs(0));
        schedule.ask(B);
        schedule.ask(B);
        assert_eq!(started(&mut schedule, 0), [2]);
        schedule.ask(B);
        schedule.ended(B);
        assert_eq!(started(&mut schedule, 0), [1], "due, and it was B's turn");
        schedule.ended(A);
        assert_eq!(
            started(&mut schedule, 0),
            [2],
            "asked while it ran: runs once more"
        );
    }

    #[test]
    fn a_removed_checks_run_keeps_its_slot_until_it_ends() {
        let mut schedule = Schedule::new(1, 7);
        schedule.add(A, secs(10), secs(0));
        assert_eq!(started(&mut schedule, 0), [1]);
        schedule.remove(A);
        schedule.add(B, secs(10), secs(0));
        assert_eq!(started(&mut schedule, 0), NONE);
        schedule.ended(A);
        assert_eq!(started(&mut schedule, 0), [2]);
    }

    #[test]
    fn a_held_schedule_starts_nothing_and_is_released_without_a_burst() {
        let mut schedule = Schedule::new(1000, 7);
        for id in 0..1000 {
            schedule.add(CheckId(id), secs(100), secs(0));
        }
        assert_eq!(started(&mut schedule, 0).len(), 1000);
        for id in 0..1000 {
            schedule.ended(CheckId(id));
        }
        schedule.hold();
        schedule.ask(A);
        assert_eq!(started(&mut schedule, 5000), NONE);
        assert_eq!(schedule.deadline(), None);
        schedule.release(secs(5000), 7, |_| false);
        let mut runs = Vec::new();
        for second in 5000..=5100 {
            let mut now = started(&mut schedule, second);
            assert!(now.len() < 50, "{} at once", now.len());
            for id in &now {
                schedule.ended(CheckId(*id));
            }
            runs.append(&mut now);
        }
        runs.sort_unstable();
        runs.dedup();
        assert_eq!(runs.len(), 1000, "each once within its interval");
    }

    #[test]
    fn starts_are_spread_within_their_slots() {
        for (interval, at_most_ms) in [(2, 200), (5, 500), (10, 1000), (60, 1000)] {
            let mut schedule = Schedule::new(4, 7);
            schedule.add(A, secs(interval), secs(0));
            assert_eq!(started(&mut schedule, 0), [1]);
            schedule.ended(A);
            let mut late = Vec::new();
            for slot in 1..=1000 {
                let due = schedule.deadline().unwrap();
                late.push(due.abs_diff(secs(slot * interval)).as_millis());
                assert_eq!(schedule.next(due), Some(A));
                schedule.ended(A);
            }
            late.sort_unstable();
            let quarters = [0, 250, 500, 750, 999].map(|at| late[at]);
            let expected = [0, 1, 2, 3, 4].map(|quarter| at_most_ms * quarter / 4);
            for (late, expected) in quarters.into_iter().zip(expected) {
                assert!(late.abs_diff(expected) <= at_most_ms / 10, "{quarters:?}");
            }
        }
    }

    #[test]
    fn after_a_wake_the_first_run_comes_soon_and_the_second_an_interval_later() {
        for seed in 0..100 {
            let mut schedule = Schedule::new(4, 7);
            schedule.add(A, secs(60), secs(0));
            schedule.add(B, secs(1), secs(0));
            schedule.hold();
            schedule.release(secs(100), seed, |_| true);
            let mut starts = [const { Vec::new() }; 2];
            while starts[0].len() < 3 {
                let due = schedule.deadline().unwrap();
                let id = schedule.next(due).unwrap();
                starts[usize::from(id == B)].push(due);
                schedule.ended(id);
            }
            let within = Duration::from_millis(2200);
            assert!(starts[0][0] <= secs(100) + within, "{starts:?}");
            assert!(starts[1][0] <= secs(101), "{starts:?}");
            let gaps = [0, 1].map(|at| starts[0][at + 1].abs_diff(starts[0][at]));
            assert!((secs(60)..=secs(91)).contains(&gaps[0]), "{gaps:?}");
            assert!((secs(59)..=secs(61)).contains(&gaps[1]), "{gaps:?}");
        }
    }

    proptest! {
        #[test]
        fn slots_are_on_the_grid_and_ahead(
            slot in 0_u64..1_000_000, interval in 1_u64..100_000, now in 0_u64..10_000_000,
        ) {
            let ms = Duration::from_millis;
            let next = slot_after(ms(slot), ms(interval), ms(now));
            prop_assert!(next > ms(now.max(slot)));
            prop_assert!(next <= ms(now.max(slot) + interval));
            prop_assert_eq!(next.saturating_sub(ms(slot)).as_millis() % u128::from(interval), 0);
        }

        #[test]
        fn one_run_per_check_and_never_more_than_the_slots(
            places in 1_usize..4,
            steps in prop::collection::vec((0_u8..4, 0_u64..5, 0_u64..8), 1..200),
        ) {
            let mut schedule = Schedule::new(places, 7);
            let mut running: Vec<CheckId> = Vec::new();
            let mut now = Duration::ZERO;
            for (what, id, ahead) in steps {
                now += Duration::from_secs(ahead);
                let id = CheckId(id);
                match what {
                    0 if !schedule.plans.contains_key(&id) && !running.contains(&id) => {
                        schedule.add(id, secs(3), now);
                    }
                    1 => schedule.ask(id),
                    2 => schedule.remove(id),
                    _ => if let Some(at) = running.iter().position(|r| *r == id) {
                        running.swap_remove(at);
                        schedule.ended(id);
                    },
                }
                while let Some(id) = schedule.next(now) {
                    prop_assert!(!running.contains(&id));
                    running.push(id);
                }
                prop_assert!(running.len() <= places);
                prop_assert!(schedule.deadline().is_none_or(|due| due > now));
            }
        }
    }
}
