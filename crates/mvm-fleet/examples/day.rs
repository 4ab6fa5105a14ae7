//! A day of 10,000 VMs in 500 pools under some policies, with arrivals that follow the hours, printed
//! as a table beside VMs that are always on. The view and the policy are the real ones; the guests, the
//! VMMs and the clock are not.
//!
//! `cargo run --profile dist-host -p mvm-fleet --example day`, or `… --example day 20` for 20 pools.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a chore, not a program"
)]

use mvm_fleet::{
    ActionKind, AgentEvent, Effect, Facts, Now, Policy, Registered, RegistryEvent, RunState,
    Settings, State, Ticket, View, decide,
};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Change, Event as AgentChange};
use mvm_protocol::status::{Health, Lifecycle, Status, Worker, WorkerState};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

const VMS_A_POOL: usize = 20;
const DAY_MS: u64 = 86_400_000;
const HEARTBEAT_MS: u64 = 15_000;
/// The wall clock at the beginning.
const WALL: i64 = 1_795_000_000_000;
/// What a connection that waits for its turn gets at most.
const HELD_MS: u64 = 60_000;
/// Decisions are made at most this often.
const PACE_MS: u64 = 200;
/// Where no connection waits a change may wait for others: each decision looks at all VMs.
const UNHURRIED_MS: u64 = 2000;

/// The policies that are compared, by what they add to a pool of at most 20.
const POLICIES: [(&str, &str); 4] = [
    ("sleep after 1 h", "idle_sleep_after = \"1h\""),
    ("sleep after 5 min", "idle_sleep_after = \"5m\""),
    (
        "pause after 30 s, sleep after 5 min",
        "idle_pause_after = \"30s\"\nidle_sleep_after = \"5m\"",
    ),
    (
        "the same, and 1 spare",
        "idle_pause_after = \"30s\"\nidle_sleep_after = \"5m\"\nspare = 1",
    ),
];

/// How long things take, as measured with QEMU guests of this project where they were.
fn duration_ms(kind: ActionKind) -> u64 {
    match kind {
        ActionKind::Wake | ActionKind::Clone => 700,
        ActionKind::Resume => 20,
        ActionKind::Pause => 10,
        ActionKind::Sleep => 1500,
        ActionKind::Stop => 2000,
        ActionKind::Remove => 50,
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// Its agent says that it is there.
    Heartbeat { vm: String, run: u64 },
    /// A connection to a pool, for so long.
    Arrival { pool: usize },
    /// The last connection of a VM has ended, unless another one came meanwhile.
    Done { vm: String, at: u64 },
    /// An action has ended.
    Acted { vm: String, kind: ActionKind },
    /// The policy is asked.
    Decide,
}

struct Connection {
    since: u64,
    lasts: u64,
}

struct Guest {
    ticket: Ticket,
    /// Tells a guest's runs apart.
    run: u64,
    idle_since: Timestamp,
    busy_until: u64,
}

#[derive(Default)]
struct Figures {
    up_ms: u128,
    paused_ms: u128,
    connections: u64,
    waits_ms: Vec<u64>,
    closed: u64,
    actions: BTreeMap<ActionKind, u64>,
    decisions: u64,
    deciding: Duration,
}

struct World {
    now: u64,
    view: View,
    policy: Policy,
    facts: Facts,
    guests: BTreeMap<String, Guest>,
    waiting: BTreeMap<String, VecDeque<Connection>>,
    queue: BinaryHeap<Reverse<(u64, u64, Happens)>>,
    next: u64,
    random: Random,
    next_decision: Option<u64>,
    decided_at: u64,
    accounted: u64,
    figures: Figures,
}

/// xorshift64*: the same day each time.
struct Random(u64);

impl Random {
    /// 0 to 1, without 0.
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        (bits + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Milliseconds of an exponential distribution.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and days at most"
    )]
    fn exponential(&mut self, mean_ms: f64) -> u64 {
        (-self.share().ln() * mean_ms) as u64
    }
}

