//! Those who scale by what is answered: none of them is ever given a number that scales a fleet down
//! for being unseen.

use crate::server::{Fleet, LONG, Server};
use mvm_fake_fleet::Behaviour;
use rustix::process::Signal;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const IDLE: Behaviour = Behaviour::Idle(Duration::from_secs(100));
const POLICY: &str = "[[pool]]\nname = \"web\"\nspare = 1\nmax = 9\n";

/// What a GET comes to within some seconds.
fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        // As long as KEDA waits by default.
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok((status.ok_or("no status")?, body.to_owned()))
}

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

/// Prometheus, ended when dropped.
struct Prometheus {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Discovers that server, and scrapes what it finds each 200 ms.
    fn of(program: &Path, server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs:\n\
             - job_name: mvm\n  http_sd_configs:\n  - url: http://{server}/sd\n    refresh_interval: 1s\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            address: port.to_string(),
            _folder: folder,
        }
    }

    /// The results of a query: labels and value.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let mut escaped = String::new();
        for byte in query.bytes() {
            write!(escaped, "%{byte:02x}").unwrap();
        }
        let began = Instant::now();
        let answer = loop {
            match get(&self.address, &format!("/api/v1/query?query={escaped}")) {
                Ok((200, body)) => break body,
                // It is starting.
                other => assert!(
                    began.elapsed() < LONG && !matches!(other, Ok((400..=499, _))),
                    "{query}: {other:?}"
                ),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // A body in pieces: what is between the sizes is one line of JSON.
        let start = answer.find('{').unwrap();
        let end = answer.rfind('}').unwrap();
        let body: Value = serde_json::from_str(&answer[start..=end]).unwrap();
        assert_eq!(body["status"], "success", "{query}: {body}");
        let results = body["data"]["result"].as_array().unwrap();
        let pair = |one: &Value| {
            (
                one["metric"].clone(),
                one["value"][1].as_str().unwrap().parse().unwrap(),
            )
        };
        results.iter().map(pair).collect()
    }

    /// Waits until a query has such results.
    fn until(&self, query: &str, is_so: impl Fn(&[(Value, f64)]) -> bool) -> Vec<(Value, f64)> {
        let began = Instant::now();
        loop {
            let results = self.query(query);
            if is_so(&results) {
                return results;
            }
            assert!(began.elapsed() < LONG, "{query}: {results:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The queries of docs/fleet.md.
fn documented() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/fleet.md");
    let text = std::fs::read_to_string(path).unwrap();
    let blocks = text.split("```promql\n").skip(1);
    let queries = blocks.map(|block| block.split("```").next().unwrap().trim().to_owned());
    queries.collect()
}

fn program() -> Option<PathBuf> {
    let program = std::env::var_os("MVM_TEST_PROMETHEUS").map(PathBuf::from);
    assert!(
        program.is_some() || std::env::var_os("CI").is_none(),
        "MVM_TEST_PROMETHEUS names the program; `cargo xtask test` sets it"
    );
    program
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
