//! What a fleet of 10,000 VMs costs its view, its policy and its metrics: pure functions, in this process.

use crate::{Result, idle};
use mvm_fleet::metrics::{Exposition, Format};
use mvm_fleet::{
    ActionLog, AgentEvent, Effect, Facts, Now, Policy, Registered, RegistryEvent, RunState,
    Settings, Ticket, View, decide,
};
use mvm_protocol::answer::{Answer, AnswerFrame, Change, Event};
use mvm_protocol::{Timestamp, status::Inspect};
use rustix::time::{ClockId, clock_gettime};
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

const VMS: usize = 10_000;
const POOLS: usize = 100;
const ROUNDS: usize = 200;

pub(crate) struct Figures {
    pub(crate) decision: Times,
    pub(crate) text: Times,
    pub(crate) open_metrics: Times,
    pub(crate) no_per_vm: Times,
    pub(crate) heartbeat_us: f64,
    pub(crate) bytes_a_vm: f64,
    pub(crate) text_mb: f64,
    pub(crate) samples: usize,
}

/// How long something took, over the rounds, in ms.
pub(crate) struct Times {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// What of it this program had a CPU for, p50: other programs do not make that longer by much.
    pub(crate) cpu: f64,
}

pub(crate) fn measure() -> Result<Figures> {
    let pid = std::process::id();
    let before = idle::rss_bytes(pid)?;
    let (mut view, tickets, mut now) = fleet()?;
    let bytes = idle::rss_bytes(pid)?.saturating_sub(before);
    let policy = Policy::parse(&policy()?, "fleet.toml")?;
    let facts = Facts::default();
    let plan = decide(&view, &policy, &facts, &now);
    if plan.actions.is_empty() {
        return Err("the fleet to be measured asks for nothing".into());
    }
    let decision = times(|| {
        black_box(decide(&view, &policy, &facts, &now));
    });
    let log = ActionLog::default();
    let exposition = |per_vm| Exposition {
        view: &view,
        policy: &policy,
        facts: &facts,
        log: &log,
        now: &now,
        process: None,
        per_vm,
    };
    let rendering = |format, per_vm| {
        times(|| {
            black_box(exposition(per_vm).render(format));
        })
    };
    let no_per_vm = rendering(Format::Text, false);
    let open_metrics = rendering(Format::OpenMetrics, true);
    let text = rendering(Format::Text, true);
    let out = exposition(true).render(Format::Text).concat();
    let text_mb = out.len() as f64 / 1e6;
    let samples = out.lines().filter(|line| !line.starts_with('#')).count();

    let heartbeat = Event {
        at: Timestamp(now.wall.0 + 1000),
        change: Change::Heartbeat { heartbeat: true },
    };
    now.boottime += Duration::from_secs(1);
    now.monotonic += Duration::from_secs(1);
    now.wall.0 += 1000;
    let begun = Instant::now();
    for ticket in &tickets {
        black_box(view.agent(*ticket, AgentEvent::Event(&heartbeat), &now));
    }
    Ok(Figures {
        decision,
        text,
        open_metrics,
        no_per_vm,
        heartbeat_us: begun.elapsed().as_secs_f64() * 1e6 / tickets.len() as f64,
        bytes_a_vm: bytes as f64 / VMS as f64,
        text_mb,
        samples,
    })
}

fn times(mut run: impl FnMut()) -> Times {
    let (mut ms, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (begun, had) = (Instant::now(), on_cpu());
        run();
        ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        cpu.push((on_cpu() - had) * 1000.0);
    }
    ms.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    let at = |share: usize| ms.get(ROUNDS * share / 100).copied().unwrap_or_default();
    Times {
        p50: at(50),
        p99: at(99),
        cpu: cpu.get(ROUNDS / 2).copied().unwrap_or_default(),
    }
}

/// For how many seconds this thread has had a CPU.
fn on_cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

