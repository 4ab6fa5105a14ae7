//! Those who scale by what is answered: none of them is ever given a number that scales a fleet down
//! for being unseen.

use crate::prometheus::{Prometheus, get, program};
use crate::server::{Fleet, LONG, Server};
use mvm_fake_fleet::Behaviour;
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const IDLE: Behaviour = Behaviour::Idle(Duration::from_secs(100));
const POLICY: &str = "[[pool]]\nname = \"web\"\nspare = 1\nmax = 9\n";

/// What KEDA's metrics-api scaler takes (2.20, `metrics_api_scaler.go`): any status but 200 is an error,
/// and so is a body in which `valueLocation` is not a number.
fn keda(address: &str, pool: &str) -> Result<u64, String> {
    let (status, body) = get(address, &format!("/v1/pools/{pool}"))?;
    if status != 200 {
        return Err(format!("api returned {status}"));
    }
    let body: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    body["wanted"]
        .as_u64()
        .ok_or_else(|| "valueLocation must point to a number".to_owned())
}

#[test]
fn keda_is_given_a_number_or_an_error() {
    let mut fleet = Fleet::new()
        .and("web-1", Behaviour::Busy)
        .and("web-2", Behaviour::Busy);
    let policy = fleet.write("fleet.toml", POLICY);
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    let address = server.address.clone();
    assert_eq!(keda(&address, "web"), Ok(3));
    assert!(keda(&address, "wbe").is_err(), "there is no such pool");
    // One is lost: it counts as busy.
    fleet.agents.set("web-2", Behaviour::Dead);
    server.until("web", |body| body["unknown"] == 1);
    assert_eq!(keda(&address, "web"), Ok(3));
    // The server hangs.
    server.signal(Signal::STOP);
    assert!(keda(&address, "web").is_err());
    server.signal(Signal::CONT);
    // It is killed, and begins anew while a guest does not answer.
    drop(server);
    assert!(keda(&address, "web").is_err());
    fleet.agents.set("web-1", Behaviour::Stalled);
    let server = fleet.serve(&format!("--policy {policy}"));
    let began = Instant::now();
    let first = loop {
        match keda(&server.address, "web") {
            Ok(number) => break number,
            Err(_) => assert!(began.elapsed() < LONG),
        }
    };
    assert_eq!(first, 3, "the first number that it is given");
}

/// The queries of docs/fleet.md.
fn documented() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/fleet.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```promql\n").skip(1);
    let queries = blocks.map(|block| block.split("```").next().unwrap().trim().to_owned());
    queries.collect()
}

#[test]
fn prometheus_discovers_scrapes_and_never_sees_fewer_than_there_are() {
    let Some(program) = program() else { return };
    let mut fleet = Fleet::new()
        .and("web-1", Behaviour::Busy)
        .and("web-2", Behaviour::Busy)
        .and("web-3", IDLE)
        .and("db-1", Behaviour::Dead);
    let policy = fleet.write("fleet.toml", POLICY);
    let mut server = fleet
        .serve(&format!("--policy {policy} --host-label rack=r7"))
        .ready();
    let prometheus = Prometheus::of(&program, &server.address);
    let up = prometheus.until("up{job=\"mvm\"}", |up| up.len() == 1 && up[0].1 > 0.5);
    assert_eq!(up[0].0["rack"], "r7");
    let queries = documented();
    assert!(queries.len() >= 4, "{queries:?}");
    for query in &queries {
        // Each is understood, and finds what there is to find.
        let results = prometheus.until(query, |results| !results.is_empty());
        assert!(
            results.iter().all(|(_, value)| value.is_finite()),
            "{query}: {results:?}"
        );
    }
    let wanted = queries
        .iter()
        .find(|query| query.contains("mvm_fleet_wanted"))
        .unwrap();
    let of_web = |results: &[(Value, f64)]| {
        let web = results.iter().find(|(labels, _)| labels["pool"] == "web");
        web.map(|(_, value)| *value)
    };
    assert_eq!(of_web(&prometheus.query(wanted)), Some(3.0));
    // Killed: no number, and none before it was of fewer.
    let address = server.address.clone();
    drop(server);
    let never_fewer = |results: &[(Value, f64)]| {
        assert!(
            of_web(results).is_none_or(|wanted| wanted >= 3.0),
            "{results:?}"
        );
    };
    prometheus.until(wanted, |results| {
        never_fewer(results);
        results.is_empty()
    });
    // Anew, while guests do not answer: no number until the view is complete, and then they count.
    fleet.agents.set("web-1", Behaviour::Stalled);
    fleet.agents.set("web-2", Behaviour::Stalled);
    server = serve_at(&fleet, &address, &policy);
    prometheus.until("mvm_fleet_view_complete", |complete| {
        complete.len() == 1 && complete[0].1 < 0.5
    });
    never_fewer(&prometheus.query(wanted));
    let results = prometheus.until(wanted, |results| {
        never_fewer(results);
        of_web(results).is_some()
    });
    assert_eq!(of_web(&results), Some(3.0));
    drop(server);
}

fn serve_at(fleet: &Fleet, address: &str, policy: &str) -> Server {
    fleet.serve_on(address, &format!("--policy {policy}"))
}
