//! What agents answer, in each of the shapes.

use crate::host::{Host, answering};
use mvm_fake_agent::{Peer, answer_to, inspect, status, well};
use serde_json::{Value, json};

/// An answer as it stands in JSON output: the VM's name in place of `type`.
fn named(vm: &str, mut answer: Value) -> Value {
    let fields = answer.as_object_mut().unwrap();
    fields.remove("type");
    fields.insert("vm".into(), vm.into());
    answer
}

#[test]
fn ping_shows_the_round_trip() {
    let host = Host::with("web", well);
    let ran = host.mvmctl("vm ping web --json").exits(0).silently();
    let pong = ran.json();
    assert_eq!(pong.as_object().unwrap().len(), 2);
    assert_eq!(pong["vm"], "web");
    assert!(pong["rtt_ms"].as_f64().unwrap() > 0.0);
    let ran = host.mvmctl("vm ping web").exits(0).silently();
    assert!(
        ran.stdout.starts_with("NAME  ROUND TRIP\nweb   "),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.ends_with(" ms\n"));
}

#[test]
fn one_named_vm_is_an_object_and_all_are_a_list() {
    let host = Host::with("web", well);
    let one = host.mvmctl("vm status web --json").exits(0).silently();
    assert_eq!(one.json(), named("web", status("healthy")));
    assert!(
        one.stdout.starts_with("{\n  \"vm\": \"web\",\n"),
        "the name comes first"
    );
    let all = host.mvmctl("vm status -o json").exits(0).silently();
    assert_eq!(all.json(), json!([named("web", status("healthy"))]));
    let twice = host.mvmctl("vm status web web --json").exits(0);
    assert_eq!(twice.json(), named("web", status("healthy")));
}

#[test]
fn an_address_stands_for_a_name() {
    let host = Host::with("web", well);
    let address = format!("unix:{}", host.socket("web").display());
    let ran = host.mvmctl(&format!("vm status {address} --json")).exits(0);
    assert_eq!(ran.json(), named(&address, status("healthy")));
}

#[test]
fn unhealthy_is_a_bad_answer() {
    let host = Host::with("web", answering(status("unhealthy")));
    for (arguments, code) in [
        ("vm status web", 1),
        ("vm status web --json", 1),
        ("vm status", 4),
        ("vm ls", 4),
    ] {
        let ran = host.mvmctl(arguments).exits(code).silently();
        assert!(ran.stdout.contains("unhealthy"));
    }
    let starting = Host::with("web", answering(status("starting")));
    starting.mvmctl("vm status web").exits(0);
}

#[test]
fn ls_shows_all_that_there_are() {
    let host = Host::with("web", well)
        .record("web", r#"{"backend":"qemu","state":"running"}"#)
        .own("old", "qemu", "stopped")
        .record("zzz", r#"{"backend":"firecracker","state":"asleep"}"#);
    let ran = host.mvmctl("vm ls").exits(0).silently();
    let expected = "\
NAME  BACKEND      REACHABLE  LIFECYCLE  HEALTH   WORKER
old   qemu         no         stopped    unknown  unknown
web   qemu         yes        running    healthy  idle
zzz   firecracker  no         asleep     unknown  unknown
";
    assert_eq!(ran.stdout, expected);
    let listed = host.mvmctl("vm ls --json").exits(0).json();
    let mut web = named("web", status("healthy"));
    web["backend"] = "qemu".into();
    web["state"] = "not-ours".into();
    web["pool"] = "web".into();
    web["labels"] = json!({});
    web["pinned"] = false.into();
    assert_eq!(listed[1], web);
    assert_eq!(listed[0]["state"], "stopped");
    assert_eq!(listed[0]["error"]["code"], "not-running");
    let wide = host.mvmctl("vm ls -o wide").exits(0).stdout;
    assert!(wide.contains("1 healthy"), "{wide}");
    assert!(
        wide.contains(&format!("unix:{}", host.socket("web").display())),
        "{wide}"
    );
    assert_eq!(
        host.mvmctl("vm ls -o name").exits(0).stdout,
        "old\nweb\nzzz\n"
    );
}

#[test]
fn no_vms_are_an_empty_list() {
    let host = Host::new();
    let ran = host.mvmctl("vm ls --json").exits(0).says("no VMs in");
    assert_eq!(ran.json(), json!([]));
}

#[test]
fn inspect_shows_everything() {
    let host = Host::with("web", well);
    let ran = host.mvmctl("vm inspect web --json").exits(0).silently();
    assert_eq!(ran.json(), named("web", inspect("healthy")));
    let shown = host.mvmctl("vm inspect web").exits(0).stdout;
    for part in [
        "my-service   healthy",
        "disk-usage  yes  42%    ok after 11ms",
        "Kernel     6.1.0-31-cloud-amd64\n",
        "Memory     192 MiB of 241 MiB available\n",
        "Agent      0.1.0 (prod), process 71, 1.2 MiB resident",
        "Snapshots  generation 0, last asleep never, last woken never\n",
        "/etc/mvm/probes.d/bad.json  line 3: unknown field `comand`\n",
    ] {
        assert!(shown.contains(part), "{part:?} not in\n{shown}");
    }
}

#[test]
fn what_found_no_room_in_the_answer_is_counted() {
    let mut crowded = inspect("healthy");
    crowded["integrations_omitted"] = 7.into();
    crowded["probes_omitted"] = 8.into();
    crowded["agent"]["drop_in_errors_omitted"] = 9.into();
    let host = Host::with("web", answering(crowded));
    let shown = host.mvmctl("vm inspect web").exits(0).stdout;
    for count in [7, 8, 9] {
        assert!(shown.contains(&format!("… and {count} more")), "{shown}");
    }
}

#[test]
fn yaml_has_the_shapes_of_json() {
    let host = Host::with("web", answering(json!({"type": "pong"}))).own("old", "qemu", "stopped");
    let ran = host.mvmctl("vm ping -o yaml").exits(0).silently();
    let expected = "\
- vm: old
  error:
    code: not-running
    message: the VM is stopped
    retryable: true
    hint: \"start it: mvmctl vm start old\"
- vm: web
  rtt_ms: ";
    assert!(ran.stdout.starts_with(expected), "{}", ran.stdout);
}

#[test]
fn fields_and_events_of_a_newer_agent_are_passed_over() {
    let mut newer = status("healthy");
    newer["mood"] = "good".into();
    newer["worker"]["gpu"] = json!({"busy": true});
    let host = Host::with("web", answering(newer));
    let ran = host.mvmctl("vm status web --json").exits(0);
    assert_eq!(ran.json(), named("web", status("healthy")));
}

/// An agent whose clock is off by that many seconds, and which was idle for ten when it answered.
fn off_by(secs: i64) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        let now = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(secs);
        let mut answer = answer_to(&request);
        answer["now"] = now.to_string().into();
        let since = now - jiff::SignedDuration::from_secs(10);
        answer["worker"]["since"] = since.to_string().into();
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
        peer.until_closed();
    }
}

