use super::*;
use crate::script::{Script, at, down, integration, secs, status, up, worker};
use mvm_protocol::Lenient;
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Change, Event};
use mvm_protocol::lenient::Word;
use mvm_protocol::status::{Health, Lifecycle, Worker, WorkerState};
use proptest::prelude::*;

#[test]
fn a_vm_is_unknown_until_it_answers_and_the_view_says_so() {
    let mut script = Script::running(&["web-1", "web-2", "web-3"]);
    assert_eq!(
        script.told(),
        "web-1 unknown, web-2 unknown, web-3 unknown ?"
    );
    script.idle("web-1", 40);
    script.busy("web-2");
    assert_eq!(script.told(), "web-1 idle 40, web-2 busy, web-3 unknown ?");
    script.agent("web-3", AgentEvent::Lost);
    assert_eq!(script.told(), "web-1 idle 40, web-2 busy, web-3 unknown");
    // It answers later after all.
    script.busy("web-3");
    assert_eq!(script.told(), "web-1 idle 40, web-2 busy, web-3 busy");
}

#[test]
fn a_view_that_has_listed_nothing_is_not_complete() {
    let view = View::new(Settings::default());
    assert!(!view.is_complete());
    assert!(!view.is_pool_complete("web"));
    assert!(Script::new(vec![]).view.is_complete());
}

#[test]
fn what_does_not_run_is_what_its_folder_says() {
    let states = [
        ("a", RunState::Asleep),
        ("b", RunState::Paused { by_fleet: false }),
        ("c", RunState::Stopped),
        ("d", RunState::Ended),
        ("e", RunState::StartBrokenOff),
        ("f", RunState::Starting),
        ("g", RunState::Unreadable),
    ];
    let vms = states.map(|(name, state)| down(name, state, -60)).into();
    let mut script = Script::new(vms);
    let rest = "a asleep, b paused, c stopped, d stopped, e stopped";
    assert_eq!(script.told(), format!("{rest}, f starting, g unknown"));
    assert!(script.tickets.is_empty(), "none of them is dialled");
    // No start takes that long.
    script.pass(300);
    assert_eq!(script.told(), format!("{rest}, f unknown, g unknown"));
}

#[test]
fn a_guest_that_is_silent_is_unknown() {
    let mut script = Script::running(&["web-1", "web-2"]);
    script.idle("web-1", 10);
    script.idle("web-2", 10);
    script.beat(30);
    assert_eq!(script.told(), "web-1 idle 40, web-2 idle 40");
    assert_eq!(script.view.deadline(), Some(secs(86_400 + 45)));
    script.pass(20);
    script.heartbeat("web-1");
    script.pass(24);
    assert_eq!(script.told(), "web-1 idle 60, web-2 idle 40");
    script.pass(1);
    assert_eq!(script.told(), "web-1 idle 60, web-2 unknown");
    assert_eq!(script.view.age(&script.now), secs(25));
    // An event without a status does not say what it is.
    script.heartbeat("web-2");
    assert_eq!(script.told(), "web-1 idle 60, web-2 unknown");
    script.idle("web-2", 85);
    assert_eq!(script.told(), "web-1 idle 60, web-2 idle 85");
}

#[test]
fn a_guest_of_which_nothing_is_ever_told_has_failed() {
    let mut script = Script::running(&["web-1"]);
    script.pass(14);
    assert_eq!(script.told(), "web-1 unknown ?");
    script.pass(1);
    assert_eq!(script.told(), "web-1 unknown");
    assert_eq!(script.view.deadline(), None);
}

#[test]
fn a_vm_that_comes_makes_the_view_incomplete_until_it_has_answered() {
    let mut script = Script::running(&["web-1"]);
    script.busy("web-1");
    script.changed(up("db-1", 0));
    assert_eq!(script.told(), "db-1 unknown, web-1 busy ?");
    assert!(script.view.is_pool_complete("web"));
    assert!(!script.view.is_pool_complete("db"));
    script.idle("db-1", 0);
    assert_eq!(script.told(), "db-1 idle 0, web-1 busy");
    script.registry(RegistryEvent::Gone {
        name: "db-1".into(),
    });
    assert_eq!(script.told(), "web-1 busy");
}