/// Between connections to a pool at that time of the day: 4 minutes at two in the afternoon, 40 at two
/// in the night.
fn mean_gap_ms(now: u64) -> f64 {
    let hour = now as f64 / 3_600_000.0;
    let day = ((hour - 14.0) / 24.0 * std::f64::consts::TAU)
        .cos()
        .mul_add(0.5, 0.5);
    240_000.0 / (0.1 + 0.9 * day)
}

impl World {
    fn new(pools: usize, terms: &str) -> Self {
        let names =
            (0..pools).flat_map(|pool| (0..VMS_A_POOL).map(move |vm| format!("p{pool}-{vm}")));
        let vms =
            names.map(|name| registered(&name, RunState::Asleep, Timestamp(WALL - 86_400_000)));
        let pool_texts =
            (0..pools).map(|pool| format!("[[pool]]\nname = \"p{pool}\"\nmax = 20\n{terms}\n"));
        let policy = Policy::parse(&pool_texts.collect::<String>(), "day").expect("a policy");
        let mut world = Self {
            now: 0,
            view: View::new(Settings::default()),
            policy,
            facts: Facts::default(),
            guests: BTreeMap::new(),
            waiting: BTreeMap::new(),
            queue: BinaryHeap::new(),
            next: 0,
            random: Random(0x9E37_79B9_7F4A_7C15),
            next_decision: None,
            decided_at: 0,
            accounted: 0,
            figures: Figures::default(),
        };
        let vms = vms.collect();
        let now = world.clocks();
        world
            .view
            .registry(RegistryEvent::Listed { vms, whole: true }, &now);
        for pool in 0..pools {
            let gap = world.random.exponential(mean_gap_ms(0));
            world.push(gap, Happens::Arrival { pool });
        }
        world.decide_by(0);
        world
    }

    fn clocks(&self) -> Now {
        let since = Duration::from_millis(self.now);
        Now {
            monotonic: since,
            boottime: since,
            wall: self.wall(),
        }
    }

    fn wall(&self) -> Timestamp {
        Timestamp(WALL + i64::try_from(self.now).unwrap())
    }

    fn push(&mut self, after: u64, happens: Happens) {
        self.next += 1;
        self.queue
            .push(Reverse((self.now + after, self.next, happens)));
    }

    /// Asks the policy then, or before.
    fn decide_by(&mut self, at: u64) {
        let at = at.max(self.decided_at + PACE_MS).max(self.now);
        if self.next_decision.is_none_or(|next| at < next) {
            self.next_decision = Some(at);
            self.push(at - self.now, Happens::Decide);
        }
    }

    fn run(mut self) -> Figures {
        while let Some(Reverse((at, _, happens))) = self.queue.pop() {
            if at >= DAY_MS {
                break;
            }
            self.account(at);
            self.now = at;
            let revision = self.view.revision();
            self.happen(happens);
            if self.view.revision() != revision {
                self.decide_by(self.now + UNHURRIED_MS);
            }
        }
        self.account(DAY_MS);
        self.figures
    }

