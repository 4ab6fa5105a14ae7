//! The restores that are owed.

use super::terms::{Participant, Task};

/// How many of those that are owed a restore and are not loaded any more are tried, so that it is
/// said: a journal may name any number.
const MOST_GONE: usize = 16;

/// Each that is loaded once, in the order of the debts, which is the reverse of load order, and before
/// them the first few of the others.
pub(super) fn keep_what_can_be_paid(owed: &mut Vec<String>, participants: &[Participant]) {
    let sorted = |names: &mut dyn Iterator<Item = String>| {
        let mut names: Vec<String> = names.collect();
        names.sort_unstable();
        names
    };
    let all = sorted(&mut owed.iter().cloned());
    let loaded = sorted(&mut participants.iter().map(|it| it.name.clone()));
    let mut gone = std::mem::take(owed);
    gone.retain(|name| loaded.binary_search(name).is_err());
    gone.truncate(MOST_GONE);
    let names = participants.iter().map(|it| &it.name);
    owed.extend(
        names
            .filter(|name| all.binary_search(name).is_ok())
            .cloned(),
    );
    owed.append(&mut gone);
    owed.reverse();
}

/// The restores that are owed, in load order; what is not loaded any more comes last, and says so
/// when it is tried.
pub(super) fn restores(owed: &[String], participants: &[Participant]) -> Vec<Task> {
    let loaded = participants
        .iter()
        .filter(|it| owed.contains(&it.name))
        .map(|it| &it.name);
    let gone = owed
        .iter()
        .filter(|name| participants.iter().all(|it| it.name != **name));
    loaded.chain(gone).cloned().map(Task::Restore).collect()
}
