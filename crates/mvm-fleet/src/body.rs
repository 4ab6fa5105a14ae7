//! What `/v1/fleet`, `/v1/pools/NAME`, `/v1/plan` and `/sd` answer.
//!
//! Each number stands in a field of its own, so that a scaler takes it by its name. Where `complete` is
//! false the body is the same and the answer is 503: whoever reads one number sees an error, and not a
//! lost view that looks like an empty pool.

use crate::actions::Ended;
use crate::state::{Bounds, Counts};
use crate::{ActionLog, Plan, Policy, View, label};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What `/v1/pools/NAME` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolBody {
    /// The pool.
    pub pool: String,
    /// Its VMs, in states as follows.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// What `/v1/fleet` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FleetBody {
    /// All VMs. `wanted` is the sum of the pools'.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// The pools that have VMs or a policy, in name order.
    pub pools: Vec<PoolBody>,
    /// What was done last, oldest first.
    pub last_actions: Vec<Ended>,
}

/// What `/v1/plan` answers: what would be done now, and what would not.
///
/// Its words are texts, so that a reader of another version can show them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanBody {
    /// In the order in which it is begun.
    pub actions: Vec<PlannedBody>,
    /// What something speaks for and is not done.
    pub held: Vec<HeldBody>,
}

/// An action of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlannedBody {
    /// The VM's pool.
    pub pool: String,
    /// What would be done: `resume`, `wake`, `clone`, `remove`, `pause`, `sleep`, `stop`.
    pub action: String,
    /// The VM. A clone's name is the one that it would get.
    pub vm: String,
    /// Why.
    pub reason: String,
}

/// What a plan does not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeldBody {
    /// The pool.
    pub pool: String,
    /// Why nothing is done.
    pub cause: String,
}

impl PlanBody {
    /// The plan as it is told.
    pub fn of(plan: &Plan) -> Self {
        let actions = plan.actions.iter().map(|action| PlannedBody {
            pool: action.pool.to_string(),
            action: action.kind.to_string(),
            vm: action.vm.to_string(),
            reason: action.reason.to_string(),
        });
        let held = plan.held.iter().map(|held| HeldBody {
            pool: held.pool.to_string(),
            cause: held.cause.to_string(),
        });
        Self {
            actions: actions.collect(),
            held: held.collect(),
        }
    }
}

/// What a request is answered that cannot be answered otherwise, with a status from 400 on. A view that is
/// not complete is no such thing: the body is the same as ever, and the status 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// How many VMs there are, and should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Numbers {
    /// All of them: the sum of the seven states.
    pub vms: u32,
    /// They work, or a snapshot of them is being made.
    pub busy: u32,
    /// They do not work.
    pub idle: u32,
    /// They are being started or woken, or have no verdict yet.
    pub starting: u32,
    /// Their vCPUs stand still.
    pub paused: u32,
    /// They are snapshots, and no more.
    pub asleep: u32,
    /// They were stopped, or ended by themselves.
    pub stopped: u32,
    /// They should answer and do not.
    pub unknown: u32,
    /// Whether every VM that should answer has answered or failed once. If not the numbers are not to
    /// be scaled by.
    pub complete: bool,
    /// How many should be up: busy and unknown ones, and starting or spare ones, whichever are more, within
    /// `min` and `max`.
    pub wanted: u32,
}

impl Numbers {
    fn new(counts: &Counts, complete: bool, bounds: &Bounds) -> Self {
        Self {
            vms: counts.vms(),
            busy: counts.busy,
            idle: counts.idle,
            starting: counts.starting,
            paused: counts.paused,
            asleep: counts.asleep,
            stopped: counts.stopped,
            unknown: counts.unknown,
            complete,
            wanted: counts.wanted(bounds),
        }
    }