#[test]
fn what_an_earlier_run_said_does_not_count() {
    let mut script = Script::running(&["web-1"]);
    let old = script.tickets["web-1"];
    script.idle("web-1", 1000);
    script.changed(down("web-1", RunState::Asleep, 10));
    assert_eq!(script.told(), "web-1 asleep");
    script.changed(up("web-1", 20));
    assert_eq!(script.told(), "web-1 unknown ?");
    let status = status(worker(false, at(-1000)));
    script
        .view
        .agent(old, AgentEvent::Status(&status), &script.now);
    script.view.agent(old, AgentEvent::Lost, &script.now);
    assert_eq!(script.told(), "web-1 unknown ?");
    // Two changes of which only the last was seen are told apart by when it came to run.
    script.busy("web-1");
    script.changed(up("web-1", 30));
    assert_eq!(script.told(), "web-1 unknown ?");
}

#[test]
fn a_folder_that_cannot_be_read_takes_nobody_away() {
    let mut script = Script::running(&["web-1", "web-2"]);
    script.busy("web-1");
    script.busy("web-2");
    let vms = vec![up("web-1", -3600)];
    let listed = |whole| RegistryEvent::Listed {
        vms: vms.clone(),
        whole,
    };
    script.registry(listed(false));
    assert_eq!(script.told(), "web-1 busy, web-2 busy ?");
    assert!(!script.view.is_pool_complete("web"));
    script.registry(listed(true));
    assert_eq!(script.told(), "web-1 busy");
}

#[test]
fn only_a_guest_that_plainly_says_so_is_idle() {
    let mut script = Script::running(&["web-1"]);
    let idle = || status(worker(false, at(-100)));
    let mut told = |change: &dyn Fn(&mut mvm_protocol::status::Status)| {
        let mut status = idle();
        change(&mut status);
        script.agent("web-1", AgentEvent::Status(&status));
        script.told()
    };
    let other = || Word::new("resting");
    assert_eq!(told(&|_| {}), "web-1 idle 0");
    assert_eq!(
        told(&|status| status.worker.state = Lenient::Other(other())),
        "web-1 busy"
    );
    assert_eq!(
        told(&|status| status.lifecycle = Lenient::Other(other())),
        "web-1 busy"
    );
    assert_eq!(
        told(&|status| status.lifecycle = Lifecycle::Preparing.into()),
        "web-1 busy"
    );
    assert_eq!(
        told(&|status| status.lifecycle = Lifecycle::Ready.into()),
        "web-1 busy"
    );
    assert_eq!(
        told(&|status| status.lifecycle = Lifecycle::Waking.into()),
        "web-1 starting"
    );
    assert_eq!(
        told(&|status| status.health = Health::Starting.into()),
        "web-1 starting"
    );
    assert_eq!(
        told(&|status| status.health = Health::Unhealthy.into()),
        "web-1 idle 0"
    );
    let starting_and_busy = |status: &mut mvm_protocol::status::Status| {
        status.health = Health::Starting.into();
        status.worker.state = WorkerState::Busy.into();
    };
    assert_eq!(told(&starting_and_busy), "web-1 busy");
}

#[test]
fn a_guest_that_is_let_go_is_busy_until_it_is_unknown() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 100);
    script.agent("web-1", AgentEvent::LetGo);
    assert_eq!(script.told(), "web-1 busy");
    script.pass(45);
    assert_eq!(script.told(), "web-1 unknown");
}

