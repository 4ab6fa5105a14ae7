//! How many emulated guests are restored at the same time.
//!
//! To wake, a guest whose CPU is emulated keeps a CPU of this machine busy for half a second and more. Many
//! at once take as long as they would one after the other, longer since each finds the caches full of the
//! others', and all of them end at the very last. So no more go on at once than keep the CPUs busy; the
//! first ones are awake long before the last.

use crate::deadline::Deadline;
use crate::error::Error;
use mvm_registry::{Home, Lock};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

/// How long to wait for one's turn, at most: whoever has it may be stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is asked for: a lock gives no event.
const TICK: Duration = Duration::from_millis(10);

/// Waits for one's turn. `None` if it did not come in time: one goes on without, then.
pub(crate) fn turn(home: &Home, deadline: Deadline<'_>) -> Result<Option<Lock>, Error> {
    // One more than there are CPUs, for when one of them waits for its disk or its VMM.
    let places = available_parallelism().map_or(2, |cpus| cpus.get() + 1);
    turn_within(home, places, deadline, PATIENCE)
}

fn turn_within(
    home: &Home,
    places: usize,
    deadline: Deadline<'_>,
    patience: Duration,
) -> Result<Option<Lock>, Error> {
    let begun = Instant::now();
    let mut places = home.emulated_places(places)?;
    loop {
        if let Some(turn) = places.take()? {
            return Ok(Some(turn));
        }
        if deadline.is_cancelled() {
            return Err(Error::Interrupted);
        }
        let left = patience.saturating_sub(begun.elapsed());
        let left = left.min(deadline.left());
        if left.is_zero() {
            return Ok(None);
        }
        sleep(TICK.min(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::scope;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn it_comes_when_another_ends() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let deadline = Deadline::new(LONG, None);
        let mut held: Vec<_> = (0..2)
            .map(|_| turn_within(&home, 2, deadline, LONG).unwrap().unwrap())
            .collect();
        scope(|scope| {
            let waiting = scope.spawn(|| turn_within(&home, 2, deadline, LONG).unwrap());
            held.pop();
            assert!(waiting.join().unwrap().is_some());
        });
    }

    #[test]
    fn whoever_waits_too_long_goes_on_and_whoever_is_interrupted_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let deadline = Deadline::new(LONG, None);
        let _held = turn_within(&home, 1, deadline, LONG).unwrap().unwrap();
        let none = turn_within(&home, 1, deadline, Duration::ZERO).unwrap();
        assert!(none.is_none());
        let over = Deadline::new(Duration::ZERO, None);
        assert!(turn_within(&home, 1, over, LONG).unwrap().is_none());
        let interrupted = AtomicBool::new(false);
        scope(|scope| {
            let deadline = Deadline::new(LONG, Some(&interrupted));
            let home = &home;
            let waiting = scope.spawn(move || turn_within(home, 1, deadline, LONG));
            interrupted.store(true, Ordering::Relaxed);
            let refused = waiting.join().unwrap().unwrap_err();
            assert!(matches!(refused, Error::Interrupted), "{refused}");
        });
    }
}
