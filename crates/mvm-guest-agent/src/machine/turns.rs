//! Turns for what takes so long that nobody should have two of them in a row.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::sync::oneshot;

/// Gives others their turn; to be called once for each piece that is carried. A task that always finds
/// bytes to carry never waits for any, and the agent has one thread: of forty that do, each carries one
/// piece before somebody else's request is looked at.
pub(crate) async fn between_pieces() {
    tokio::task::yield_now().await;
}

/// Who has the turn, and who waits for it, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Rc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<oneshot::Sender<Turn>>>,
}

/// The turn. Dropping it gives it to the next.
#[derive(Debug)]
pub(super) struct Turn(Rc<Queue>);

impl Turns {
    /// Waits for the turn. By then all else that was due when the last one ended has been done.
    pub(super) async fn next(&self) -> Turn {
        let queue = &self.0;
        let turn = if queue.taken.replace(true) {
            let (sender, given) = oneshot::channel();
            queue.waiting.borrow_mut().push_back(sender);
            // Nobody drops the sender but with the queue, which is held here.
            given.await.ok()
        } else {
            None
        };
        let turn = turn.unwrap_or_else(|| Turn(Rc::clone(queue)));
        tokio::task::yield_now().await;
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        loop {
            let next = self.0.waiting.borrow_mut().pop_front();
            match next.map(|next| next.send(Self(Rc::clone(&self.0)))) {
                // It has given up waiting, and this is the same turn.
                Some(Err(turn)) => std::mem::forget(turn),
                Some(Ok(())) => return,
                None => {
                    self.0.taken.set(false);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    /// What is done by turns, and what else goes on, in the order in which it was.
    type Log = Rc<RefCell<Vec<&'static str>>>;

    async fn other(log: Log) {
        loop {
            log.borrow_mut().push("other");
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn between_two_turns_all_else_has_one() {
        let story = async {
            let (turns, log) = (Turns::default(), Log::default());
            spawn_local(other(Rc::clone(&log)));
            let starts = (0..20).map(|_| {
                let (turns, log) = (turns.clone(), Rc::clone(&log));
                spawn_local(async move {
                    let _turn = turns.next().await;
                    log.borrow_mut().push("start");
                })
            });
            for start in starts.collect::<Vec<_>>() {
                start.await.unwrap();
            }
            let log = log.borrow();
            assert_eq!(log.iter().filter(|what| **what == "start").count(), 20);
            assert!(
                !log.windows(2).any(|two| two == ["start", "start"]),
                "{log:?}"
            );
        };
        LocalSet::new().run_until(story).await;
    }

    /// Whoever gives up waiting, also when the turn has just come, takes it from nobody.
    #[tokio::test]
    async fn a_turn_is_never_lost() {
        let story = async {
            let turns = Turns::default();
            let first = turns.next().await;
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let turns = turns.clone();
                    spawn_local(async move { drop(turns.next().await) })
                })
                .collect();
            yield_now().await;
            // One gives up before it is given the turn, the next with the turn in hand.
            waiting[0].abort();
            yield_now().await;
            drop(first);
            waiting[1].abort();
            waiting.into_iter().next_back().unwrap().await.unwrap();
            drop(turns.next().await);
            assert!(!turns.0.taken.get());
        };
        LocalSet::new().run_until(story).await;
    }
}
