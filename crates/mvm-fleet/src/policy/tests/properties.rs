//! What holds for any view, policy and time.

use super::*;
use crate::state::{Bounds, State};
use mvm_protocol::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;

/// A VM, and what its guest says.
#[derive(Debug, Clone)]
struct Guest {
    registered: Registered,
    says: Says,
}

#[derive(Debug, Clone, Copy)]
enum Says {
    /// It was not reported on yet.
    Nothing,
    Lost,
    Busy,
    Starting,
    IdleFor(i64),
}

fn policy() -> impl Strategy<Value = PoolPolicy> {
    let period = |most| prop::option::of((1..most).prop_map(secs));
    let bounds = (0..4_u32, 1..8_u32, 0..4_u32);
    (
        period(100_u64),
        period(1000),
        period(4000),
        period(4000),
        bounds,
        any::<bool>(),
    )
        .prop_map(
            |(pause, sleep, remove, lifetime, (min, max, spare), has_golden)| PoolPolicy {
                // As a file that is taken has it.
                idle_pause_after: pause.filter(|pause| sleep.is_none_or(|sleep| *pause < sleep)),
                idle_sleep_after: sleep,
                asleep_remove_after: remove,
                max_lifetime: lifetime,
                bounds: Bounds {
                    min: min.min(max),
                    max,
                    spare: spare.min(max),
                },
                golden: has_golden.then(|| "/golden".into()),
                payload: None,
                wake: Vec::new(),
            },
        )
}

fn run_state() -> impl Strategy<Value = RunState> {
    prop_oneof![
        6 => Just(RunState::Running),
        1 => Just(RunState::Starting),
        2 => Just(RunState::Paused { by_fleet: true }),
        1 => Just(RunState::Paused { by_fleet: false }),
        3 => Just(RunState::Asleep),
        1 => Just(RunState::Stopped),
        1 => Just(RunState::Ended),
        1 => Just(RunState::StartBrokenOff),
        1 => Just(RunState::NotOurs),
        1 => Just(RunState::Unreadable),
    ]
}

fn says(may_be_pending: bool) -> impl Strategy<Value = Says> {
    prop_oneof![
        u32::from(may_be_pending) => Just(Says::Nothing),
        2 => Just(Says::Lost),
        3 => Just(Says::Busy),
        1 => Just(Says::Starting),
        6 => (0..5000_i64).prop_map(Says::IdleFor),
    ]
}

fn action() -> impl Strategy<Value = ActionKind> {
    prop::sample::select(ActionKind::ALL.to_vec())
}

fn registered() -> impl Strategy<Value = Registered> {
    let seldom = |most: i64| prop::option::weighted(0.2, -most..most);
    let failed = prop::option::weighted(0.2, (action(), 0..700_i64, 1..9_u32));
    (
        run_state(),
        prop::option::weighted(0.9, 0..5000_i64),
        prop::option::weighted(0.9, 0..9000_i64),
        (prop::bool::weighted(0.1), any::<bool>()),
        seldom(300),
        seldom(300),
        failed,
    )
        .prop_map(
            |(state, since, age, (pinned, made_by_fleet), touched, kept, failed)| Registered {
                since: since.map(|since| at(-since)),
                started_at: age.map(|age| at(-age)),
                made_by_fleet,
                pinned,
                touched_at: touched.map(at),
                keep_until: kept.map(at),
                failed: failed.map(|(action, ago, times)| FailedAction {
                    action,
                    at: at(-ago),
                    times,
                }),
                ..Registered::new("", state)
            },
        )
}

fn guests(may_be_pending: bool) -> impl Strategy<Value = Vec<Guest>> {
    let guest = (registered(), says(may_be_pending));
    let guest = guest.prop_map(|(registered, says)| Guest { registered, says });
    prop::collection::vec(guest, 0..12)
}

fn facts() -> impl Strategy<Value = Facts> {
    let under_way = prop::collection::btree_map(1..20_u8, action(), 0..5);
    (under_way, prop_oneof![Just(0_u32), Just(1), Just(50)]).prop_map(|(under_way, waiting)| {
        Facts {
            under_way: under_way
                .into_iter()
                .map(|(vm, kind)| {
                    let pool = "web".to_owned();
                    let since = secs(86_400 - u64::from(vm));
                    (
                        format!("web-{vm}"),
                        UnderWay {
                            kind,
                            pool,
                            since,
                            is_urgent: false,
                        },
                    )
                })
                .collect(),
            waiting: [("web".to_owned(), waiting)].into(),
            ..Facts::default()
        }
    })
}

