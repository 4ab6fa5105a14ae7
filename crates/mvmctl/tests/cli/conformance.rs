//! `mvmctl conformance`: what it prints of an agent that conforms and of one that does not.

use crate::host::Host;
use mvm_fake_agent::{FakeAgent, Fault, Model};

fn agent(fault: Option<Fault>) -> FakeAgent {
    let model = Model::new(fault);
    FakeAgent::start(move |peer| model.serve(peer))
}

fn command(agent: &FakeAgent, more: &str) -> String {
    format!("conformance --socket {} {more}", agent.path().display())
}

#[test]
fn an_agent_that_conforms() {
    let (host, agent) = (Host::new(), agent(None));
    let only = "--only requests/ping,sleep/ready,answers/hello,handshake/connect";
    let ran = host.mvmctl(&command(
        &agent,
        &format!("--disposable --own-socket {only}"),
    ));
    let ran = ran.exits(0);
    let last: Vec<_> = ran.stdout.lines().rev().take(3).collect();
    assert_eq!(
        last,
        [
            "The agent conforms.",
            "recommended: 0 passed, 0 failed, 0 not run",
            "required: 4 passed, 0 failed, 0 not run",
        ]
    );
    let ran = host.mvmctl(&command(&agent, only)).exits(0);
    assert!(
        ran.stdout
            .starts_with("not run  1: the socket may be a VMM's\nnot run  1: the guest"),
        "{}",
        ran.stdout
    );
}

#[test]
fn an_agent_that_does_not() {
    let (host, agent) = (Host::new(), agent(Some(Fault::AnyTokenWakes)));
    let command = command(
        &agent,
        "--disposable --only sleep/wrong-token,answers/hello",
    );
    let ran = host.mvmctl(&command).exits(1);
    assert!(
        ran.stdout
            .starts_with("FAILED   required  sleep/wrong-token: "),
        "{}",
        ran.stdout
    );
    let ran = host.mvmctl(&format!("{command} --json")).exits(1);
    let report = ran.json();
    assert_eq!(report["verdict"], "fails");
    assert_eq!(report["required"]["failed"], 1);
    let check = &report["checks"][1];
    assert_eq!(check["name"], "sleep/wrong-token");
    assert_eq!(check["outcome"], "failed");
    assert!(check["why"].as_str().unwrap().contains("wrong-token"));
    let ran = host.mvmctl(&format!("{command} -o name")).exits(1);
    assert_eq!(ran.stdout, "sleep/wrong-token\n");
}

#[test]
fn a_vm_of_this_host_is_not_tried_by_accident() {
    let model = Model::new(None);
    let host = Host::with("web", move |peer| model.serve(peer));
    let socket = host.socket("web");
    let command = format!(
        "conformance --socket {} --only answers/hello",
        socket.display()
    );
    host.mvmctl(&command).exits(2).says("--disposable");
    // Nor by another path to it.
    let link = host.path().join("link.sock");
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    let by_link = format!(
        "conformance --socket {} --only answers/hello",
        link.display()
    );
    host.mvmctl(&by_link).exits(2).says("socket of a VM");
    assert_eq!(host.accepted("web"), 0);
    host.mvmctl(&format!("{command} --disposable")).exits(0);
    // Commands in a guest are a further step.
    host.mvmctl(&format!("{command} --dev"))
        .exits(2)
        .says("--disposable");
}

#[test]
fn what_can_be_tried_is_listed() {
    let host = Host::new();
    let ran = host.mvmctl("conformance --list").exits(0);
    assert!(
        ran.stdout.contains("\nrequired     sleep/lease: "),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stdout.contains("recommended  requests/id-null: "),
        "{}",
        ran.stdout
    );
    host.mvmctl("conformance").exits(2).says("--socket");
    let ran = host.mvmctl("conformance --socket /x --only nothing/such");
    ran.exits(2).says("no check is called `nothing/such`");
    host.mvmctl("conformance --socket /no/such.sock")
        .exits(3)
        .says("no socket at");
}
