//! The fleet's own series: a few for each pool.

use super::Exposition;
use super::text::{Family, Kind, Value, Writer, labels};
use crate::body::pool_names;
use crate::state::{Counts, State};
use crate::{ActionKind, Outcome, label};
use std::collections::{BTreeMap, BTreeSet};

const fn gauge(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        unit,
        help,
    }
}

const VMS: Family = gauge(
    "mvm_fleet_vms",
    None,
    "VMs of the pool in that state; every state is there, zeros included.",
);
const WANTED: Family = gauge(
    "mvm_fleet_wanted",
    None,
    "How many VMs of the pool should be up: busy and unknown ones, and starting or spare ones, whichever are more, within min and max.",
);
const WAITING: Family = gauge(
    "mvm_fleet_waiting_connections",
    None,
    "Connections that are held until a VM of the pool can take them.",
);
const COMPLETE: Family = gauge(
    "mvm_fleet_view_complete",
    None,
    "1 if every VM that should answer has answered or failed once, else 0.",
);
const AGE: Family = gauge(
    "mvm_fleet_view_age_seconds",
    Some("seconds"),
    "For how long the VM that is silent for longest has not been heard, of those that can be reached.",
);
const ACTIONS: Family = Family {
    name: "mvm_fleet_actions",
    kind: Kind::Counter,
    unit: None,
    help: "What the policy had done: action and outcome (ok, failed, skipped).",
};
const DROPPED: Family = Family {
    name: "mvm_series_dropped",
    kind: Kind::Counter,
    unit: None,
    help: "Integrations and probes of guests that have no series: more than 64 of one VM, or of one name.",
};

pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    [&VMS, &WANTED, &WAITING, &COMPLETE, &AGE, &ACTIONS, &DROPPED].into_iter()
}

pub(super) fn write(told: &Exposition, writer: &mut Writer) {
    let view = told.view;
    // By the name that is shown: two that become one once they are cleaned are one.
    let mut pools: BTreeMap<Box<str>, (Counts, u32, u32)> = BTreeMap::new();
    for name in pool_names(view, told.policy) {
        let counts = view.counts(name);
        let (sum, wanted, waiting) = pools.entry(label::clean(name)).or_default();
        for state in State::ALL {
            *sum.of_mut(state) += counts.of(state);
        }
        *wanted = wanted.saturating_add(counts.wanted(&told.policy.bounds(name)));
        *waiting += told.facts.waiting.get(name).copied().unwrap_or(0);
    }
    writer.family(&VMS);
    for (pool, (counts, ..)) in &pools {
        let pool = labels(&[("pool", pool)]);
        for state in State::ALL {
            let count = Value::Whole(counts.of(state).into());
            writer.sample(&pool, &[("state", state.as_str())], count);
        }
    }
    writer.family(&WANTED);
    for (pool, (_, wanted, _)) in &pools {
        writer.sample("", &[("pool", pool)], Value::Whole((*wanted).into()));
    }
    writer.family(&WAITING);
    for (pool, (.., waiting)) in &pools {
        writer.sample("", &[("pool", pool)], Value::Whole((*waiting).into()));
    }
    writer.family(&COMPLETE);
    writer.sample("", &[], view.is_complete().into());
    writer.family(&AGE);
    writer.sample("", &[], view.age(told.now).into());
    writer.family(&ACTIONS);
    let acted: BTreeSet<Box<str>> = told
        .policy
        .pools()
        .map(|(name, _)| label::clean(name))
        .chain(told.log.pools().map(Into::into))
        .collect();
    for pool in &acted {
        let labels = labels(&[("pool", pool)]);
        for action in ActionKind::ALL {
            for outcome in Outcome::ALL {
                let more = [("action", action.as_str()), ("outcome", outcome.as_str())];
                let count = told.log.count(pool, action, outcome);
                writer.sample(&labels, &more, Value::Whole(count));
            }
        }
    }
    writer.family(&DROPPED);
    writer.sample("", &[], Value::Whole(view.series_dropped()));
}
