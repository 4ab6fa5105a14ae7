//! The dashboard of packaging/grafana: Prometheus answers what its panels ask, and every series that it
//! names is one that there is.

use crate::prometheus::{Prometheus, program};
use crate::server::Fleet;
use mvm_fake_fleet::Behaviour;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The panels: each title, with its queries as they are written.
fn panels() -> Vec<(String, Vec<String>)> {
    let dashboard: Value = serde_json::from_str(&read("packaging/grafana/mvm-fleet.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let panel = |panel: &Value| {
        let targets = panel["targets"].as_array().unwrap();
        let queries = targets.iter().map(|target| text(&target["expr"]));
        (text(&panel["title"]), queries.collect())
    };
    let panels = dashboard["panels"].as_array().unwrap();
    panels.iter().map(panel).collect()
}

/// A query as Grafana sends it, with all pools chosen.
fn filled(query: &str) -> String {
    query
        .replace("$pool", ".*")
        .replace("$__rate_interval", "5s")
}

/// The names of series in a query, and the labels that it chooses by.
fn names(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let is_series = |word: &&str| {
        let known = ["mvm_", "process_", "prometheus_"];
        known.iter().any(|start| word.starts_with(start)) || *word == "up"
    };
    words.filter(is_series).map(str::to_owned).collect()
}

#[test]
fn every_series_of_the_dashboard_exists() {
    // That page is compared with what is rendered.
    let metrics = read("docs/metrics.md");
    // Prometheus' own: tests/packaging asks it for them.
    let its_own = ["up", "prometheus_sd_refresh_failures_total"];
    let documented = |name: &String| {
        its_own.contains(&name.as_str()) || metrics.contains(&format!("\n| `{name}` | "))
    };
    let panels = panels();
    assert!(panels.len() >= 10, "{panels:?}");
    for (title, queries) in &panels {
        for query in queries {
            let named = names(query);
            assert!(!named.is_empty(), "{title}: {query}");
            let unknown: Vec<_> = named.iter().filter(|name| !documented(name)).collect();
            assert!(unknown.is_empty(), "{title}: {unknown:?}");
        }
    }
    assert!(
        !documented(&"mvm_fleet_vm".to_owned()),
        "a name that there is not"
    );
}

#[test]
fn prometheus_answers_every_panel() {
    let Some(program) = program() else { return };
    let fleet = Fleet::new()
        .and("web-1", Behaviour::Busy)
        .and("web-2", Behaviour::Idle(Duration::from_secs(100)))
        .and("db-1", Behaviour::Dead);
    let policy = fleet.write(
        "fleet.toml",
        "[[pool]]\nname = \"web\"\nspare = 1\nmax = 9\n",
    );
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    let prometheus = Prometheus::of(&program, &server.address);
    for (title, queries) in panels() {
        for query in queries {
            let results = prometheus.until(&filled(&query), |results| !results.is_empty());
            let sound = results.iter().all(|(_, value)| value.is_finite());
            assert!(sound, "{title}: {query}: {results:?}");
        }
    }
    // A few of the numbers are what the fleet is.
    let one = |query: &str| prometheus.query(&filled(query))[0].1;
    let state = |state: &str| {
        one(&format!(
            "sum(mvm_fleet_vms{{pool=~\"$pool\",state=\"{state}\"}})"
        ))
    };
    assert!((state("busy") - 1.0).abs() < 0.1);
    let dead = prometheus.query(&filled(&panels()[3].1[0]));
    assert_eq!(dead[0].0["pool"], "db");
    drop(server);
}