/// Every pool asks for something: to pause, to put to sleep, to wake, to remove.
fn policy() -> Result<String> {
    let mut text = String::new();
    for pool in 0..POOLS {
        write!(
            text,
            "[[pool]]\nname = \"pool-{pool}\"\nidle_pause_after = \"30s\"\nidle_sleep_after = \"5m\"\n\
             asleep_remove_after = \"7d\"\nmax_lifetime = \"8h\"\nmin = 5\nmax = 200\nspare = 30\n\
             golden = \"/snapshots/{pool}\"\n\n"
        )?;
    }
    Ok(text)
}

/// Two fifths idle, a fifth busy, a fifth asleep, the rest paused, lost and stopped.
fn fleet() -> Result<(View, Vec<Ticket>, Now)> {
    let now = Now {
        monotonic: Duration::from_secs(1_000_000),
        boottime: Duration::from_secs(1_000_000),
        wall: Timestamp(1_795_000_000_000),
    };
    let hour = Timestamp(now.wall.0 - 3_600_000);
    let vms = (0..VMS).map(|number| {
        let state = match number / POOLS % 10 {
            0..6 | 9 => RunState::Running,
            6 | 7 => RunState::Asleep,
            _ => RunState::Paused { by_fleet: true },
        };
        Registered {
            pool: Some(format!("pool-{}", number % POOLS)),
            since: Some(hour),
            started_at: Some(hour),
            ..Registered::new(format!("vm-{number}"), state)
        }
    });
    let vms = vms.collect();
    let mut view = View::new(Settings::default());
    let effects = view.registry(RegistryEvent::Listed { vms, whole: true }, &now);
    let (idle, busy) = (inspect("idle")?, inspect("busy")?);
    let heartbeat = Event {
        at: now.wall,
        change: Change::Heartbeat { heartbeat: true },
    };
    let mut tickets = Vec::new();
    for effect in effects {
        let Effect::Watch { name, ticket } = effect else {
            continue;
        };
        let number: usize = name.strip_prefix("vm-").ok_or("a name of ours")?.parse()?;
        match number / POOLS % 10 {
            9 => {
                view.agent(ticket, AgentEvent::Lost, &now);
                continue;
            }
            0..4 => view.agent(ticket, AgentEvent::Inspect(&idle), &now),
            _ => view.agent(ticket, AgentEvent::Inspect(&busy), &now),
        };
        view.agent(ticket, AgentEvent::Event(&heartbeat), &now);
        tickets.push(ticket);
    }
    Ok((view, tickets, now))
}

/// An ordinary guest: three integrations, two probes.
fn inspect(worker: &str) -> Result<Inspect> {
    let at = "2026-11-18T08:00:00Z";
    let check = format!(
        r#"{{"at":"{at}","duration_ms":11,"exit_code":0,"signal":null,"timed_out":false,"output":"ok","truncated":false}}"#
    );
    let integration = |name: &str| {
        format!(
            r#"{{"name":"{name}","health":"healthy","since":"{at}","consecutive_failures":0,"checks":900,"failures":3,"last_check":{check}}}"#
        )
    };
    let integrations = ["nginx", "postgresql", "application"]
        .map(integration)
        .join(",");
    let probe = |(name, value): (&str, &str)| {
        format!(r#"{{"name":"{name}","ok":true,"value":{value},"last_check":{check}}}"#)
    };
    let probes = [("disk-usage", "\"42%\""), ("queue", "17")]
        .map(probe)
        .join(",");
    let text = format!(
        r#"{{"type":"inspect","lifecycle":"running","health":"healthy","uptime_secs":9000.5,
        "worker":{{"state":"{worker}","since":"{at}","last_busy_at":"{at}","because":[],"load1":0.02,"runnable":1}},
        "integrations":[{integrations}],"probes":[{probes}],
        "system":{{"hostname":"guest","kernel":"6.1","cpus":1,"memory_total_bytes":268435456,"memory_available_bytes":134217728,"load":[0,0,0]}},
        "agent":{{"version":"0.1.0","profile":"prod","pid":1,"rss_bytes":1700000,"started_at":"{at}","drop_in_errors":[]}},
        "snapshot":{{"generation":3,"last_sleep":null,"last_wake":null}}}}"#
    );
    match AnswerFrame::read(text.as_bytes())?.answer {
        Answer::Inspect(inspect) => Ok(*inspect),
        other => Err(format!("not an inspect: {other:?}").into()),
    }
}
