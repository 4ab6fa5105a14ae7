use super::*;
use crate::actions::Ended;
use crate::input::{AgentEvent, FailedAction, Registered, RunState};
use crate::script::{Script, at, down, integration, status, up, worker};
use crate::{ActionKind, Outcome};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Profile;
use mvm_protocol::status::{
    Agent, BusySignal, DropInError, Health, Inspect, LastCheck, ProbeStatus, RestoreSign, Restored,
    Snapshot, Status, System,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const POLICY: &str =
    "[[pool]]\nname = \"web\"\nspare = 1\nmax = 5\n[[pool]]\nname = \"none\"\nmin = 2";

fn inspect(status: Status, probes: Vec<ProbeStatus>) -> Inspect {
    Inspect {
        status,
        probes,
        probes_omitted: 0,
        system: System {
            hostname: "guest".into(),
            kernel: "6.1".into(),
            cpus: 2,
            memory_total_bytes: 1 << 28,
            memory_available_bytes: 1 << 27,
            load: [0.5, 0.0, 0.0],
        },
        agent: Agent {
            version: "0.1.0".into(),
            profile: Profile::Prod.into(),
            pid: 1,
            rss_bytes: 1_700_000,
            started_at: at(-3600),
            drop_in_errors: vec![DropInError {
                file: "x".into(),
                message: "y".into(),
            }],
            drop_in_errors_omitted: 0,
        },
        boot: None,
        snapshot: Snapshot {
            generation: 3,
            last_sleep: None,
            last_wake: None,
            unannounced: 1,
        },
    }
}

fn probe(name: &str, value: serde_json::Value) -> ProbeStatus {
    ProbeStatus {
        name: name.into(),
        ok: true,
        value,
        stale: false,
        last_check: Some(check(11)),
    }
}

fn check(duration_ms: u64) -> LastCheck {
    LastCheck {
        at: Timestamp(0),
        duration_ms,
        exit_code: Some(0),
        signal: None,
        timed_out: false,
        output: String::new(),
        truncated: false,
    }
}

fn render(script: &Script, format: Format, per_vm: bool) -> String {
    render_with(script, format, per_vm, &ActionLog::default(), None)
}

fn render_with(
    script: &Script,
    format: Format,
    per_vm: bool,
    log: &ActionLog,
    process: Option<&Process>,
) -> String {
    let policy = Policy::parse(POLICY, "f").unwrap();
    let facts = Facts {
        waiting: [("web".to_owned(), 7)].into(),
        ..Facts::default()
    };
    let exposition = Exposition {
        view: &script.view,
        policy: &policy,
        facts: &facts,
        log,
        now: &script.now,
        process,
        per_vm,
    };
    exposition.render(format).concat()
}

/// One of each kind.
fn fleet() -> Script {
    let asleep = Registered {
        failed: Some(FailedAction {
            action: ActionKind::Wake,
            at: at(-5),
            times: 2,
        }),
        ..down("web-3", RunState::Asleep, -60)
    };
    let mut script = Script::new(vec![up("web-1", -600), up("web-2", -600), asleep]);
    let mut busy = status(worker(true, at(0)));
    busy.worker.because = vec![BusySignal::Loadavg.into(), BusySignal::Session.into()];
    busy.worker.load1 = 0.25;
    busy.uptime_secs = 93.5;
    busy.integrations = vec![integration("db", Health::Unhealthy)];
    busy.integrations[0].last_check = Some(check(250));
    let probes = vec![probe("disk", json!("42%")), probe("mood", json!("good"))];
    script.agent("web-1", AgentEvent::Inspect(&inspect(busy, probes)));
    script.agent("web-2", AgentEvent::Lost);
    script
}

#[test]
fn a_fleet_as_text() {
    let mut log = ActionLog::default();
    log.ended(Ended {
        at: at(0),
        pool: "web".into(),
        vm: "web-3".into(),
        action: ActionKind::Wake,
        outcome: Outcome::Failed,
        reason: "a connection waits".into(),
        problem: None,
    });
    let mut script = fleet();
    script.pass(2);
    let text = render_with(&script, Format::Text, true, &log, None);
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    // The zeros of the actions are counted, not shown.
    let (actions, rest): (Vec<&str>, Vec<&str>) = samples
        .iter()
        .partition(|line| line.starts_with("mvm_fleet_actions"));
    assert_eq!(actions.len(), 2 * 7 * 3);
    let not_zero: Vec<_> = actions
        .into_iter()
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert_eq!(
        not_zero,
        [r#"mvm_fleet_actions_total{pool="web",action="wake",outcome="failed"} 1"#]
    );
    let expected = r#"
mvm_fleet_vms{pool="none",state="busy"} 0
mvm_fleet_vms{pool="none",state="idle"} 0
mvm_fleet_vms{pool="none",state="starting"} 0
mvm_fleet_vms{pool="none",state="paused"} 0
mvm_fleet_vms{pool="none",state="asleep"} 0
mvm_fleet_vms{pool="none",state="stopped"} 0
mvm_fleet_vms{pool="none",state="unknown"} 0
mvm_fleet_vms{pool="web",state="busy"} 1
mvm_fleet_vms{pool="web",state="idle"} 0
mvm_fleet_vms{pool="web",state="starting"} 0
mvm_fleet_vms{pool="web",state="paused"} 0
mvm_fleet_vms{pool="web",state="asleep"} 1
mvm_fleet_vms{pool="web",state="stopped"} 0
mvm_fleet_vms{pool="web",state="unknown"} 1
mvm_fleet_wanted{pool="none"} 2
mvm_fleet_wanted{pool="web"} 3
mvm_fleet_waiting_connections{pool="none"} 0
mvm_fleet_waiting_connections{pool="web"} 7
mvm_fleet_view_complete 1
mvm_fleet_view_age_seconds 2
mvm_series_dropped_total 0
mvm_agent_up{pool="web",vm="web-1"} 1
mvm_agent_up{pool="web",vm="web-2"} 0
mvm_vm_state{pool="web",vm="web-1",state="busy"} 1
mvm_vm_state{pool="web",vm="web-3",state="asleep"} 1
mvm_vm_age_seconds{pool="web",vm="web-1"} 602
mvm_vm_age_seconds{pool="web",vm="web-3"} 3602
mvm_vm_failed_actions{pool="web",vm="web-3",action="wake"} 2
mvm_agent_info{pool="web",vm="web-1",version="0.1.0",profile="prod"} 1
mvm_agent_answer_age_seconds{pool="web",vm="web-1"} 2
mvm_agent_resident_memory_bytes{pool="web",vm="web-1"} 1700000
mvm_agent_drop_in_errors{pool="web",vm="web-1"} 1
mvm_guest_lifecycle{pool="web",vm="web-1",lifecycle="running"} 1
mvm_guest_health{pool="web",vm="web-1",health="healthy"} 1
mvm_guest_uptime_seconds{pool="web",vm="web-1"} 95.5
mvm_guest_generation{pool="web",vm="web-1"} 3
mvm_guest_restores_unannounced_total{pool="web",vm="web-1"} 1
mvm_guest_cpus{pool="web",vm="web-1"} 2
mvm_guest_memory_total_bytes{pool="web",vm="web-1"} 268435456
mvm_guest_memory_available_bytes{pool="web",vm="web-1"} 134217728
mvm_worker_busy{pool="web",vm="web-1"} 1
mvm_worker_busy_signal{pool="web",vm="web-1",signal="loadavg"} 1
mvm_worker_busy_signal{pool="web",vm="web-1",signal="session"} 1
mvm_worker_idle_seconds{pool="web",vm="web-1"} 0
mvm_worker_load1{pool="web",vm="web-1"} 0.25
mvm_worker_runnable_threads{pool="web",vm="web-1"} 1
mvm_integration_health{pool="web",vm="web-1",integration="db",health="unhealthy"} 1
mvm_integration_checks_total{pool="web",vm="web-1",integration="db"} 9
mvm_integration_check_failures_total{pool="web",vm="web-1",integration="db"} 1
mvm_integration_consecutive_failures{pool="web",vm="web-1",integration="db"} 0
mvm_integration_last_check_duration_seconds{pool="web",vm="web-1",integration="db"} 0.25
mvm_probe_ok{pool="web",vm="web-1",probe="disk"} 1
mvm_probe_ok{pool="web",vm="web-1",probe="mood"} 1
mvm_probe_value{pool="web",vm="web-1",probe="disk"} 42
mvm_probe_last_check_duration_seconds{pool="web",vm="web-1",probe="disk"} 0.011
mvm_probe_last_check_duration_seconds{pool="web",vm="web-1",probe="mood"} 0.011
"#;
    assert_eq!(rest.join("\n"), expected.trim());
    sound(&text, Format::Text);
    sound(
        &render(&script, Format::OpenMetrics, true),
        Format::OpenMetrics,
    );
}

#[test]
fn the_two_formats_name_families_as_they_should() {
    let script = fleet();
    let text = render(&script, Format::Text, true);
    assert!(text.contains("# TYPE mvm_integration_checks_total counter\n"));
    assert!(text.contains("# TYPE mvm_agent_info gauge\n"));
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    let open = render(&script, Format::OpenMetrics, true);
    assert!(open.contains("# TYPE mvm_integration_checks counter\n"));
    assert!(open.contains("# TYPE mvm_agent info\n"));
    assert!(open.contains("# UNIT mvm_guest_uptime_seconds seconds\n"));
    assert!(open.ends_with("# EOF\n"));
}

#[test]
fn a_host_of_thousands_sends_the_fleets_series_alone() {
    let process = Process {
        cpu_seconds: 1.5,
        open_fds: 9,
        max_fds: 1024,
        virtual_bytes: 1,
        resident_bytes: 2,
        started_seconds: 1_795_000_000.0,
    };
    let log = ActionLog::default();
    let text = render_with(&fleet(), Format::Text, false, &log, Some(&process));
    assert!(
        !text.contains("vm=\"") && !text.contains("mvm_agent_up"),
        "{text}"
    );
    assert!(text.contains("process_cpu_seconds_total 1.5\n"), "{text}");
    assert!(
        text.contains("process_start_time_seconds 1795000000\n"),
        "{text}"
    );
    sound(&text, Format::Text);
}

#[test]
fn a_view_that_is_not_complete_says_so() {
    let mut script = fleet();
    script.suspend(3600);
    script.pass(0);
    let text = render(&script, Format::Text, true);
    assert!(text.contains("mvm_fleet_view_complete 0\n"));
    assert!(text.contains("mvm_fleet_vms{pool=\"web\",state=\"unknown\"} 2\n"));
    assert!(text.contains("mvm_agent_up{pool=\"web\",vm=\"web-1\"} 0\n"));
    assert!(!text.contains("mvm_worker_busy{"), "nothing old is told");
}

#[test]
fn a_guest_cannot_make_more_than_its_series_nor_break_a_line() {
    let mut script = Script::running(&["web-1"]);
    let mut hostile = status(worker(false, at(-9)));
    hostile.worker.load1 = 1e308;
    hostile.uptime_secs = -1e300;
    hostile.integrations = (0..100)
        .map(|n| integration(&format!("n{n}\"}} 1\n# HELP x\\ \x1b[2J"), Health::Healthy))
        .collect();
    // Names that are one once they are cut.
    let long = |n: u32| integration(&format!("{}{n}", "x".repeat(64)), Health::Healthy);
    hostile.integrations.splice(0..0, (0..10).map(long));
    hostile.integrations_omitted = usize::MAX;
    let mut probes: Vec<_> = (0..100)
        .map(|n| probe(&format!("p{n}"), json!(n)))
        .collect();
    probes.insert(0, probe("p0", json!(1e308)));
    let mut whole = inspect(hostile, probes);
    whole.agent.version = "v\"\\\n".repeat(10_000);
    whole.agent.drop_in_errors_omitted = usize::MAX;
    script.agent("web-1", AgentEvent::Inspect(&whole));
    let dropped = script.view.series_dropped();
    // 110 of which 9 are of one name, 37 probes, and those that it says it left out itself.
    assert_eq!(dropped, mvm_protocol::MAX_BODY as u64 + 37 + 37);
    // The same again is not dropped again.
    script.agent("web-1", AgentEvent::Inspect(&whole));
    assert_eq!(script.view.series_dropped(), dropped);
    let more = Box::new(integration("another", Health::Unhealthy));
    script.event(
        "web-1",
        mvm_protocol::answer::Change::Integration { integration: more },
    );
    for format in [Format::Text, Format::OpenMetrics] {
        let text = render(&script, format, true);
        let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("mvm_integration_health{"), 64);
        assert_eq!(count("mvm_probe_value{"), 64);
        assert!(text.len() < 200_000, "{}", text.len());
        sound(&text, format);
    }
}

#[test]
fn the_documentation_has_every_family() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let table = documentation();
    assert!(
        page.contains(&table),
        "docs/metrics.md is to have this table:\n{table}"
    );
}

