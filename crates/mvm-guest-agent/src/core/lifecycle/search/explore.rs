//! Goes through all states, with a sound plan and with plans in which something is wrong.

use super::*;
use std::collections::{HashMap, HashSet, VecDeque};

/// Something wrong that is done after each move, to see that it is found.
type Mutation = fn(&mut SearchState);

/// What a wake has yet to do.
fn plan(state: &mut SearchState) -> Option<&mut VecDeque<Task>> {
    match &mut state.it.state {
        State::Waking(waking) => Some(&mut waking.plan),
        _ => None,
    }
}

fn mutate(state: &mut SearchState, mutation: Option<Mutation>) {
    if let Some(mutation) = mutation {
        mutation(state);
    }
}

/// Thaws before a task that has to come first, whatever led there.
fn thaw_before(state: &mut SearchState, task: &Task) {
    if let Some(plan) = plan(state) {
        let at = |wanted: &Task| plan.iter().position(|it| it == wanted);
        if let (Some(thaw), Some(before)) = (at(&Task::Thaw), at(task))
            && before < thaw
        {
            plan.swap(before, thaw);
        }
    }
}

#[test]
fn every_interleaving_keeps_every_promise() {
    let (states, phases) = explore(None);
    println!("{states} states: {phases:?}");
    assert_eq!(phases.len(), 4, "{phases:?}");
    assert!(states > 1000, "{states}");
}

#[test]
#[should_panic(expected = "thawed before its time")]
fn a_thaw_before_the_reseed_is_found() {
    explore(Some(|state| thaw_before(state, &Task::Reseed)));
}

#[test]
#[should_panic(expected = "thawed before its time")]
fn a_thaw_before_the_clock_is_found() {
    explore(Some(|state| thaw_before(state, &Task::Clock)));
}

#[test]
#[should_panic(expected = "thawed before its time")]
fn a_thaw_before_the_identity_is_found() {
    explore(Some(|state| thaw_before(state, &Task::Identity)));
}

#[test]
#[should_panic(expected = "thawed before its time")]
fn a_thaw_before_the_generation_is_written_is_found() {
    explore(Some(|state| thaw_before(state, &Task::Generation)));
}

#[test]
#[should_panic(expected = "is restored while frozen")]
fn a_thaw_that_is_forgotten_is_found() {
    explore(Some(|state| {
        if let Some(plan) = plan(state) {
            plan.retain(|task| *task != Task::Thaw);
        }
    }));
}

#[test]
#[should_panic(expected = "running, and its work is not")]
fn a_thaw_that_is_forgotten_is_found_in_a_guest_without_restores() {
    explore(Some(|state| {
        state.debts.clear();
        state.it.journal.owed.clear();
        state.disk.owed.clear();
        if let Some(plan) = plan(state) {
            plan.retain(|task| !matches!(task, Task::Thaw | Task::Restore(_)));
        }
    }));
}

#[test]
#[should_panic(expected = "thawed twice, or for nothing")]
fn a_second_thaw_is_found() {
    explore(Some(|state| {
        if let Some(plan) = plan(state)
            && !plan.is_empty()
            && !plan.contains(&Task::Thaw)
        {
            plan.push_front(Task::Thaw);
        }
    }));
}

#[test]
#[should_panic(expected = "frozen, and nobody knows")]
fn a_freeze_of_which_the_journal_does_not_know_is_found() {
    explore(Some(|state| {
        if state.it.phase() == Phase::Ready {
            state.it.journal.frozen = false;
            state.disk.frozen = false;
        }
    }));
}

#[test]
#[should_panic(expected = "a wake was not kept")]
fn a_notice_that_is_not_acted_on_is_found() {
    explore(Some(|state| {
        if let Some(plan) = plan(state)
            && !plan.contains(&Task::Personalize("a".into()))
        {
            plan.retain(|task| *task != Task::Reseed);
        }
    }));
}

#[test]
#[should_panic(expected = "thawed before its time")]
fn a_notice_that_is_lost_while_the_guest_sleeps_is_found() {
    explore(Some(|state| {
        if state.it.phase() == Phase::Ready {
            state.it.journal.noticed = None;
            state.disk.noticed = None;
        }
    }));
}

#[test]
#[should_panic(expected = "a restore was forgotten")]
fn a_notice_of_which_nobody_is_told_is_found() {
    explore(Some(|state| {
        // As if it had been told before.
        if state.it.phase() == Phase::Ready && state.it.journal.noticed.take().is_some() {
            let (clone, unannounced) = (false, true);
            state.it.journal.restoring = Some(terms::Restoring { clone, unannounced });
            (state.disk, state.counted) = (state.it.journal.clone(), true);
        }
    }));
}

#[test]
#[should_panic(expected = "told twice, or announced")]
fn a_notice_that_is_told_twice_is_found() {
    explore(Some(|state| {
        if state.doing == Some(Task::Clock) && !state.untold {
            state.it.journal.noticed = Some(RestoreSign::Cid);
            plan(state).unwrap().push_front(Task::Reseed);
        }
    }));
}

#[test]
#[should_panic(expected = "generations and notices by Reseed")]
fn a_restore_that_is_counted_twice_is_found() {
    explore(Some(|state| {
        // As if what was begun for a notice were not the restore that a wake announces then.
        if matches!(state.it.state, State::Waking(_)) && state.doing != Some(Task::Generation) {
            state.it.journal.restoring = None;
        }
    }));
}

#[test]
#[should_panic(expected = "thawed with its twin's identity")]
fn a_notice_that_thaws_a_clone_that_is_held_is_found() {
    explore(Some(|state| {
        if matches!(state.it.state, State::Held(_)) && state.it.journal.noticed.is_some() {
            let waking = Waking::because(Cause::Restored, "the guest was restored");
            let acts = state.it.leave_ready(waking);
            state.take(acts);
            state.forget();
        }
    }));
}

/// Goes through all that can come about. Gives the number of states, and how many in each phase.
fn explore(mutation: Option<Mutation>) -> (usize, HashMap<String, usize>) {
    let start = SearchState::new();
    let mut seen: HashSet<SearchState> = HashSet::from([start.clone()]);
    let mut frontier = VecDeque::from([start]);
    let mut phases: HashMap<String, usize> = HashMap::new();
    while let Some(state) = frontier.pop_front() {
        *phases.entry(format!("{:?}", state.it.phase())).or_default() += 1;
        for what in MOVES {
            // A snapshot that is taken here and restored later is this very state, explored once
            // for each that comes of it.
            if let Some(mut next) = state.after(what) {
                mutate(&mut next, mutation);
                if seen.insert(next.clone()) {
                    frontier.push_back(next);
                }
            }
        }
        // From anywhere the guest is back within its lease, though no host ever speaks again, but for
        // one that would be its twin.
        let mut alone = state.clone();
        let mut steps = 0;
        while alone.it.phase() != Phase::Running && !matches!(alone.it.state, State::Held(_)) {
            let outcome = Move::End(Outcome::TimedOut);
            alone = alone
                .after(outcome)
                .or_else(|| alone.after(Move::Tick))
                .unwrap();
            mutate(&mut alone, mutation);
            steps += 1;
            assert!(steps < 40, "the guest does not come back");
        }
    }
    (seen.len(), phases)
}