    /// What is up and what is paused costs until then.
    fn account(&mut self, until: u64) {
        let passed = u128::from(until - self.accounted);
        if passed > 0 {
            for (_, counts) in self.view.pools() {
                let up = counts.busy + counts.idle + counts.starting + counts.unknown;
                self.figures.up_ms += u128::from(up) * passed;
                self.figures.paused_ms += u128::from(counts.paused) * passed;
            }
            self.accounted = until;
        }
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Heartbeat { vm, run } => {
                if self.guests.get(&vm).is_some_and(|guest| guest.run == run) {
                    self.tell(&vm, Change::Heartbeat { heartbeat: true });
                    self.push(HEARTBEAT_MS, Happens::Heartbeat { vm, run });
                }
            }
            Happens::Arrival { pool } => {
                let gap = self.random.exponential(mean_gap_ms(self.now));
                self.push(gap, Happens::Arrival { pool });
                let lasts = self.random.exponential(180_000.0);
                let since = self.now;
                self.figures.connections += 1;
                let name = format!("p{pool}");
                let queue = self.waiting.entry(name.clone()).or_default();
                queue.push_back(Connection { since, lasts });
                self.join(&name);
            }
            Happens::Done { vm, at } => {
                if self
                    .guests
                    .get(&vm)
                    .is_some_and(|guest| guest.busy_until == at)
                {
                    self.set_busy(&vm, false);
                    let pool = self.view.vm(&vm).unwrap().pool().to_owned();
                    self.join(&pool);
                }
            }
            Happens::Acted { vm, kind } => self.acted(&vm, kind),
            Happens::Decide => {
                if self.next_decision == Some(self.now) {
                    self.next_decision = None;
                    self.decided_at = self.now;
                    self.decide();
                }
            }
        }
    }

    /// Joins the connections that wait to an idle VM of the pool, all to one.
    fn join(&mut self, pool: &str) {
        let held = self.waiting.entry(pool.to_owned()).or_default();
        let before = held.len();
        held.retain(|connection| connection.since + HELD_MS > self.now);
        self.figures.closed += (before - held.len()) as u64;
        let names = (0..VMS_A_POOL).map(|vm| format!("{pool}-{vm}"));
        let mut idle = names.filter(|name| {
            let state = self.view.vm(name).map(mvm_fleet::view::Vm::state);
            state == Some(State::Idle) && !self.facts.under_way.contains_key(name)
        });
        if let Some(vm) = idle.next().filter(|_| !held.is_empty()) {
            let lasts = held
                .iter()
                .map(|connection| connection.lasts)
                .max()
                .unwrap_or(0);
            let waits = held.drain(..).map(|connection| self.now - connection.since);
            self.figures.waits_ms.extend(waits.filter(|wait| *wait > 0));
            self.set_busy(&vm, true);
            let at = self.now + lasts;
            self.guests.get_mut(&vm).unwrap().busy_until = at;
            self.push(lasts, Happens::Done { vm, at });
        }
        let waiting = u32::try_from(self.waiting.get(pool).map_or(0, VecDeque::len)).unwrap();
        if self.facts.waiting.insert(pool.to_owned(), waiting) != Some(waiting) && waiting > 0 {
            self.decide_by(self.now);
        }
    }

    fn set_busy(&mut self, vm: &str, is_busy: bool) {
        let wall = self.wall();
        self.guests.get_mut(vm).unwrap().idle_since = wall;
        let worker = worker(is_busy, wall);
        self.tell(vm, Change::Worker { worker });
    }

    fn tell(&mut self, vm: &str, change: Change) {
        let at = self.wall();
        let ticket = self.guests[vm].ticket;
        let now = self.clocks();
        let event = AgentChange { at, change };
        self.view.agent(ticket, AgentEvent::Event(&event), &now);
    }

    fn decide(&mut self) {
        let now = self.clocks();
        self.view.tick(&now);
        let begun = Instant::now();
        let plan = decide(&self.view, &self.policy, &self.facts, &now);
        self.figures.deciding += begun.elapsed();
        self.figures.decisions += 1;
        for action in plan.actions {
            let (vm, kind) = (action.vm.to_string(), action.kind);
            self.facts
                .under_way
                .insert(vm.clone(), action.under_way(now.boottime));
            *self.figures.actions.entry(kind).or_default() += 1;
            self.push(duration_ms(kind), Happens::Acted { vm, kind });
        }
        if let Some(after) = plan.look_again_after {
            let after = u64::try_from(after.as_millis())
                .unwrap_or(DAY_MS)
                .min(DAY_MS);
            // The guests' clocks are heard at each heartbeat only.
            self.decide_by(self.now + after.max(1000));
        }
    }

    fn acted(&mut self, vm: &str, kind: ActionKind) {
        self.facts.under_way.remove(vm);
        let run_state = match kind {
            ActionKind::Wake | ActionKind::Resume | ActionKind::Clone => RunState::Running,
            ActionKind::Pause => RunState::Paused { by_fleet: true },
            ActionKind::Sleep => RunState::Asleep,
            ActionKind::Stop | ActionKind::Remove => RunState::Stopped,
        };
        self.guests.remove(vm);
        let now = self.clocks();
        let changed = RegistryEvent::Changed(registered(vm, run_state, now.wall));
        for effect in self.view.registry(changed, &now) {
            let Effect::Watch { ticket, .. } = effect else {
                continue;
            };
            let guest = Guest {
                ticket,
                run: self.next,
                idle_since: now.wall,
                busy_until: 0,
            };
            let status = status(worker(false, guest.idle_since));
            let run = guest.run;
            self.guests.insert(vm.to_owned(), guest);
            self.view.agent(ticket, AgentEvent::Status(&status), &now);
            let vm = vm.to_owned();
            self.push(HEARTBEAT_MS, Happens::Heartbeat { vm, run });
        }
        let pool = self.view.vm(vm).unwrap().pool().to_owned();
        self.join(&pool);
    }
}