#[test]
fn a_clock_that_is_off_is_told_with_what_sets_it() {
    for (secs, words) in [
        // In the middle of what is shown: the round trip is not to be seen.
        (-3630, "1h0m behind"),
        (56 * 366 * 86_400 + 1800, "20496d0h ahead"),
    ] {
        let host = Host::with("web", off_by(secs));
        let line = format!(
            "web's clock is {} this host's: mvmctl vm wake web sets it, as after a restore (personalize \
             commands run, a payload is to be given again)\n",
            words.replace("ahead", "ahead of")
        );
        for command in ["vm status web", "vm status", "vm inspect web"] {
            let ran = host.mvmctl(command).exits(0).silently();
            assert!(ran.stdout.contains(&line), "{command}: {}", ran.stdout);
        }
        let wide = host.mvmctl("vm ls -o wide").exits(0).stdout;
        let cell = format!("{words}: vm wake sets it");
        assert!(wide.contains(&cell), "{wide}");
        for command in ["vm status web --json", "vm inspect web --json"] {
            let json = host.mvmctl(command).exits(0).json();
            let skew = json["clock_skew_ms"].as_i64().unwrap();
            assert!(skew.abs_diff(secs * 1000) < 5000, "{command}: {skew}");
        }
        let listed = host.mvmctl("vm ls --json").exits(0).json();
        assert!(listed[0]["clock_skew_ms"].is_i64(), "{listed}");
        // How long it is idle goes by the guest's own clock.
        let shown = host.mvmctl("vm status web").exits(0).stdout;
        assert!(shown.contains("  idle    10s  "), "{shown}");
    }
    let host = Host::with("web", off_by(0));
    for command in [
        "vm status web",
        "vm status",
        "vm inspect web",
        "vm ls -o wide",
    ] {
        let ran = host.mvmctl(command).exits(0).silently();
        assert!(!ran.stdout.contains("sets it"), "{command}: {}", ran.stdout);
    }
}

#[test]
fn a_round_trip_is_no_skew() {
    let slow = off_by(0);
    let host = Host::with("web", move |peer: &mut Peer| {
        std::thread::sleep(std::time::Duration::from_secs(3));
        slow(peer);
    });
    let ran = host.mvmctl("vm status web --timeout 20s").exits(0);
    assert!(!ran.stdout.contains("sets it"), "{}", ran.stdout);
}

#[test]
fn what_is_from_before_a_freeze_is_shown_as_that() {
    let host = Host::with("web", |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        let mut answer = inspect("starting");
        answer["id"] = request["id"].clone();
        answer["worker"]["load1"] = 0.84.into();
        answer["worker"]["load1_counted"] = 0.03.into();
        answer["integrations"][0]["last_check"] = Value::Null;
        answer["probes"][0]["stale"] = true.into();
        peer.answer(&answer);
        peer.until_closed();
    });
    let shown = host.mvmctl("vm inspect web").exits(0).stdout;
    for part in [
        "my-service   starting",
        "not yet",
        "disk-usage  stale  42%",
        "; the guest's own work: 0.03\n",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = host.mvmctl("vm inspect web --json").exits(0).json();
    assert_eq!(json["probes"][0]["stale"], true);
    assert_eq!(json["worker"]["load1_counted"], 0.03);
}
