//! A VM in the table: what is kept of its guest's answers, cleaned and cut, and what can be done to it.

use crate::render::shown::OneLine;
use crate::render::shown::table::Style;
use crate::render::text::cut;
use crate::render::words;
use mvm_client::watch::{Applied, apply};
use mvm_fleet::{RunState, State};
use mvm_protocol::Lenient;
use mvm_protocol::answer::Change;
use mvm_protocol::status::{Health, Inspect, ProbeStatus, Status};
use serde::Serialize;
use std::time::Duration;

/// How many integrations, and how many probes, are kept of a guest.
const MOST: usize = 64;

/// How much of an integration's name is kept, in characters: all of one that an agent takes. Changes
/// come under whole names.
const WHOLE_NAME: usize = 64;

/// How long a text of a guest's is shown, in characters: a name, a value, the last line of an output.
const NAME: usize = 32;
const VALUE: usize = 32;
const LINE: usize = 160;

/// What can be done to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Sleep,
    Wake,
    Stop,
}

impl Deed {
    pub(super) fn question(self) -> &'static str {
        match self {
            Self::Sleep => "put to sleep",
            Self::Wake => "wake",
            Self::Stop => "stop",
        }
    }

    pub(super) fn doing(self) -> &'static str {
        match self {
            Self::Sleep => "putting to sleep",
            Self::Wake => "waking",
            Self::Stop => "stopping",
        }
    }

    /// Whether it makes sense for a VM in that state.
    pub(super) fn is_for(self, state: RunState) -> bool {
        match self {
            Self::Sleep => state == RunState::Running,
            Self::Wake => matches!(state, RunState::Asleep),
            Self::Stop => matches!(state, RunState::Running | RunState::Paused { .. }),
        }
    }

    /// Why it does not.
    pub(super) fn not_for(self) -> &'static str {
        match self {
            Self::Sleep => "only one that runs, and that mvmctl runs, is put to sleep",
            Self::Wake => "only one that is asleep is woken",
            Self::Stop => "only one that runs, and that mvmctl runs, is stopped",
        }
    }
}

/// What a guest says of itself.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// Kept for what changes of it; its texts are cut.
    status: Status,
    pub(super) health: Lenient<Health>,
    pub(super) load: f64,
    probes: Vec<Probe>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Probe {
    pub(super) name: OneLine,
    pub(super) ok: bool,
    pub(super) value: OneLine,
}

/// One integration, as it is shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Integration {
    pub(super) name: OneLine,
    pub(super) health: OneLine,
    #[serde(skip)]
    pub(super) tone: Tone,
    /// How its last check ended, and the last line of what that printed.
    pub(super) last_check: OneLine,
    pub(super) output: OneLine,
}

/// How good something is.
pub(super) type Tone = Style;

impl Guest {
    pub(super) fn of(status: &Status) -> Self {
        let mut guest = Self {
            status: status.clone(),
            health: status.health,
            load: 0.0,
            probes: Vec::new(),
        };
        guest.take();
        guest
    }

    pub(super) fn status(&mut self, status: &Status) {
        self.status = status.clone();
        self.take();
    }

    pub(super) fn inspect(&mut self, inspect: &Inspect) {
        self.status(&inspect.status);
        self.take_probes(inspect);
    }

    /// What may be older than what is known already: the integrations, and not what the guest does.
    pub(super) fn asked(&mut self, status: &Status) {
        self.status.integrations.clone_from(&status.integrations);
        self.take();
    }

    /// The same, with its probes.
    pub(super) fn asked_inspect(&mut self, inspect: &Inspect) {
        self.asked(&inspect.status);
        self.take_probes(inspect);
    }

    fn take_probes(&mut self, inspect: &Inspect) {
        self.probes = inspect.probes.iter().take(MOST).map(probe).collect();
    }

    pub(super) fn change(&mut self, change: &Change) {
        if apply(&mut self.status, change) == Applied::Shown {
            self.take();
        }
    }