#[test]
fn verdicts_follow_the_integrations() {
    let mut script = Script::running(&["web-1"]);
    let mut first = status(worker(false, at(-100)));
    first.integrations = vec![integration("a", Health::Starting)];
    first.health = Health::Starting.into();
    script.agent("web-1", AgentEvent::Status(&first));
    assert_eq!(script.told(), "web-1 starting");
    let integration = Box::new(integration("a", Health::Healthy));
    script.event("web-1", Change::Integration { integration });
    assert_eq!(script.told(), "web-1 idle 100");
}

#[test]
fn rejected_drop_ins_are_asked_for() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 0);
    let drop_ins = mvm_protocol::status::DropIns {
        integrations: 1,
        probes: 0,
        errors: vec![],
        errors_omitted: 0,
    };
    let event = Event {
        at: at(0),
        change: Change::DropIns { drop_ins },
    };
    let ticket = script.tickets["web-1"];
    let effects = script
        .view
        .agent(ticket, AgentEvent::Event(&event), &script.now);
    assert_eq!(effects, [Effect::Ask { ticket }]);
}

#[test]
fn labels_make_pools_and_a_vm_may_change_its_own() {
    let labelled = |pool: &str| Registered {
        pool: Some(pool.into()),
        ..up("web-1", -60)
    };
    let mut script = Script::new(vec![labelled("blue"), up("web-2", -60)]);
    script.busy("web-1");
    let pools = |script: &Script| {
        let pools = script
            .view
            .pools()
            .map(|(name, counts)| (name.to_owned(), counts.vms()));
        pools.collect::<Vec<_>>()
    };
    assert_eq!(pools(&script), [("blue".into(), 1), ("web".into(), 1)]);
    script.changed(labelled("green"));
    assert_eq!(pools(&script), [("green".into(), 1), ("web".into(), 1)]);
    assert_eq!(script.view.counts("green").busy, 1);
    script.registry(RegistryEvent::Listed {
        vms: vec![],
        whole: true,
    });
    assert_eq!(pools(&script), []);
    assert_eq!(script.view.deadline(), None);
}

/// One thing that can come about.
#[derive(Debug, Clone)]
enum Step {
    Change(u8, RunState, i64),
    Gone(u8),
    Listed(Vec<u8>, bool),
    Idle(u8, i64),
    Busy(u8),
    Beat(u8),
    Lost(u8),
    LetGo(u8),
    Pass(u64),
    Suspend(u64),
    SetClock(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let vm = || 0..6_u8;
    let run_state = prop::sample::select(vec![
        RunState::Starting,
        RunState::Running,
        RunState::Paused { by_fleet: true },
        RunState::Asleep,
        RunState::Stopped,
        RunState::NotOurs,
        RunState::Unreadable,
    ]);
    prop_oneof![
        (vm(), run_state, -100..100_i64)
            .prop_map(|(vm, state, since)| Step::Change(vm, state, since)),
        vm().prop_map(Step::Gone),
        (prop::collection::vec(vm(), 0..6), any::<bool>())
            .prop_map(|(vms, whole)| Step::Listed(vms, whole)),
        (vm(), -10..10_000_i64).prop_map(|(vm, since)| Step::Idle(vm, since)),
        vm().prop_map(Step::Busy),
        vm().prop_map(Step::Beat),
        vm().prop_map(Step::Lost),
        vm().prop_map(Step::LetGo),
        (0..400_u64).prop_map(Step::Pass),
        (0..4000_u64).prop_map(Step::Suspend),
        (-4000..4000_i64).prop_map(Step::SetClock),
    ]
}

impl Script {
    fn take(&mut self, step: Step) {
        let name = |vm: u8| format!("web-{vm}");
        let known = |script: &Self, vm: u8| script.tickets.contains_key(&name(vm));
        match step {
            Step::Change(vm, state, since) => self.changed(down(&name(vm), state, since)),
            Step::Gone(vm) => self.registry(RegistryEvent::Gone { name: name(vm) }),
            Step::Listed(vms, whole) => {
                let vms = vms.into_iter().map(|vm| up(&name(vm), 0)).collect();
                self.registry(RegistryEvent::Listed { vms, whole });
            }
            Step::Idle(vm, since) if known(self, vm) => self.idle_once(&name(vm), since),
            Step::Busy(vm) if known(self, vm) => self.busy(&name(vm)),
            Step::Beat(vm) if known(self, vm) => self.heartbeat(&name(vm)),
            Step::Lost(vm) if known(self, vm) => self.agent(&name(vm), AgentEvent::Lost),
            Step::LetGo(vm) if known(self, vm) => self.agent(&name(vm), AgentEvent::LetGo),
            Step::Pass(secs) => self.pass(secs),
            Step::Suspend(secs) => self.suspend(secs),
            Step::SetClock(secs) => self.now.wall.0 += secs * 1000,
            Step::Idle(..) | Step::Busy(_) | Step::Beat(_) | Step::Lost(_) | Step::LetGo(_) => {}
        }
    }