/// Checks what both formats ask for: families in one piece and described once, names and labels of
/// the right characters, no series twice, no timestamps, no number that is none.
fn sound(text: &str, format: Format) {
    let mut described: BTreeMap<&str, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut family = ("", "");
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some(rest) = comment.strip_prefix("TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(
                    described.insert(name, kind).is_none(),
                    "{name} is described twice"
                );
                family = (name, kind);
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(value.is_finite(), "{line}");
        assert!(seen.insert(series), "{series} is there twice");
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            None => (series, ""),
        };
        let suffix = match (format, family.1) {
            (Format::OpenMetrics, "counter") => "_total",
            (Format::OpenMetrics, "info") => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{}{suffix}", family.0), "{line}");
        pairs(labels);
    }
    assert!(described.len() > 6);
}

/// Reads `name="value",…` as a scraper does.
fn pairs(labels: &str) {
    let mut rest = labels;
    let mut names = BTreeSet::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap();
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{labels}"
        );
        assert!(names.insert(name), "{labels}");
        let mut escaped = false;
        let end = value.find(|character| {
            let is_end = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            is_end
        });
        let end = end.unwrap();
        assert!(value[..end].chars().count() <= 2 * 64, "{labels}");
        assert!(
            !value[..end].contains(|one: char| one.is_control()),
            "{labels}"
        );
        rest = value[end + 1..]
            .strip_prefix(',')
            .unwrap_or(&value[end + 1..]);
    }
}

#[test]
fn a_restore_that_nobody_announced_is_counted_when_its_agent_tells() {
    let mut script = Script::new(vec![up("web-1", -600)]);
    let inspect = inspect(status(worker(false, at(0))), Vec::new());
    script.agent("web-1", AgentEvent::Inspect(&inspect));
    let restored = Restored {
        announced: false,
        by: RestoreSign::Cid.into(),
    };
    script.event("web-1", mvm_protocol::answer::Change::Restored { restored });
    let text = render(&script, Format::Text, true);
    for line in [
        "mvm_guest_generation{pool=\"web\",vm=\"web-1\"} 4\n",
        "mvm_guest_restores_unannounced_total{pool=\"web\",vm=\"web-1\"} 2\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