    /// Keeps no more of it than is shown.
    fn take(&mut self) {
        self.health = self.status.health;
        let worker = &self.status.worker;
        let load = worker.load1_counted.unwrap_or(worker.load1);
        self.load = if load.is_finite() {
            load.clamp(0.0, 9999.0)
        } else {
            0.0
        };
        self.status.integrations.truncate(MOST);
        for one in &mut self.status.integrations {
            one.name = cut(&one.name, WHOLE_NAME).into_owned();
            if let Some(check) = &mut one.last_check {
                let line = check
                    .output
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty());
                check.output = cut(line.unwrap_or_default().trim(), LINE).into_owned();
            }
        }
    }

    /// For how long the worker is as it is, by the guest's own clock.
    pub(super) fn state_for(&self) -> Option<Duration> {
        let ms = self
            .status
            .now?
            .0
            .saturating_sub(self.status.worker.since.0);
        u64::try_from(ms).ok().map(Duration::from_millis)
    }

    /// The worst first.
    pub(super) fn health_rank(&self) -> f64 {
        match self.health.known() {
            Some(Health::Unhealthy) => 0.0,
            None => 1.0,
            Some(Health::Starting) => 2.0,
            Some(Health::Healthy) => 3.0,
            Some(Health::Unchecked) => 4.0,
        }
    }

    pub(super) fn health(&self) -> (Tone, OneLine) {
        let (tone, text) = words::health(self.health);
        (tone, OneLine::of(&text))
    }

    /// What it does, in words.
    pub(super) fn worker(&self) -> OneLine {
        OneLine::of(&words::worker(&self.status.worker))
    }

    pub(super) fn integrations(&self) -> impl Iterator<Item = Integration> {
        self.status.integrations.iter().map(|one| {
            let (tone, health) = words::health(one.health);
            let check = one.last_check.as_ref();
            Integration {
                name: OneLine::short(&one.name, NAME),
                health: OneLine::of(&health),
                tone,
                last_check: OneLine::of(&words::last_check(check).1),
                output: check.map_or_else(OneLine::default, |check| {
                    OneLine::short(&check.output, LINE)
                }),
            }
        })
    }

    pub(super) fn probes(&self) -> &[Probe] {
        &self.probes
    }
}

fn probe(probe: &ProbeStatus) -> Probe {
    let value = match &probe.value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".into(),
        value => value.to_string(),
    };
    Probe {
        name: OneLine::short(&probe.name, NAME),
        ok: probe.ok,
        value: OneLine::short(value.trim(), VALUE),
    }
}

/// A VM, as it is shown.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) pool: &'a str,
    pub(super) state: State,
    /// For how long it is in that state, as far as that is known.
    pub(super) lasts: Duration,
    /// It is in it for longer than that: when it began nobody knows.
    pub(super) lasts_longer: bool,
    pub(super) pinned: bool,
    pub(super) guest: Option<&'a Guest>,
}

impl Row<'_> {
    pub(super) fn tone(&self) -> Tone {
        match self.state {
            State::Busy | State::Idle => Style::Plain,
            State::Starting => Style::Warn,
            State::Unknown => Style::Bad,
            State::Paused | State::Asleep | State::Stopped => Style::Dim,
        }
    }

    pub(super) fn health(&self) -> (Tone, OneLine) {
        let unknown = || (Style::Dim, OneLine::of("-"));
        self.guest.map_or_else(unknown, Guest::health)
    }

    /// For how long it is in its state. Parts of a second are of no interest, and would change each
    /// time.
    pub(super) fn lasts(&self) -> String {
        let longer = if self.lasts_longer { ">" } else { "" };
        let whole = Duration::from_secs(self.lasts.as_secs());
        format!("{longer}{}", words::duration(whole))
    }

    pub(super) fn load(&self) -> String {
        self.guest
            .map_or("-".into(), |guest| format!("{:.2}", guest.load))
    }

    /// The last values of its probes.
    pub(super) fn probes(&self) -> OneLine {
        let probes = self.guest.map_or(&[][..], Guest::probes).iter();
        let values = probes.map(|probe| {
            let failed = if probe.ok { "" } else { "!" };
            format!("{}{failed}={}", probe.name, probe.value)
        });
        OneLine::of(&values.collect::<Vec<_>>().join(" "))
    }
}
