//! The schedule of checks, second by second.

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
