//! The one task that owns the view, the policy and what is under way.

use super::clones::Clones;
use super::demand::Demand;
use super::hand::{HalfDone, Hand, Task};
use super::inputs::{Input, Inputs, Query, Reply};
use super::process;
use crate::feed::watching::{self, Watches};
use crate::feed::{Fed, Unreadable, folders};
use crate::report::Failure;
use crate::ui::Ui;
use mvm_client::{Deadlines, Dialer};
use mvm_fleet::actions::Ended;
use mvm_fleet::body::{self, PlanBody};
use mvm_fleet::metrics::{Exposition, Format};
use mvm_fleet::policy::{Plan, UnderWay, fates};
use mvm_fleet::{
    ActionKind, ActionLog, Effect, Facts, Now, Outcome, Policy, RegistryEvent, RunState, View,
    decide,
};
use mvm_registry::Inventory;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How often the clocks are looked at where nothing else asks for that: a host that was suspended shows
/// what was true before no longer than this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often is decided at most, where no connection waits.
const DECIDE_EVERY: Duration = Duration::from_secs(1);

/// How often guests say that they are there to whoever looks at them once.
const ONCE_HEARTBEAT: Duration = Duration::from_millis(250);

/// How long a VM may be without a word on it until it counts as failed, whatever its watch says: that
/// ends each try by deadlines of its own, but thousands are dialled some at a time, and one whose turn
/// has not come has not failed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);

/// How many inputs are taken before deadlines are looked at.
const AT_ONCE: usize = 256;

/// What the owner works with.
#[derive(Debug)]
pub(in crate::commands::fleet) struct Settings {
    /// Whether each VM has its series.
    pub(in crate::commands::fleet) per_vm: bool,
    pub(in crate::commands::fleet) inventory: Inventory,
    pub(in crate::commands::fleet) dialer: Dialer,
    pub(in crate::commands::fleet) deadlines: Deadlines,
    /// How many VMs are dialled at once.
    pub(in crate::commands::fleet) parallel: usize,
    /// What tells the time.
    pub(in crate::commands::fleet) clock: fn() -> Now,
}

/// Owns all that changes.
pub(in crate::commands::fleet) struct Owner {
    view: View,
    policy: Arc<Policy>,
    facts: Facts,
    log: ActionLog,
    /// None where no policy was asked for: then nothing is done.
    hand: Option<Hand>,
    watches: Watches<Inputs>,
    demand: Demand,
    clones: Clones,
    inventory: Inventory,
    /// The folders in which there may be further VMs.
    unreadable: Vec<Unreadable>,
    per_vm: bool,
    clock: fn() -> Now,
    /// The view's revision at the last decision.
    decided: Option<u64>,
    decided_at: Option<Instant>,
    /// When time alone may have changed the plan.
    look_again: Option<Instant>,
    /// Something beside the view has changed on which decisions depend.
    is_stale: bool,
    /// A connection has begun to wait.
    is_urgent: bool,
    was_ready: bool,
}

impl Owner {
    pub(in crate::commands::fleet) fn new(
        settings: Settings,
        policy: Policy,
        inputs: Inputs,
    ) -> Self {
        let watching = watching::Settings {
            inventory: settings.inventory.clone(),
            dialer: settings.dialer,
            deadlines: settings.deadlines,
            inspect: settings.per_vm,
            at_once: settings.parallel,
            heartbeat: policy.heartbeat(),
        };
        let watches = Watches::new(watching, inputs);
        let clones = Clones::of(settings.inventory.home());
        Self {
            view: View::new(mvm_fleet::Settings {
                answer_deadline: ANSWER_DEADLINE,
                ..mvm_fleet::Settings::default()
            }),
            policy: Arc::new(policy),
            facts: Facts {
                failed_clones: clones.noted(),
                ..Facts::default()
            },
            log: ActionLog::default(),
            hand: None,
            watches,
            demand: Demand::default(),
            clones,
            inventory: settings.inventory,
            unreadable: Vec::new(),
            per_vm: settings.per_vm,
            clock: settings.clock,
            decided: None,
            decided_at: None,
            look_again: None,
            is_stale: true,
            is_urgent: false,
            was_ready: false,
        }
    }

