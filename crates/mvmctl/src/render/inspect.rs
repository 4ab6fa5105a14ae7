//! What `vm inspect` and `vm check` show.

use super::data::Named;
use super::shown::Shown;
use super::shown::table::{Cell, Style, Table, cell, pairs};
use super::status::{self, omitted};
use super::text::cut;
use super::words;
use crate::clock::Timed;
use crate::commands::Context;
use mvm_protocol::answer::Checked;
use mvm_protocol::status::{Boot, DropInError, Inspect, LastCheck, ProbeStatus};
use mvm_protocol::{MAX_OUTPUT, Timestamp};

/// All that an agent tells.
pub(crate) fn inspect(context: &Context, named: &Named<&Timed<Inspect>>) -> Shown {
    let inspect = &named.answer.answer;
    let now = inspect.status.now;
    let mut text = status::one(context, named.vm, &inspect.status, named.answer.skew);
    if !inspect.probes.is_empty() {
        text.push(&Shown::empty_line());
        text.push(&probe_table(context, &inspect.probes, now));
        text.push(&omitted(inspect.probes_omitted));
    }
    let system = &inspect.system;
    let agent = &inspect.agent;
    let profile = words::wire(&agent.profile);
    let time = |time: Option<Timestamp>| time.map_or("never".into(), |time| time.to_string());
    text.push(&Shown::empty_line());
    let mut rows = vec![
        ("Hostname", system.hostname.clone()),
        ("Kernel", system.kernel.clone()),
        ("CPUs", system.cpus.to_string()),
        (
            "Memory",
            format!(
                "{} of {} available",
                words::bytes(system.memory_available_bytes),
                words::bytes(system.memory_total_bytes)
            ),
        ),
        ("Load", load(inspect)),
        (
            "Agent",
            format!(
                "{} ({profile}), process {}, {} resident, started {}",
                cut(&agent.version, 64),
                agent.pid,
                words::bytes(agent.rss_bytes),
                agent.started_at
            ),
        ),
        (
            "Snapshots",
            format!(
                "generation {}, last asleep {}, last woken {}{}",
                inspect.snapshot.generation,
                time(inspect.snapshot.last_sleep),
                time(inspect.snapshot.last_wake),
                unannounced(inspect.snapshot.unannounced)
            ),
        ),
    ];
    if let Some(told) = &inspect.boot {
        rows.push(("Boot", boot(told)));
    }
    text.push(&pairs(context.ui.looks(), &rows));
    if !agent.drop_in_errors.is_empty() {
        text.push(&Shown::empty_line());
        text.push(&rejected_table(context, &agent.drop_in_errors));
        text.push(&omitted(agent.drop_in_errors_omitted));
    }
    text
}

/// When what was up in a guest's boot: what it was, and when.
pub(crate) fn boot_rows<'a>(
    boot: &Boot,
    integrations: impl Iterator<Item = (&'a str, Option<f64>)>,
) -> Vec<(String, String)> {
    let after = |secs: Option<f64>| secs.map_or("-".into(), |secs| format!("{secs:.3} s"));
    let mut rows = vec![
        (
            "agent's process".to_owned(),
            after(boot.process_started_secs),
        ),
        (
            "agent started".to_owned(),
            after(Some(boot.agent_started_secs)),
        ),
        (
            "drop-ins loaded".to_owned(),
            after(boot.drop_ins_loaded_secs),
        ),
    ];
    let healthy = integrations.filter(|(_, first)| first.is_some());
    rows.extend(healthy.map(|(name, first)| (format!("{} healthy", cut(name, 64)), after(first))));
    rows.push(("guest ready".to_owned(), after(boot.ready_secs)));
    rows
}

/// In one line.
fn boot(boot: &Boot) -> String {
    let after = |secs: Option<f64>| secs.map_or("-".into(), |secs| format!("{secs:.3} s"));
    format!(
        "agent started {}, drop-ins loaded {}, ready {} after the kernel",
        after(Some(boot.agent_started_secs)),
        after(boot.drop_ins_loaded_secs),
        after(boot.ready_secs)
    )
}

/// The restores that nobody announced, if there were any.
fn unannounced(restores: u64) -> String {
    match restores {
        0 => String::new(),
        1 => ", 1 restore that no host announced".into(),
        more => format!(", {more} restores that no host announced"),
    }
}

/// The kernel's averages, and what counts.
fn load(inspect: &Inspect) -> String {
    let load = inspect.system.load.map(|load| format!("{load:.2}"));
    let load = load.join(" ");
    match inspect.status.worker.load1_counted {
        Some(counted) => format!("{load}; the guest's own work: {counted:.2}"),
        None => load,
    }
}

