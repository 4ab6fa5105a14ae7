//! What `vm ls` and `vm status` show.

use super::shown::Shown;
use super::shown::table::{Cell, Style, Table, cell};
use super::words;
use crate::args::Format;
use crate::clock::{Skew, Timed};
use crate::commands::Context;
use crate::fleet::{Answered, Fleet};
use mvm_protocol::status::Status;
use mvm_registry::VmState;
use std::time::Duration;

/// All VMs, a line each.
pub(crate) fn ls(context: &Context, fleet: &Fleet<Timed<Status>>) -> Shown {
    let wide = context.format == Format::Wide;
    let mut headers = vec![
        "NAME",
        "BACKEND",
        "REACHABLE",
        "LIFECYCLE",
        "HEALTH",
        "WORKER",
    ];
    if wide {
        headers.extend([
            "UPTIME",
            "CLOCK",
            "INTEGRATIONS",
            "ADDRESS",
            "POOL",
            "LABELS",
        ]);
    }
    let mut table = Table::new(context.ui.looks(), &headers);
    for one in &fleet.answers {
        let timed = one.result.as_ref().ok();
        let status = timed.map(|timed| &timed.answer);
        let mut row = vec![cell(Style::Plain, &one.name), backend(one), reachable(one)];
        row.extend(state(one, status));
        if wide {
            row.push(uptime(status));
            row.push(clock(timed.and_then(|timed| timed.skew)));
            row.push(integrations(status));
            row.push(address(one));
            row.extend(labels(one));
        }
        table.row(row);
    }
    table.finish()
}

/// Its pool, and the labels that it was given.
fn labels<T>(one: &Answered<T>) -> [Cell; 2] {
    let none = || cell(Style::Dim, "-");
    let Some(vm) = &one.vm else {
        return [none(), none()];
    };
    let pinned = vm.pinned.then(|| "pinned".to_owned());
    let given = (!vm.labels.is_empty()).then(|| vm.labels.to_string());
    let shown: Vec<_> = given.into_iter().chain(pinned).collect();
    let labels = if shown.is_empty() {
        none()
    } else {
        cell(Style::Plain, &shown.join(", "))
    };
    [cell(Style::Plain, vm.pool()), labels]
}

/// One VM with its integrations.
pub(crate) fn one(context: &Context, name: &str, status: &Status, skew: Option<Skew>) -> Shown {
    let mut summary = Table::new(
        context.ui.looks(),
        &["NAME", "LIFECYCLE", "HEALTH", "WORKER", "FOR", "UPTIME"],
    );
    let (lifecycle, health) = (
        words::lifecycle(status.lifecycle),
        words::health(status.health),
    );
    summary.row(vec![
        cell(Style::Plain, name),
        cell(lifecycle.0, &lifecycle.1),
        cell(health.0, &health.1),
        cell(Style::Plain, &words::worker(&status.worker)),
        cell(Style::Plain, &words::age(status.worker.since, status.now)),
        uptime(Some(status)),
    ]);
    let mut text = summary.finish();
    if let Some(off) = off(name, skew) {
        text.push(&Shown::empty_line());
        text.push(&off);
    }
    text.push(&integration_table(context, status));
    text
}

/// Several VMs, a line each.
pub(crate) fn several(context: &Context, fleet: &Fleet<Timed<Status>>) -> Shown {
    let wide = context.format == Format::Wide;
    let mut headers = vec![
        "NAME",
        "LIFECYCLE",
        "HEALTH",
        "WORKER",
        "UPTIME",
        "INTEGRATIONS",
    ];
    if wide {
        headers.push("ADDRESS");
    }
    let mut table = Table::new(context.ui.looks(), &headers);
    for one in &fleet.answers {
        let status = one.result.as_ref().ok().map(|timed| &timed.answer);
        let mut row = vec![cell(Style::Plain, &one.name)];
        row.extend(state(one, status));
        row.push(uptime(status));
        row.push(integrations(status));
        if wide {
            row.push(address(one));
        }
        table.row(row);
    }
    let mut text = table.finish();
    let off: Shown = fleet
        .answers
        .iter()
        .filter_map(|one| off(&one.name, one.result.as_ref().ok()?.skew))
        .collect();
    if !off.is_empty() {
        text.push(&Shown::empty_line());
        text.push(&off);
    }
    text
}

/// A line about a guest's clock, if it is off.
fn off(name: &str, skew: Option<Skew>) -> Option<Shown> {
    let off = words::skew(skew)?.replace("ahead", "ahead of");
    Some(Shown::line(&format!(
        "{name}'s clock is {off} this host's: mvmctl vm wake {name} sets it, as after a restore (personalize \
         commands run, a payload is to be given again)"
    )))
}