    /// Gives it what acts, and has that bring to its end what one that was killed has left half done,
    /// before anything else is done to those VMs.
    pub(super) fn set_hand(&mut self, hand: Hand, half_done: Vec<HalfDone>) {
        for one in half_done {
            let Some(pool) = self.policy.pool(&one.pool).cloned() else {
                continue;
            };
            let under_way = UnderWay {
                kind: one.what.kind(),
                pool: one.pool.clone(),
                since: (self.clock)().boottime,
                is_urgent: true,
            };
            self.facts.under_way.insert(one.vm.to_string(), under_way);
            hand.mend(one, pool);
        }
        self.hand = Some(hand);
    }

    pub(in crate::commands::fleet) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Takes inputs until there are none.
    pub(in crate::commands::fleet) async fn run(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
        ui: &Ui,
    ) -> Result<(), Failure> {
        loop {
            let next = self.next_look();
            tokio::select! {
                input = inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    self.take(input, ui);
                    for _ in 0..AT_ONCE {
                        let Ok(input) = inputs.try_recv() else { break };
                        self.take(input, ui);
                    }
                }
                () = sleep_until(next) => {}
            }
            let now = (self.clock)();
            self.tick(&now);
            self.is_stale |= self.demand.follow(&self.view, &mut self.facts, &now);
            self.decide_if_due(ui, &now);
            self.tell_readiness();
        }
    }

    /// Takes inputs until the view is complete, and idle guests have told for how long they are idle.
    pub(in crate::commands::fleet) async fn run_once(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
        ui: &Ui,
    ) -> Result<(), Failure> {
        self.watches.set_heartbeat(ONCE_HEARTBEAT);
        let mut settled: Option<Instant> = None;
        loop {
            let until = settled.unwrap_or_else(|| self.next_look());
            tokio::select! {
                input = inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    self.take(input, ui);
                }
                () = sleep_until(until) => {}
            }
            self.tick(&(self.clock)());
            if !self.is_as_complete_as_can_be() {
                settled = None;
            } else if settled.is_some_and(|settled| settled <= Instant::now()) {
                return Ok(());
            } else if settled.is_none() {
                settled = Some(Instant::now() + 2 * ONCE_HEARTBEAT);
            }
        }
    }

    /// What is to be done now.
    pub(in crate::commands::fleet) fn plan(&self) -> PlanBody {
        PlanBody::of(&decide(
            &self.view,
            &self.policy,
            &self.facts,
            &(self.clock)(),
        ))
    }

    /// What `/v1/fleet` answers.
    pub(in crate::commands::fleet) fn fleet(&self) -> String {
        json(&body::fleet(&self.view, &self.policy, &self.log))
    }

    /// When there is something to do without an input.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let mut next = now + LOOK_EVERY;
        if let Some(deadline) = self.view.deadline() {
            next = next.min(now + deadline.saturating_sub((self.clock)().boottime));
        }
        if let Some(due) = self.decision_due() {
            next = next.min(due);
        }
        next
    }

    fn tick(&mut self, now: &Now) {
        let effects = self.view.tick(now);
        self.obey(effects);
    }

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.watches.effect(effect);
        }
    }

    fn take(&mut self, input: Input, ui: &Ui) {
        let now = (self.clock)();
        match input {
            Input::Fed(Fed::Registry(event)) => {
                let effects = self.view.registry(event, &now);
                self.obey(effects);
            }
            Input::Fed(Fed::Agent(ticket, heard)) => {
                let effects = self.view.agent(ticket, heard.event(), &now);
                self.obey(effects);
            }
            Input::Fed(Fed::Unreadable(unreadable)) => self.take_unreadable(unreadable, ui),
            Input::Ended(ended) => self.ended(ended, ui, &now),
            Input::Connection(pool, answer) => {
                self.demand.add(pool, answer);
                self.is_urgent = true;
            }
            Input::Policy(policy) => {
                self.watches.set_heartbeat(policy.heartbeat());
                self.policy = Arc::new(policy);
                self.is_stale = true;
            }
            Input::Query(query, answer) => {
                self.tick(&now);
                let reply = self.reply(&query, &now);
                // Whoever has gone meanwhile needs none.
                let _ = answer.send(reply);
            }
        }
    }

    /// Looks at a VM's folder now.
    fn look(&mut self, name: &str, now: &Now) {
        let event = match folders::look(self.inventory.home(), name) {
            Some(registered) => RegistryEvent::Changed(registered),
            // One that `discover` found is looked for by those who follow the folders.
            None if self.is_stranger(name) => return,
            None => RegistryEvent::Gone {
                name: name.to_owned(),
            },
        };
        let effects = self.view.registry(event, now);
        self.obey(effects);
    }

    fn is_stranger(&self, name: &str) -> bool {
        let vm = self.view.vm(name);
        vm.is_some_and(|vm| vm.run_state() == RunState::NotOurs)
    }

    fn ended(&mut self, ended: Ended, ui: &Ui, now: &Now) {
        if (ended.action, ended.outcome) == (ActionKind::Clone, Outcome::Failed) {
            // One that has come to something before is the end of those that failed before that.
            self.judge_clones(ui, now);
            self.clones.failed(&ended, &mut self.facts, &self.policy);
        }
        tell(&ended, ui);
        // What became of it is to be known before it may be acted on again.
        self.look(&ended.vm, now);
        self.facts.under_way.remove(&*ended.vm);
        let is_up = matches!(
            ended.action,
            ActionKind::Wake | ActionKind::Resume | ActionKind::Clone
        );
        if is_up && ended.outcome == Outcome::Ok {
            self.demand.came_up(&ended.pool, &ended.vm);
        }
        self.log.ended(ended);
        self.is_stale = true;
    }

    /// Takes down what has become of clones after they were made.
    fn judge_clones(&mut self, ui: &Ui, now: &Now) {
        let fates = fates(&self.view, &self.policy, &self.facts, now);
        self.clones.proved(&fates.proved, &mut self.facts);
        for crashed in self.clones.take_down(fates.crashed, &self.view, now) {
            self.clones.failed(&crashed, &mut self.facts, &self.policy);
            tell(&crashed, ui);
            self.look(&crashed.vm, now);
            self.log.ended(crashed);
        }
    }

    /// When is to be decided next; none before something changes.
    fn decision_due(&self) -> Option<Instant> {
        self.hand.as_ref()?;
        let now = Instant::now();
        if self.is_urgent {
            return Some(now);
        }
        let has_changed = self.is_stale || self.decided != Some(self.view.revision());
        let changed = has_changed.then_some(now);
        let due = [changed, self.look_again].into_iter().flatten().min()?;
        Some(
            self.decided_at
                .map_or(due, |last| due.max(last + DECIDE_EVERY)),
        )
    }

    fn decide_if_due(&mut self, ui: &Ui, now: &Now) {
        if self.decision_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.judge_clones(ui, now);
        let plan = decide(&self.view, &self.policy, &self.facts, now);
        let at = Instant::now();
        self.decided = Some(self.view.revision());
        self.decided_at = Some(at);
        self.look_again = plan.look_again_after.map(|after| at + after);
        self.is_stale = false;
        self.is_urgent = false;
        self.begin(plan, now);
    }

    fn begin(&mut self, plan: Plan, now: &Now) {
        let Some(hand) = &self.hand else { return };
        for action in plan.actions {
            if !Hand::has_room(&self.facts.under_way, &action) {
                // The next end asks for a decision.
                continue;
            }
            let Some(pool) = self.policy.pool(&action.pool) else {
                continue;
            };
            let under_way = action.under_way(now.boottime);
            self.facts
                .under_way
                .insert(action.vm.to_string(), under_way);
            let pool = pool.clone();
            hand.begin(Task { action, pool });
        }
    }

    /// Tells each folder that cannot be looked at once: there may be VMs in it, so that numbers stay 503.
    fn take_unreadable(&mut self, unreadable: Vec<Unreadable>, ui: &Ui) {
        let before = std::mem::replace(&mut self.unreadable, unreadable);
        if self.unreadable == before {
            return;
        }
        for one in self.unreadable.iter().filter(|it| !before.contains(it)) {
            ui.warning(&one.problem);
            if let Some(hint) = one.hint {
                ui.hint(hint);
            }
        }
        if self.unreadable.is_empty() {
            ui.note("all folders can be looked at");
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Status(&self.amiss())]);
    }

    /// Which folders cannot be looked at.
    fn amiss(&self) -> String {
        let problems = self.unreadable.iter().map(|one| one.problem.as_str());
        problems.collect::<Vec<_>>().join("; ")
    }

    /// Whether waiting is of no more use: where a folder cannot be looked at, somebody has to mend that.
    fn is_as_complete_as_can_be(&self) -> bool {
        self.view.is_complete() || !self.unreadable.is_empty() && self.view.have_all_answered()
    }

    /// Tells systemd when the view is as complete as it can be for the first time. A start that waited for
    /// a folder would be ended as one that hangs, and with it all that it can do without that folder.
    fn tell_readiness(&mut self) {
        if !self.was_ready && self.is_as_complete_as_can_be() {
            self.was_ready = true;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
    }

    fn reply(&self, query: &Query, now: &Now) -> Reply {
        match query {
            Query::Metrics(format) => Reply::Pieces(self.metrics(*format, now)),
            Query::IsComplete if self.view.is_complete() => Reply::Text("complete\n".into()),
            Query::IsComplete if !self.unreadable.is_empty() => Reply::Incomplete(format!(
                "there may be more VMs than are known: {}\n",
                self.amiss()
            )),
            Query::IsComplete => Reply::Incomplete(
                "not every VM has answered or failed yet: ask again in some seconds\n".into(),
            ),
            Query::Fleet => whole(self.view.is_complete(), self.fleet()),
            Query::Pool(name) => match body::pool(&self.view, &self.policy, name) {
                Some(body) => whole(body.numbers.complete, json(&body)),
                None => Reply::NoSuchPool {
                    pools: body::pool_names(&self.view, &self.policy)
                        .into_iter()
                        .map(str::to_owned)
                        .collect(),
                },
            },
            Query::Plan => whole(self.view.is_complete(), json(&self.plan())),
        }
    }

    fn metrics(&self, format: Format, now: &Now) -> Vec<String> {
        let process = process::figures();
        let exposition = Exposition {
            view: &self.view,
            policy: &self.policy,
            facts: &self.facts,
            log: &self.log,
            now,
            process: process.as_ref(),
            per_vm: self.per_vm,
        };
        exposition.render(format)
    }
}

/// Tells what came of an action.
fn tell(ended: &Ended, ui: &Ui) {
    let problem = ended.problem.as_deref();
    let problem = problem.map(|problem| format!(": {problem}"));
    ui.note(&format!(
        "{} {} ({}): {}{}",
        ended.action,
        ended.vm,
        ended.reason,
        ended.outcome.as_str(),
        problem.unwrap_or_default()
    ));
}

fn whole(is_complete: bool, text: String) -> Reply {
    if is_complete {
        Reply::Text(text)
    } else {
        Reply::Incomplete(text)
    }
}

/// What has strings and numbers alone: JSON has a form for all of them.
fn json(body: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string(body).unwrap_or_default();
    text.push('\n');
    text
}