fn script(guests: &[Guest]) -> Script {
    let name = |index: usize| format!("web-{}", index + 1);
    let vms = guests.iter().enumerate().map(|(index, guest)| Registered {
        name: name(index),
        ..guest.registered.clone()
    });
    let mut script = Script::new(vms.collect());
    for (index, guest) in guests.iter().enumerate() {
        let name = name(index);
        if !script.tickets.contains_key(&name) {
            continue;
        }
        match guest.says {
            Says::Nothing => {}
            Says::Lost => script.agent(&name, AgentEvent::Lost),
            Says::Busy => script.busy(&name),
            Says::IdleFor(secs) => script.idle(&name, secs),
            Says::Starting => {
                let mut status = crate::script::status(crate::script::worker(false, at(-9)));
                status.health = mvm_protocol::status::Health::Starting.into();
                script.agent(&name, AgentEvent::Status(&status));
            }
        }
    }
    script
}

fn brings_up(kind: ActionKind) -> bool {
    matches!(
        kind,
        ActionKind::Wake | ActionKind::Resume | ActionKind::Clone
    )
}

fn puts_down(kind: ActionKind) -> bool {
    matches!(
        kind,
        ActionKind::Pause | ActionKind::Sleep | ActionKind::Stop
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_plan_keeps_the_rules(guests in guests(true), pool in policy(), facts in facts()) {
        let script = script(&guests);
        let (view, now) = (&script.view, &script.now);
        let policy = Policy::with("web", pool.clone());
        let plan = decide(view, &policy, &facts, now);
        prop_assert_eq!(&plan, &decide(view, &policy, &facts, now));
        if !view.is_complete() {
            prop_assert_eq!(plan.actions, []);
            return Ok(());
        }
        let vms: BTreeSet<&str> = plan.actions.iter().map(|action| &*action.vm).collect();
        prop_assert_eq!(vms.len(), plan.actions.len(), "one action a VM");
        prop_assert!(plan.actions.is_sorted_by_key(|action| action.kind));

        let (mut room, mut certain, mut down, mut up) = (0_u32, 0_u32, 0_u32, 0_u32);
        for (name, under_way) in &facts.under_way {
            let is_new = view.vm(name).is_none();
            let takes_room = match under_way.kind {
                ActionKind::Remove => false,
                ActionKind::Clone => true,
                _ => !is_new,
            };
            room += u32::from(takes_room);
        }
        for vm in view.vms().filter(|vm| !facts.under_way.contains_key(vm.name())) {
            room += u32::from(!matches!(vm.state(), State::Asleep | State::Stopped));
            certain += u32::from(matches!(vm.state(), State::Busy | State::Idle));
        }
        for action in &plan.actions {
            prop_assert!(!action.reason.to_string().is_empty());
            prop_assert!(!facts.under_way.contains_key(&*action.vm));
            if action.kind == ActionKind::Clone {
                prop_assert!(view.vm(&action.vm).is_none() && pool.golden.is_some());
                up += 1;
                continue;
            }
            let vm = view.vm(&action.vm).unwrap();
            prop_assert!(!vm.is_pinned());
            prop_assert!(vm.state() != State::Unknown);
            prop_assert!(vm.run_state() != RunState::NotOurs);
            let is_forced = matches!(action.reason, Reason::TwiceLifetime { .. });
            prop_assert!(!puts_down(action.kind) || is_forced || vm.kept_until(now).is_none());
            up += u32::from(action.kind == ActionKind::Wake);
            match (action.kind, vm.state()) {
                (ActionKind::Wake | ActionKind::Remove, State::Asleep)
                | (ActionKind::Resume | ActionKind::Sleep | ActionKind::Stop, State::Paused) => {}
                (ActionKind::Remove, State::Stopped) => prop_assert!(vm.is_made_by_fleet()),
                (ActionKind::Pause, State::Idle) => {
                    prop_assert!(view.idle_for(vm, now) >= pool.idle_pause_after);
                    down += 1;
                }
                (ActionKind::Sleep, State::Idle) => {
                    prop_assert!(view.idle_for(vm, now) >= pool.idle_sleep_after);
                    down += 1;
                }
                (ActionKind::Stop, State::Idle) if !is_forced => down += 1,
                (ActionKind::Stop, State::Busy | State::Starting | State::Idle) => {
                    prop_assert!(vm.age(now) >= pool.max_lifetime.unwrap() * 2);
                    certain -= u32::from(vm.state() != State::Starting);
                }
                (kind, state) => prop_assert!(false, "{kind} of one that is {state:?}"),
            }
        }
        prop_assert!(down == 0 || certain - down >= pool.bounds.min, "never under min");
        prop_assert!(up == 0 || room + up <= pool.bounds.max, "never over max");
        let asks = plan.actions.iter().filter(|action| brings_up(action.kind)).count();
        prop_assert!(asks <= 4 + 4, "at most min and spare, or one for those who wait");
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn there_is_no_flapping(pool in policy(), steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(pool);
        for step in steps {
            world.take(step);
            world.act()?;
        }
    }
}

/// One thing that comes about in a world.
#[derive(Debug, Clone, Copy)]
enum Step {
    Pass(u64),
    /// One of those that run begins to work.
    Work(usize),
    /// One of those that work is done.
    Rest(usize),
    Waiting(u32),
    Lost(usize),
    Ended(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..600_u64).prop_map(Step::Pass),
        3 => (0..9_usize).prop_map(Step::Work),
        4 => (0..9_usize).prop_map(Step::Rest),
        1 => (0..2_u32).prop_map(Step::Waiting),
        1 => (0..9_usize).prop_map(Step::Lost),
        1 => (0..9_usize).prop_map(Step::Ended),
    ]
}

/// A fleet in which each action is done at once and succeeds.
struct World {
    script: Script,
    policy: Policy,
    pool: PoolPolicy,
    facts: Facts,
    /// When each VM was brought up or put down last, and by what.
    last: BTreeMap<String, (ActionKind, Timestamp)>,
}

impl World {
    fn new(pool: PoolPolicy) -> Self {
        let mut vms: Vec<_> = (1..4)
            .map(|number| up(&format!("web-{number}"), -10))
            .collect();
        vms.push(asleep("web-4", -10_000));
        let mut script = Script::new(vms);
        for name in ["web-1", "web-2", "web-3"] {
            script.idle(name, 10);
        }
        Self {
            script,
            policy: Policy::with("web", pool.clone()),
            pool,
            facts: Facts::default(),
            last: BTreeMap::new(),
        }
    }

    fn nth(&self, index: usize) -> Option<String> {
        self.script.tickets.keys().nth(index).cloned()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Pass(secs) => self.script.beat(secs),
            Step::Work(index) => {
                if let Some(name) = self.nth(index) {
                    self.script.busy(&name);
                }
            }
            Step::Rest(index) => {
                if let Some(name) = self.nth(index) {
                    self.script.idle(&name, 0);
                }
            }
            Step::Waiting(waiting) => self.facts.waiting = [("web".to_owned(), waiting)].into(),
            Step::Lost(index) => {
                if let Some(name) = self.nth(index) {
                    self.script.agent(&name, AgentEvent::Lost);
                }
            }
            Step::Ended(index) => {
                if let Some(name) = self.nth(index) {
                    self.become_state(&name, RunState::Ended);
                }
            }
        }
    }

    fn become_state(&mut self, name: &str, run_state: RunState) {
        let known = self.script.view.vm(name);
        let registered = Registered {
            since: Some(self.script.now.wall),
            started_at: known.map_or(Some(self.script.now.wall), crate::view::Vm::started_at),
            made_by_fleet: known.is_none_or(crate::view::Vm::is_made_by_fleet),
            ..Registered::new(name, run_state)
        };
        self.script.changed(registered);
        if run_state == RunState::Running {
            self.script.idle(name, 0);
        }
    }

    fn act(&mut self) -> Result<(), TestCaseError> {
        let plan = decide(
            &self.script.view,
            &self.policy,
            &self.facts,
            &self.script.now,
        );
        for action in plan.actions {
            let name = &*action.vm;
            let now = self.script.now.wall;
            if let Some((before, when)) = self.last.get(name).copied()
                && (brings_up(before), puts_down(before))
                    == (puts_down(action.kind), brings_up(action.kind))
            {
                let gap = crate::now::elapsed(when, now);
                let is_asked_for = matches!(
                    action.reason,
                    Reason::Demand { .. } | Reason::BelowMin { .. }
                );
                let periods = [self.pool.idle_pause_after, self.pool.idle_sleep_after];
                let period = match (before, action.kind) {
                    (ActionKind::Pause, _) | (_, ActionKind::Pause) => self.pool.idle_pause_after,
                    (ActionKind::Sleep, _) | (_, ActionKind::Sleep) => self.pool.idle_sleep_after,
                    _ => periods.into_iter().flatten().min().or(Some(secs(60))),
                };
                let is_forced = matches!(action.reason, Reason::TwiceLifetime { .. });
                prop_assert!(
                    is_asked_for || is_forced || gap >= period.unwrap_or(Duration::ZERO),
                    "{name}: {before} and {} {gap:?} apart: {}",
                    action.kind,
                    action.reason
                );
            }
            match action.kind {
                ActionKind::Wake | ActionKind::Resume | ActionKind::Clone => {
                    self.become_state(name, RunState::Running);
                }
                ActionKind::Pause => self.become_state(name, RunState::Paused { by_fleet: true }),
                ActionKind::Sleep => self.become_state(name, RunState::Asleep),
                ActionKind::Stop => self.become_state(name, RunState::Stopped),
                ActionKind::Remove => {
                    let name = name.to_owned();
                    self.script.registry(crate::RegistryEvent::Gone { name });
                }
            }
            // A later one of that name is another VM.
            self.last.remove(name);
            if action.kind != ActionKind::Remove {
                self.last.insert(name.to_owned(), (action.kind, now));
            }
        }
        Ok(())
    }
}