    /// The status alone: what follows may be void.
    fn idle_once(&mut self, vm: &str, since: i64) {
        let since = Timestamp(self.guest_time().0 - since * 1000);
        self.agent(vm, AgentEvent::Status(&status(worker(false, since))));
    }
}

proptest! {
    #[test]
    fn counts_are_those_of_the_vms_whatever_comes_about(steps in prop::collection::vec(step(), 0..60)) {
        let mut script = Script::new(vec![]);
        for step in steps {
            script.take(step);
            let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
            let mut pending = 0;
            for vm in script.view.vms() {
                *counts.entry(vm.pool().to_owned()).or_default().of_mut(vm.state()) += 1;
                pending += u32::from(vm.is_pending);
                // Idle is only who is watched, and has said so.
                if vm.state() == State::Idle {
                    prop_assert!(vm.ticket.is_some());
                } else {
                    prop_assert_eq!(script.view.idle_for(vm, &script.now), None);
                }
                prop_assert_eq!(vm.ticket.is_some(), vm.run_state.is_watched());
                prop_assert_eq!(vm.counted, vm.assess());
            }
            let told = script.view.pools().map(|(name, counts)| (name.to_owned(), *counts));
            prop_assert_eq!(told.collect::<BTreeMap<_, _>>(), counts);
            prop_assert_eq!(script.view.pending, pending);
            prop_assert_eq!(script.view.vms().count(), script.view.len());
            let deadlines = script.view.slots.iter().flatten().filter(|vm| vm.deadline.is_some());
            prop_assert_eq!(deadlines.count(), script.view.deadlines.len());
        }
        // After a tick nothing is idle that was not heard within the deadline.
        script.pass(0);
        for vm in script.view.vms().filter(|vm| vm.state() == State::Idle) {
            let seen = vm.observed.as_ref().unwrap().seen;
            prop_assert!(script.now.boottime.saturating_sub(seen) < secs(45));
        }
        // Whatever came about, the view gets complete once all folders could be looked at.
        script.registry(RegistryEvent::Listed { vms: vec![up("web-9", 0)], whole: true });
        script.pass(15);
        prop_assert!(script.view.is_complete());
        script.registry(RegistryEvent::Listed { vms: vec![], whole: true });
        prop_assert!(script.view.deadlines.is_empty() && script.view.pools.is_empty());
    }
}

#[test]
fn an_idle_guest_that_is_held_is_busy() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 600);
    let since = Timestamp(script.guest_time().0 - 600_000);
    let held = Worker {
        held_by: vec![mvm_protocol::status::BusySignal::Session.into()],
        ..worker(false, since)
    };
    script.event("web-1", Change::Worker { worker: held });
    assert_eq!(script.told(), "web-1 busy");
    script.pass(10);
    // Its last_busy_at is that of the last moment at which it was held.
    let let_go = worker(false, script.guest_time());
    script.event("web-1", Change::Worker { worker: let_go });
    script.pass(5);
    script.heartbeat("web-1");
    assert_eq!(script.told(), "web-1 idle 5");
}
