//! Goes through all states, with a sound plan and with plans in which something is wrong.

use super::*;
use std::collections::{HashMap, HashSet, VecDeque};

/// Something wrong that is done to the plan of a wake, to see that it is found.
type Mutation = fn(&mut VecDeque<Task>);

fn mutate(state: &mut SearchState, mutation: Option<Mutation>) {
    if let (Some(mutation), State::Waking(waking)) = (mutation, &mut state.it.state) {
        mutation(&mut waking.plan);
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
    explore(Some(|plan| {
        if let Some(at) = plan.iter().position(|task| *task == Task::Thaw) {
            plan.swap(0, at);
        }
    }));
}

#[test]
#[should_panic(expected = "a wake was not kept")]
fn a_notice_that_is_not_acted_on_is_found() {
    explore(Some(|plan| {
        if !plan.contains(&Task::Personalize("a".into())) {
            plan.retain(|task| *task != Task::Reseed);
        }
    }));
}

#[test]
#[should_panic(expected = "is restored while frozen")]
fn a_thaw_that_is_forgotten_is_found() {
    explore(Some(|plan| plan.retain(|task| *task != Task::Thaw)));
}

#[test]
#[should_panic(expected = "thawed twice, or for nothing")]
fn a_second_thaw_is_found() {
    explore(Some(|plan| {
        if !plan.is_empty() && !plan.contains(&Task::Thaw) {
            plan.push_front(Task::Thaw);
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
