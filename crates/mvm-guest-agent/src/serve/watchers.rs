//! The bounded queues between the core's changes and the connections that watch.

use mvm_protocol::answer::{Change, Event};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use tokio::sync::Notify;

/// Up to here a watcher gets every change; beyond, one of each thing, the newest.
const EVERY_CHANGE: usize = 64;

/// What one watcher has still to be told.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    events: RefCell<VecDeque<Rc<Event>>>,
    pushed: Notify,
}

impl Queue {
    /// The next change, when there is one.
    pub(crate) async fn next(&self) -> Rc<Event> {
        loop {
            if let Some(event) = self.events.borrow_mut().pop_front() {
                return event;
            }
            self.pushed.notified().await;
        }
    }

    /// Adds a change. A watcher that does not keep up loses the older ones of the same thing, so
    /// its queue is bounded by the number of things, and its last word on each is true.
    fn push(&self, event: Rc<Event>) {
        let mut events = self.events.borrow_mut();
        if events.len() >= EVERY_CHANGE {
            events.retain(|old| !same_thing(&old.change, &event.change));
        }
        events.push_back(event);
        self.pushed.notify_one();
    }
}

fn same_thing(old: &Change, new: &Change) -> bool {
    match (old, new) {
        (Change::Integration { integration: old }, Change::Integration { integration: new }) => {
            old.name == new.name
        }
        _ => std::mem::discriminant(old) == std::mem::discriminant(new),
    }
}

/// Everybody who watches.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<Weak<Queue>>);

impl Watchers {
    /// Tells `queue` of every change from now on, for as long as its owner keeps it.
    pub(crate) fn add(&mut self, queue: &Rc<Queue>) {
        self.0.retain(|watcher| watcher.strong_count() > 0);
        self.0.push(Rc::downgrade(queue));
    }

    /// Tells all of a change.
    pub(crate) fn publish(&mut self, event: Event) {
        if self.0.is_empty() {
            return;
        }
        let event = Rc::new(event);
        self.0.retain(|watcher| match watcher.upgrade() {
            Some(queue) => {
                queue.push(Rc::clone(&event));
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::Timestamp;
    use mvm_protocol::status::{Health, IntegrationStatus};

    fn change(name: &str, checks: u64) -> Event {
        let integration = IntegrationStatus {
            name: name.to_owned(),
            health: Health::Healthy.into(),
            since: Timestamp(0),
            consecutive_failures: 0,
            checks,
            failures: 0,
            first_healthy_secs: None,
            last_check: None,
        };
        let change = Change::Integration {
            integration: Box::new(integration),
        };
        Event {
            at: Timestamp(0),
            change,
        }
    }

    fn told(queue: &Queue) -> Vec<(String, u64)> {
        let events = std::mem::take(&mut *queue.events.borrow_mut());
        events
            .iter()
            .map(|event| match &event.change {
                Change::Integration { integration } => {
                    (integration.name.clone(), integration.checks)
                }
                _ => unreachable!(),
            })
            .collect()
    }

    #[test]
    fn a_quick_watcher_gets_every_change() {
        let (mut watchers, queue) = (Watchers::default(), Rc::new(Queue::default()));
        watchers.add(&queue);
        for n in 0..5 {
            watchers.publish(change("a", n));
        }
        assert_eq!(told(&queue).len(), 5);
    }

    #[test]
    fn a_slow_watcher_is_bounded_and_gets_the_newest_of_each() {
        let (mut watchers, queue) = (Watchers::default(), Rc::new(Queue::default()));
        watchers.add(&queue);
        for n in 0..100_000 {
            watchers.publish(change(["a", "b", "c"][n % 3], n as u64));
        }
        let told = told(&queue);
        assert!(told.len() <= EVERY_CHANGE + 3, "{}", told.len());
        for (name, newest) in [("a", 99_999), ("b", 99_997), ("c", 99_998)] {
            let last = told.iter().rev().find(|(told, _)| told == name).unwrap();
            assert_eq!(last.1, newest);
        }
    }

    #[test]
    fn a_watcher_that_left_costs_nothing() {
        let mut watchers = Watchers::default();
        for _ in 0..100 {
            watchers.add(&Rc::new(Queue::default()));
        }
        assert_eq!(watchers.0.len(), 1);
        watchers.publish(change("a", 0));
        assert_eq!(watchers.0.len(), 0);
    }
}