fn probe_table(context: &Context, probes: &[ProbeStatus], now: Option<Timestamp>) -> Shown {
    let mut table = Table::new(
        context.ui.looks(),
        &["PROBE", "OK", "VALUE", "LAST CHECK", "RUN"],
    );
    for probe in probes {
        let last = words::last_check(probe.last_check.as_ref());
        let run = probe.last_check.as_ref().map_or("never".into(), |check| {
            format!("{} ago", words::age(check.at, now))
        });
        table.row(vec![
            cell(Style::Plain, &probe.name),
            ok(probe),
            cell(Style::Plain, &value(probe)),
            cell(last.0, &last.1),
            cell(Style::Plain, &run),
        ]);
    }
    table.finish()
}

fn ok(probe: &ProbeStatus) -> Cell {
    if probe.stale {
        return cell(Style::Warn, "stale");
    }
    match (probe.ok, &probe.last_check) {
        (true, _) => cell(Style::Good, "yes"),
        (false, Some(_)) => cell(Style::Bad, "no"),
        (false, None) => words_unknown(),
    }
}

fn words_unknown() -> Cell {
    let (tone, text) = words::unknown();
    cell(tone, &text)
}

/// A string as it is, another JSON value as JSON, and of one that failed what it printed or what is wrong
/// with that; what does not fit into a table is cut.
fn value(probe: &ProbeStatus) -> String {
    let check = probe.last_check.as_ref().filter(|_| !probe.ok);
    match &probe.value {
        serde_json::Value::Null => match check.map(|check| check.output.trim()) {
            None | Some("") => "-".into(),
            Some(printed) => cut(printed, 60).into_owned(),
        },
        serde_json::Value::String(text) => cut(text, 60).into_owned(),
        value => cut(&value.to_string(), 60).into_owned(),
    }
}

fn rejected_table(context: &Context, errors: &[DropInError]) -> Shown {
    let mut table = Table::new(context.ui.looks(), &["REJECTED FILE", "WHY"]);
    for error in errors {
        table.row(vec![
            cell(Style::Plain, &error.file),
            cell(Style::Bad, &error.message),
        ]);
    }
    table.finish()
}

/// What a check that was asked for found: its verdict, how it ended, and all that it printed.
pub(crate) fn checked(context: &Context, checked: &Checked) -> Shown {
    let mut text = Shown::new();
    if let Some(integration) = &checked.integration {
        let health = words::health(integration.health);
        let last = words::last_check(integration.last_check.as_ref());
        let mut table = Table::new(
            context.ui.looks(),
            &[
                "INTEGRATION",
                "HEALTH",
                "FOR",
                "FAILURES IN A ROW",
                "THIS CHECK",
            ],
        );
        table.row(vec![
            cell(Style::Plain, &integration.name),
            cell(health.0, &health.1),
            cell(
                Style::Plain,
                &words::age(integration.since, ended(integration.last_check.as_ref())),
            ),
            cell(Style::Plain, &integration.consecutive_failures.to_string()),
            cell(last.0, &last.1),
        ]);
        text.push(&table.finish());
        text.push(&output(integration.last_check.as_ref()));
    }
    if let Some(probe) = &checked.probe {
        text.push(&probe_table(
            context,
            std::slice::from_ref(probe),
            ended(probe.last_check.as_ref()),
        ));
        text.push(&output(probe.last_check.as_ref()));
    }
    text
}

/// When a check ended by the guest's clock: what was asked for has done so just now.
fn ended(check: Option<&LastCheck>) -> Option<Timestamp> {
    let check = check?;
    let took = i64::try_from(check.duration_ms).unwrap_or(i64::MAX);
    Some(Timestamp(check.at.0.saturating_add(took)))
}

fn output(check: Option<&LastCheck>) -> Shown {
    let Some(check) = check.filter(|check| !check.output.trim().is_empty()) else {
        return Shown::new();
    };
    let output = check.output.trim_end();
    // An agent keeps no more than this.
    let from = output.len().saturating_sub(MAX_OUTPUT);
    let shown = output
        .get(output.ceil_char_boundary(from)..)
        .unwrap_or_default();
    let before = if check.truncated || from > 0 {
        Shown::line("…")
    } else {
        Shown::new()
    };
    let shown = Shown::lines(shown, " ");
    [Shown::empty_line(), before, shown].into_iter().collect()
}
