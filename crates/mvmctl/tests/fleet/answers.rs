//! What is answered, when, and to whom.

use crate::server::{Fleet, LONG};
use mvm_fake_fleet::{Behaviour, Guests};
use rustix::process::Signal;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const IDLE: Behaviour = Behaviour::Idle(Duration::from_secs(100));

#[test]
fn a_fleet_as_numbers() {
    let fleet = Fleet::new()
        .and("web-1", IDLE)
        .and("web-2", Behaviour::Busy)
        .and("web-3", Behaviour::Asleep)
        .and("web-4", Behaviour::Dead)
        .and("db", Behaviour::Starting);
    let policy = fleet.write(
        "fleet.toml",
        "[[pool]]\nname = \"web\"\nspare = 1\nmax = 9\n",
    );
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    let web = server.get("/v1/pools/web");
    assert_eq!(web.status, 200);
    assert_eq!(
        web.body.trim_end(),
        r#"{"pool":"web","vms":4,"busy":1,"idle":1,"starting":0,"paused":0,"asleep":1,"stopped":0,"unknown":1,"complete":true,"wanted":3}"#
    );
    let all = server.get("/v1/fleet");
    assert_eq!((all.status, &all.json()["vms"]), (200, &5.into()));
    assert_eq!(all.json()["pools"][0]["starting"], 1);
    let metrics = server.get("/metrics");
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(
        metrics
            .body
            .contains("mvm_fleet_vms{pool=\"web\",state=\"unknown\"} 1\n")
    );
    assert!(
        metrics
            .body
            .contains("mvm_agent_up{pool=\"web\",vm=\"web-4\"} 0\n")
    );
    assert!(
        metrics.body.contains("mvm_probe_value{"),
        "it was inspected, too"
    );
    assert!(metrics.body.contains("process_resident_memory_bytes "));
    let open = server.request(
        "GET",
        "/metrics",
        "Accept: application/openmetrics-text\r\n",
    );
    assert!(
        open.header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    assert!(open.body.ends_with("# EOF\n"));
    let sd = server.get("/sd");
    assert_eq!(sd.header("content-type"), Some("application/json"));
    assert_eq!(sd.json()[0]["targets"][0], server.address.as_str());
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn a_server_is_discovered_where_it_can_be_dialled() {
    let fleet = Fleet::new();
    let server = fleet.serve_on("0.0.0.0:0", "--insecure").ready();
    let (_, port) = server.address.rsplit_once(':').unwrap();
    let discovered = |head: &str| {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
            .write_all(format!("GET /sd HTTP/1.0\r\n{head}\r\n").as_bytes())
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for (head, expected) in [
        (
            "Host: host-a.example\r\n",
            format!("[\"host-a.example:{port}\"]"),
        ),
        (
            "Host: host-a.example:80\r\n",
            "[\"host-a.example:80\"]".to_owned(),
        ),
        ("", "HTTP/1.0 400".to_owned()),
        ("", "--advertise HOST:PORT".to_owned()),
    ] {
        let answer = discovered(head);
        assert!(answer.contains(&expected), "{head:?}: {answer}");
    }
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let policy = fleet.write("fleet.toml", "[[pool]]\nname = \"db\"\n");
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    for (method, path, status, hint) in [
        ("GET", "/", 404, "/metrics"),
        ("GET", "/v1/pools/", 404, "there are db, web"),
        // One that the policy names is there without VMs.
        ("GET", "/v1/pools/wbe", 404, "there are db, web"),
        ("GET", "/v1/pools/web/x", 404, "/v1/pools/NAME"),
        ("POST", "/metrics", 405, "GET"),
        ("DELETE", "/v1/fleet", 405, "GET"),
    ] {
        let answer = server.request(method, path, "");
        assert_eq!(answer.status, status, "{method} {path}");
        let told = answer.json()["hint"].as_str().unwrap().to_owned();
        assert!(told.contains(hint), "{method} {path}: {told}");
    }
    let head = server.request("HEAD", "/v1/fleet", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn until_all_have_answered_or_failed_no_number_is_given() {
    let fleet = Fleet::new()
        .and("web-1", IDLE)
        .and("web-2", Behaviour::Stalled)
        .and("db-1", IDLE);
    let mut server = fleet.serve("");
    // Within the deadline of the stalled one.
    server.until("db", |body| body["complete"] == true);
    let web = server.get("/v1/pools/web");
    assert_eq!((web.status, &web.json()["complete"]), (503, &false.into()));
    assert_eq!(server.get("/v1/fleet").status, 503);
    assert_eq!(server.get("/readyz").status, 503);
    assert_eq!(server.get("/healthz").status, 200);
    assert!(
        server
            .get("/metrics")
            .body
            .contains("mvm_fleet_view_complete 0\n")
    );
    server = server.ready();
    let web = server.get("/v1/pools/web");
    assert_eq!((web.status, &web.json()["unknown"]), (200, &1.into()));
    // One that comes makes it incomplete again, and unknown is what it is until it has answered.
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn vms_come_change_and_go() {
    let mut fleet = Fleet::new();
    let server = fleet.serve("").ready();
    assert_eq!(server.get("/v1/pools/web").status, 404);
    fleet.agents.set("web-1", IDLE);
    server.until("web", |body| body["idle"] == 1);
    fleet.agents.set("web-1", Behaviour::Busy);
    server.until("web", |body| body["busy"] == 1);
    fleet.agents.set("web-1", Behaviour::Asleep);
    server.until("web", |body| body["asleep"] == 1);
    fleet.agents.set("web-1", IDLE);
    server.until("web", |body| body["idle"] == 1);
    fleet.agents.set("web-1", Behaviour::Dead);
    server.until("web", |body| body["unknown"] == 1);
    fleet.agents.set("web-1", Behaviour::Gone);
    server.until("web", |body| body.get("error").is_some());
}

#[test]
fn whoever_has_no_token_is_told_nothing() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let token = fleet.write("token", "s3cret\n");
    let server = fleet.serve(&format!("--bearer-token-file {token}")).ready();
    for header in [
        "",
        "Authorization: Bearer s3cres\r\n",
        "Authorization: Basic s3cret\r\n",
    ] {
        for path in ["/metrics", "/sd", "/v1/fleet", "/v1/pools/web", "/nothing"] {
            let answer = server.request("GET", path, header);
            assert_eq!(answer.status, 401, "{path} {header}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let shown = "Authorization: Bearer s3cret\r\n";
    assert_eq!(server.request("GET", "/v1/fleet", shown).status, 200);
    assert_eq!(server.get("/healthz").status, 200);
    // Another token, from the next HUP on.
    fleet.write("token", "other");
    server.signal(Signal::HUP);
    let began = Instant::now();
    while server.request("GET", "/v1/fleet", shown).status != 401 {
        assert!(began.elapsed() < LONG);
    }
}

#[test]
fn a_policy_that_makes_no_sense_is_refused_and_the_old_one_stands() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let policy = fleet.write("fleet.toml", "[[pool]]\nname = \"web\"\nmin = 3\n");
    let mut server = fleet.serve(&format!("--policy {policy}")).ready();
    assert_eq!(server.get("/v1/pools/web").json()["wanted"], 3);
    for _ in 0..4 {
        // However often: it is no request to end.
        fleet.write("fleet.toml", "[[pool]]\nname = \"web\"\nmni = 4\nmxa = 5\n");
        server.signal(Signal::HUP);
        // All that is wrong, a line each.
        for (line, field) in [(3, "mni"), (4, "mxa")] {
            let said = server.says(field);
            let told = format!("fleet.toml:{line}: pool `web`: `{field}`");
            assert!(
                said.contains(&told) && said.matches("pool").count() == 1,
                "{said}"
            );
        }
        server.says("stays so");
    }
    assert_eq!(server.get("/v1/pools/web").json()["wanted"], 3);
    fleet.write("fleet.toml", "[[pool]]\nname = \"web\"\nmin = 4\n");
    server.signal(Signal::HUP);
    server.until("web", |body| body["wanted"] == 4);
    let refused = fleet
        .mvmctl("fleet serve --policy /nowhere")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1), "it is served already");
}

#[test]
fn one_serves_and_ends_when_asked() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let mut server = fleet.serve("").ready();
    let second = fleet
        .mvmctl("fleet serve --listen 127.0.0.1:0")
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains("serves this fleet already") && said.contains("hint"),
        "{said}"
    );
    // A request that is under way is answered, an idle connection is closed.
    let mut idle = TcpStream::connect(&server.address).unwrap();
    server.signal(Signal::TERM);
    server.notified("STOPPING=1");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    idle.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    drop(fleet.serve("").ready());
}

#[test]
fn beyond_loopback_nobody_listens_by_mistake() {
    let fleet = Fleet::new();
    let refused = fleet
        .mvmctl("fleet serve --listen 0.0.0.0:0")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("--insecure") && said.contains("--tls-cert"),
        "{said}"
    );
}

#[test]
fn clients_that_misbehave_cost_the_others_nothing() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let server = fleet.serve("").ready();
    let connect = || {
        let stream = TcpStream::connect(&server.address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    };
    let slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(b"GET /metr").unwrap();
            stream
        })
        .collect();
    let mut huge = connect();
    let _ = huge.write_all(b"GET / HTTP/1.1\r\nX: ");
    let _ = huge.write_all(&vec![b'x'; 64 * 1024]);
    let mut answer = String::new();
    let _ = huge.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let mut garbage = connect();
    garbage
        .write_all(b"\x16\x03\x01\x02\x00\x01\xff\xff\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let _ = garbage.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    assert_eq!(server.get("/v1/fleet").status, 200);
    drop(slow);
}

#[test]
fn whatever_guests_write_the_exposition_is_sound() {
    let guests = Guests {
        pool: None,
        is_hostile: true,
    };
    let fleet = Fleet::of(guests)
        .and("web-1", IDLE)
        .and("web-2", Behaviour::Garbage);
    let server = fleet.serve("").ready();
    let metrics = server.get("/metrics").body;
    for line in metrics.lines() {
        assert!(
            line.starts_with("# ") || line.starts_with("mvm_") || line.starts_with("process_"),
            "{line:?}"
        );
        assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line:?}");
    }
    assert!(metrics.contains("mvm_agent_up{pool=\"web\",vm=\"web-2\"} 0\n"));
    assert_eq!(metrics.matches("mvm_integration_health{").count(), 3);
}