    fn add(&mut self, other: &Self) {
        let Self {
            vms,
            busy,
            idle,
            starting,
            paused,
            asleep,
            stopped,
            unknown,
            complete: _,
            wanted,
        } = self;
        for (sum, more) in [
            (vms, other.vms),
            (busy, other.busy),
            (idle, other.idle),
            (starting, other.starting),
            (paused, other.paused),
            (asleep, other.asleep),
            (stopped, other.stopped),
            (unknown, other.unknown),
            (wanted, other.wanted),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// One pool. None if it has neither VMs nor a policy, in a view that is complete: then there is no such
/// pool (404). As long as the view is not, it may have VMs that were not seen yet.
pub fn pool(view: &View, policy: &Policy, name: &str) -> Option<PoolBody> {
    let counts = view.counts(name);
    let is_known = counts.vms() > 0 || policy.pool(name).is_some();
    let complete = view.is_pool_complete(name);
    (is_known || !complete).then(|| PoolBody {
        pool: name.to_owned(),
        numbers: Numbers::new(&counts, complete, &policy.bounds(name)),
    })
}

/// The whole fleet.
pub fn fleet(view: &View, policy: &Policy, log: &ActionLog) -> FleetBody {
    let pools = pool_names(view, policy)
        .into_iter()
        .filter_map(|name| pool(view, policy, name));
    let pools: Vec<PoolBody> = pools.collect();
    let none = Bounds::default();
    let mut numbers = Numbers::new(&Counts::default(), view.is_complete(), &none);
    for pool in &pools {
        numbers.add(&pool.numbers);
    }
    FleetBody {
        numbers,
        pools,
        last_actions: log.last().cloned().collect(),
    }
}

/// The pools that have VMs or a policy.
pub fn pool_names<'a>(view: &'a View, policy: &'a Policy) -> BTreeSet<&'a str> {
    let of_policy = policy.pools().map(|(name, _)| name);
    view.pools()
        .map(|(name, _)| name)
        .chain(of_policy)
        .collect()
}

/// One entry of what Prometheus' HTTP service discovery reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SdTarget {
    /// `HOST:PORT`
    pub targets: Vec<String>,
    /// Labels that all series of the target get.
    pub labels: BTreeMap<String, String>,
}

/// What `/sd` answers: this exporter, with the host's labels, `host` being its name. Labels whose names
/// Prometheus does not take are left out: with one of them it would refuse the whole list.
pub fn service_discovery(
    address: &str,
    host: &str,
    labels: &BTreeMap<String, String>,
) -> Vec<SdTarget> {
    let cleaned = labels
        .iter()
        .filter(|(name, _)| is_label_name(name))
        .map(|(name, value)| (name.clone(), label::clean(value).into_string()));
    let mut labels: BTreeMap<String, String> = cleaned.collect();
    labels.insert("host".to_owned(), label::clean(host).into_string());
    vec![SdTarget {
        targets: vec![address.to_owned()],
        labels,
    }]
}

fn is_label_name(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        // Those that begin so are Prometheus' own, but for those that only discovery sees.
        && (!name.starts_with("__") || name.starts_with("__meta_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Now, Registered, RegistryEvent, RunState, Settings};
    use mvm_protocol::Timestamp;
    use std::time::Duration;

    const NOW: Now = Now {
        monotonic: Duration::ZERO,
        boottime: Duration::ZERO,
        wall: Timestamp(0),
    };

    fn view(vms: &[(&str, RunState)]) -> View {
        let mut view = View::new(Settings::default());
        let vms = vms
            .iter()
            .map(|(name, state)| Registered::new(*name, *state));
        let vms = vms.collect();
        view.registry(RegistryEvent::Listed { vms, whole: true }, &NOW);
        view
    }

    #[test]
    fn a_pool_is_flat() {
        let view = view(&[("web-1", RunState::Asleep), ("web-2", RunState::Running)]);
        let policy = Policy::parse("[[pool]]\nname = \"web\"\nspare = 1", "fleet.toml").unwrap();
        let body = pool(&view, &policy, "web").unwrap();
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            r#"{"pool":"web","vms":2,"busy":0,"idle":0,"starting":0,"paused":0,"asleep":1,"stopped":0,"unknown":1,"complete":false,"wanted":2}"#
        );
        let text = serde_json::to_string(&fleet(&view, &policy, &ActionLog::default())).unwrap();
        assert!(text.starts_with(r#"{"vms":2,"busy":0,"#), "{text}");
        assert!(
            text.contains(r#""wanted":2,"pools":[{"pool":"web","#),
            "{text}"
        );
    }

    #[test]
    fn a_pool_that_may_not_have_been_seen_yet_is_not_absent() {
        let policy = Policy::default();
        let unseen = View::new(Settings::default());
        let body = pool(&unseen, &policy, "web").unwrap();
        assert!(!body.numbers.complete);
        assert_eq!(pool(&view(&[]), &policy, "web"), None);
        let policy = Policy::parse("[[pool]]\nname = \"web\"\nmin = 2", "f").unwrap();
        let body = pool(&view(&[]), &policy, "web").unwrap();
        assert_eq!((body.numbers.complete, body.numbers.wanted), (true, 2));
    }

    #[test]
    fn discovery_names_this_exporter() {
        let labels = [
            ("rack", "r\n7"),
            ("not-a-label", "x"),
            ("__name__", "x"),
            ("__meta_zone", "a"),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let targets = service_discovery("10.0.0.7:9152", "h1", &labels.into());
        assert_eq!(
            serde_json::to_string(&targets).unwrap(),
            r#"[{"targets":["10.0.0.7:9152"],"labels":{"__meta_zone":"a","host":"h1","rack":"r�7"}}]"#
        );
    }
}