/// The integrations of one VM, after an empty line; nothing if there are none.
pub(crate) fn integration_table(context: &Context, status: &Status) -> Shown {
    if status.integrations.is_empty() {
        return Shown::new();
    }
    let mut table = Table::new(
        context.ui.looks(),
        &[
            "INTEGRATION",
            "HEALTH",
            "FOR",
            "FAILED",
            "LAST CHECK",
            "OUTPUT",
        ],
    );
    for one in &status.integrations {
        let health = words::health(one.health);
        let last = words::last_check(one.last_check.as_ref());
        table.row(vec![
            cell(Style::Plain, &one.name),
            cell(health.0, &health.1),
            cell(Style::Plain, &words::age(one.since, status.now)),
            cell(Style::Plain, &format!("{} of {}", one.failures, one.checks)),
            cell(last.0, &last.1),
            cell(Style::Plain, &words::last_line(one.last_check.as_ref())),
        ]);
    }
    let omitted = omitted(status.integrations_omitted);
    [Shown::empty_line(), table.finish(), omitted]
        .into_iter()
        .collect()
}

/// A line about what found no room in the answer.
pub(crate) fn omitted(count: usize) -> Shown {
    if count == 0 {
        Shown::new()
    } else {
        Shown::line(&format!(
            "… and {count} more, for which the agent's answer had no room"
        ))
    }
}

fn backend<T>(one: &Answered<T>) -> Cell {
    match one.vm.as_ref().and_then(|vm| vm.backend.as_deref()) {
        Some(backend) => cell(Style::Plain, backend),
        None => cell(Style::Dim, "-"),
    }
}

fn reachable<T>(one: &Answered<T>) -> Cell {
    match &one.result {
        Ok(_) => cell(Style::Plain, "yes"),
        // It answered, and will not say: that is reachable all the same.
        Err(failure) if failure.kind == crate::report::Kind::Failed => cell(Style::Plain, "yes"),
        Err(_) if one.is_off() => cell(Style::Dim, "no"),
        Err(_) => cell(Style::Bad, "no"),
    }
}

/// Lifecycle, health and worker. Of a VM that cannot be reached nothing is known: least of all
/// that it is idle, since somebody might stop it for that.
fn state<T>(one: &Answered<T>, status: Option<&Status>) -> [Cell; 3] {
    let shown = |(tone, text): (Style, String)| cell(tone, &text);
    if let Some(status) = status {
        return [
            shown(words::lifecycle(status.lifecycle)),
            shown(words::health(status.health)),
            cell(Style::Plain, &words::worker(&status.worker)),
        ];
    }
    let lifecycle = match &one.vm {
        Some(vm) if one.is_off() => (Style::Dim, vm.state.to_string()),
        // What it is says more than that it cannot be reached.
        Some(vm) if vm.endpoint().is_err() => match vm.state {
            VmState::Running | VmState::Unknown(_) => words::unknown(),
            _ => (Style::Bad, vm.state.to_string()),
        },
        _ => words::unknown(),
    };
    [
        shown(lifecycle),
        shown(words::unknown()),
        shown(words::unknown()),
    ]
}

fn uptime(status: Option<&Status>) -> Cell {
    let uptime = status.and_then(|status| Duration::try_from_secs_f64(status.uptime_secs).ok());
    match uptime {
        Some(uptime) => cell(Style::Plain, &words::duration(uptime)),
        None => cell(Style::Dim, "unknown"),
    }
}

fn clock(skew: Option<Skew>) -> Cell {
    match (skew, words::skew(skew)) {
        (None, _) => cell(Style::Dim, "unknown"),
        (Some(_), None) => cell(Style::Plain, "ok"),
        (Some(_), Some(off)) => cell(Style::Warn, &format!("{off}: vm wake sets it")),
    }
}

fn integrations(status: Option<&Status>) -> Cell {
    let (tone, text) = match status {
        Some(status) => words::integrations(&status.integrations, status.integrations_omitted),
        None => words::unknown(),
    };
    cell(tone, &text)
}

pub(crate) fn address<T>(one: &Answered<T>) -> Cell {
    let endpoint = one.vm.as_ref().and_then(|vm| vm.endpoint().ok());
    match endpoint {
        Some(endpoint) => cell(Style::Plain, &endpoint.to_string()),
        None => cell(Style::Dim, "-"),
    }
}
