//! What agents answer, in each of the shapes.

use crate::host::{Host, answering};
use mvm_fake_agent::{inspect, status, well};
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
