//! When the drop-in folders are read, and what becomes of what was loaded before.

use super::registry::{Check, Loaded};
use super::schedule::CheckId;
use super::{Action, Core, Now, WaiterId, answer, busy, kind_name};
use mvm_protocol::answer::{Answer, Change, ErrorAnswer, ErrorCode, Reloaded};
use mvm_protocol::drop_in::DropIn;
use mvm_protocol::request::CheckKind;
use mvm_protocol::status::{DropIns, Lifecycle as Phase};
use std::collections::HashMap;
use std::time::Duration;

/// How long a drop-in folder has to be quiet before it is read.
const SETTLE: Duration = Duration::from_millis(250);

/// After this long it is read even if it never gets quiet.
const SETTLE_AT_MOST: Duration = Duration::from_secs(5);

/// After this long it is tried again if it could not be read.
const AGAIN: Duration = Duration::from_secs(1);

/// Where reading the drop-ins stands.
///
/// ```text
///   idle ──changed──▶ settling ──quiet for 250 ms, or asked──▶ loading ──loaded──▶ idle
///     │                  ▲──────────cannot be read: in 1 s─────────┤ │
///     └───────────────────────asked──────────────────────────────▲  └─asked or changed: again
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Reload {
    Idle,
    Settling { at: Duration, at_most: Duration },
    Loading { again: bool },
}

impl Core {
    pub(super) fn drop_ins_changed(&mut self, now: Now) {
        self.reload = match self.reload {
            Reload::Idle => Reload::Settling {
                at: now.mono.saturating_add(SETTLE),
                at_most: now.mono.saturating_add(SETTLE_AT_MOST),
            },
            Reload::Settling { at_most, .. } => Reload::Settling {
                at: now.mono.saturating_add(SETTLE).min(at_most),
                at_most,
            },
            Reload::Loading { .. } => Reload::Loading { again: true },
        };
    }

    /// A host, or a SIGHUP, asks for a reload: at once, or once the guest runs again.
    pub(super) fn reload_asked(
        &mut self,
        waiter: Option<WaiterId>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if !self.may_load() {
            actions.extend(waiter.map(|waiter| busy(waiter, "the guest is not running")));
            self.drop_ins_changed(now);
            return;
        }
        self.reload_waiters.extend(waiter);
        match &mut self.reload {
            Reload::Loading { again } => *again = true,
            Reload::Idle | Reload::Settling { .. } => self.load(actions),
        }
    }

    /// When the folders are due to be read.
    pub(super) fn reload_deadline(&self) -> Option<Duration> {
        match self.reload {
            Reload::Settling { at, .. } if self.may_load() => Some(at),
            _ => None,
        }
    }

    pub(super) fn reload_if_due(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.reload_deadline().is_some_and(|at| now.mono >= at) {
            self.load(actions);
        }
    }

    /// While the guest sleeps what is loaded stays as it is: it is what the debts are about. The
    /// first load is what a restarted agent learns its debts' commands from.
    fn may_load(&self) -> bool {
        self.lifecycle.phase() == Phase::Running || !self.lifecycle.is_started()
    }

    fn load(&mut self, actions: &mut Vec<Action>) {
        self.reload = Reload::Loading { again: false };
        self.loading_for.append(&mut self.reload_waiters);
        actions.push(Action::LoadDropIns);
    }

    /// Takes what the folders hold now. What is unchanged keeps its state, its run and its slots;
    /// what changed begins anew.
    pub(super) fn loaded(&mut self, loaded: Loaded, now: Now, actions: &mut Vec<Action>) {
        if !self.may_load() {
            // A sleep began in the meantime: read again once the guest runs.
            let waiters = self.loading_for.drain(..);
            for waiter in waiters.chain(self.reload_waiters.drain(..)) {
                actions.push(busy(waiter, "the guest is going to sleep"));
            }
            self.reload = Reload::Settling {
                at: now.mono,
                at_most: now.mono,
            };
            return;
        }
        self.has_loaded = true;
        let mut old: HashMap<(CheckKind, String), Check> = std::mem::take(&mut self.checks)
            .into_iter()
            .map(|check| ((check.kind(), check.name().to_owned()), check))
            .collect();
        let drop_ins = DropIns {
            integrations: loaded.integrations.len(),
            probes: loaded.probes.len(),
            errors: loaded.errors.clone(),
            errors_omitted: 0,
        };
        for spec in loaded.integrations {
            let key = (CheckKind::Integration, spec.name().to_owned());
            match old.remove(&key) {
                Some(check) if check.has_integration(&spec) => self.checks.push(check),
                changed => {
                    old.extend(changed.map(|check| (key, check)));
                    let id = CheckId(self.number());
                    let check = Check::integration(id, spec, now.mono, self.timeline.moment());
                    self.add(check, now);
                }
            }
        }
        for spec in loaded.probes {
            let key = (CheckKind::Probe, spec.name().to_owned());
            match old.remove(&key) {
                Some(check) if check.has_probe(&spec) => self.checks.push(check),
                changed => {
                    old.extend(changed.map(|check| (key, check)));
                    let id = CheckId(self.number());
                    self.add(Check::probe(id, spec), now);
                }
            }
        }
        for check in old.into_values() {
            self.drop_check(check, actions);
        }
        self.drop_in_errors = loaded.errors;
        self.boot.loaded(now);
        self.note_ready(now);
        let reloaded = Reloaded {
            integrations: drop_ins.integrations,
            probes: drop_ins.probes,
            errors: drop_ins.errors.clone(),
            errors_omitted: 0,
        };
        for waiter in self.loading_for.drain(..) {
            actions.push(answer(waiter, Answer::Reloaded(reloaded.clone())));
        }
        actions.push(Action::Publish(Change::DropIns { drop_ins }));
        if std::mem::replace(&mut self.reload, Reload::Idle) == (Reload::Loading { again: true }) {
            self.load(actions);
        }
        let participants = self.participants();
        let acts = self.lifecycle.start(&participants);
        self.apply(acts, now, actions);
        for (waiter, asked, at) in std::mem::take(&mut self.early_wakes) {
            self.wake(waiter, &asked, at, now, actions);
        }
    }

    /// The folders could not be read, which says nothing of what is in them: what was loaded stays.
    pub(super) fn not_loaded(&mut self, why: &str, now: Now, actions: &mut Vec<Action>) {
        let reason = format!("the drop-ins cannot be read now: {why}");
        for waiter in self.loading_for.drain(..) {
            actions.push(busy(waiter, &reason));
        }
        let at = now.mono.saturating_add(AGAIN);
        self.reload = Reload::Settling { at, at_most: at };
    }

    fn add(&mut self, check: Check, now: Now) {
        if let Some(interval) = check.interval() {
            self.schedule.add(check.id, interval, now.mono);
        }
        self.checks.push(check);
    }

    fn drop_check(&mut self, check: Check, actions: &mut Vec<Action>) {
        self.schedule.remove(check.id);
        actions.extend(check.running.map(Action::Kill));
        let kind = kind_name(check.kind());
        let message = format!(
            "{kind} `{}` was removed or changed by a reload",
            check.name()
        );
        for waiter in check.waiters.into_iter().chain(check.run_waiters) {
            let error = ErrorAnswer::new(ErrorCode::NotFound, message.clone());
            actions.push(answer(waiter, Answer::Error(error)));
        }
    }
}