fn registered(name: &str, run_state: RunState, since: Timestamp) -> Registered {
    Registered {
        since: Some(since),
        ..Registered::new(name, run_state)
    }
}

fn worker(is_busy: bool, since: Timestamp) -> Worker {
    let state = if is_busy {
        WorkerState::Busy
    } else {
        WorkerState::Idle
    };
    Worker {
        state: state.into(),
        since,
        last_busy_at: None,
        because: Vec::new(),
        held_by: Vec::new(),
        load1: 0.0,
        load1_counted: None,
        runnable: 1,
    }
}

fn status(worker: Worker) -> Status {
    Status {
        lifecycle: Lifecycle::Running.into(),
        health: Health::Healthy.into(),
        uptime_secs: 86_400.0,
        now: None,
        worker,
        integrations: Vec::new(),
        integrations_omitted: 0,
    }
}

fn main() {
    let pools = std::env::args().nth(1).and_then(|pools| pools.parse().ok());
    let pools = pools.unwrap_or(500);
    let always_on = (pools * VMS_A_POOL * 24) as f64;
    println!("{} VMs in {pools} pools over a day\n", pools * VMS_A_POOL);
    println!(
        "| policy | VM-hours up | of always on | VM-hours paused | connections | had to wait | p50 | p99 | \
         closed | wakes | resumes | pauses | sleeps | decision |"
    );
    println!(
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    );
    // It needs no simulation: nobody waits, and nothing is done.
    println!("| always on | {always_on:.0} | 100.0 % | 0 | | 0 | | | | | | | | |");
    for (name, terms) in POLICIES {
        let world = World::new(pools, terms);
        let mut figures = world.run();
        figures.waits_ms.sort_unstable();
        let waits = &figures.waits_ms;
        let at = |share: usize| {
            waits
                .get(waits.len() * share / 100)
                .map_or(0.0, |ms| *ms as f64 / 1000.0)
        };
        let hours = |ms: u128| ms as f64 / 3_600_000.0;
        let count = |kind| figures.actions.get(&kind).copied().unwrap_or(0);
        let up = hours(figures.up_ms);
        println!(
            "| {name} | {up:.0} | {:.1} % | {:.0} | {} | {:.1} % | {:.2} s | {:.2} s | {} | {} | {} | {} | {} | {:.2} ms |",
            100.0 * up / always_on,
            hours(figures.paused_ms),
            figures.connections,
            100.0 * waits.len() as f64 / figures.connections as f64,
            at(50),
            at(99),
            figures.closed,
            count(ActionKind::Wake),
            count(ActionKind::Resume),
            count(ActionKind::Pause),
            count(ActionKind::Sleep),
            figures.deciding.as_secs_f64() * 1000.0 / figures.decisions as f64,
        );
    }
}
