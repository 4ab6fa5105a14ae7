//! The agent in a guest, seen from the host over vsock.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_client::{Deadlines, Endpoint, Session, Watcher};
use mvm_guest_tests::{SOON, TestVm, eventually};
use mvm_protocol::answer::{Answer, AnswerFrame, Change};
use mvm_protocol::status::Health;
use mvm_protocol::{Decoder, Frame};
use std::io::{Read as _, Write as _};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::time::timeout;

/// Byte by byte as the protocol has it, without our own client.
#[test]
fn status_comes_over_connect_52() {
    let Some(vm) = TestVm::new() else { return };
    let mut stream = vm.raw_connection();
    let body = br#"{"type":"status","id":7}"#;
    let length = u32::try_from(body.len()).unwrap();
    stream.write_all(&length.to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut header = [0; 4];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&"status".into(), &7.into())
    );
    assert_eq!(answer["lifecycle"], "running");
    let web = &answer["integrations"][1];
    assert_eq!(
        (&web["name"], &web["health"]),
        (&"web".into(), &"healthy".into())
    );
}

#[tokio::test]
async fn inspect_shows_the_guest_and_not_the_host() {
    let Some(vm) = TestVm::new() else { return };
    let inspect = vm.session().await.inspect().await.unwrap();
    assert_eq!(inspect.system.hostname, "story");
    assert_eq!(inspect.system.cpus, 1);
    assert!(inspect.system.memory_total_bytes < 128 << 20);
    assert!(
        inspect.agent.drop_in_errors.is_empty(),
        "{:?}",
        inspect.agent
    );
    let disk = inspect
        .probes
        .iter()
        .find(|probe| probe.name == "disk")
        .unwrap();
    let value = disk.value.as_str().unwrap();
    let percent: u32 = value.strip_suffix('%').unwrap().parse().unwrap();
    assert!(disk.ok && percent <= 100, "{disk:?}");
}

#[tokio::test]
async fn a_service_that_dies_is_seen_to_and_so_is_its_return() {
    let Some(vm) = TestVm::new() else { return };
    let (status, mut watch) = Watcher::start(vm.session().await, Duration::from_secs(2))
        .await
        .unwrap();
    let web = status
        .integrations
        .iter()
        .find(|i| i.name == "web")
        .unwrap();
    assert_eq!(web.health, Health::Healthy);
    vm.sh(": >/run/web-down; killall httpd").await;
    assert_eq!(turn(&mut watch, "web", Health::Unhealthy).await, Some(1));
    vm.sh("rm /run/web-down").await;
    assert_eq!(turn(&mut watch, "web", Health::Healthy).await, Some(0));
}

/// Waits for an integration's event with that health; what its last check exited with.
async fn turn(watch: &mut Watcher, name: &str, health: Health) -> Option<i32> {
    let turned = async {
        loop {
            let event = watch.next().await.unwrap().expect("the watch goes on");
            if let Change::Integration { integration } = event.change
                && integration.name == name
                && integration.health == health
            {
                return integration.last_check.expect("a check").exit_code;
            }
        }
    };
    timeout(SOON, turned).await.expect("an event")
}

#[tokio::test]
async fn a_hung_check_fails_and_leaves_nothing_behind() {
    let Some(vm) = TestVm::new() else { return };
    let (hung, sleepers) = tokio::join!(
        vm.check("hung"),
        // Both are there while it hangs: the one that waits, and the one in a session of its own.
        eventually("both sleep", async || (vm.value("sleepers").await == "2")
            .then_some(())),
    );
    let () = sleepers;
    assert_eq!(hung.health, Health::Unhealthy);
    let last = hung.last_check.unwrap();
    assert!(last.timed_out && last.output.contains("begun"), "{last:?}");
    assert_eq!(vm.value("sleepers").await, "0");
}

#[tokio::test]
async fn init_brings_a_killed_agent_back() {
    let Some(vm) = TestVm::new() else { return };
    let before = vm.session().await.inspect().await.unwrap().agent;
    vm.kill_agent().await;
    vm.wait_for_agent(1);
    let after = vm.session().await.inspect().await.unwrap().agent;
    assert_ne!(before.pid, after.pid);
    assert_eq!(after.version, before.version);
}

#[tokio::test]
async fn an_agent_that_comes_up_tells_the_host() {
    let Some(vm) = TestVm::new() else { return };
    let listener = vm.listen_for_notice();
    vm.kill_agent().await;
    notice_at(&listener).await;
}

/// The connect over vsock fails after two seconds if nobody listens there.
#[tokio::test]
async fn a_host_that_listens_late_is_told_too() {
    let Some(vm) = TestVm::new() else { return };
    vm.kill_agent().await;
    vm.wait_for_agent(1);
    let said = "notify_port 1052: Connection timed out (os error 110); tried again";
    eventually("why nobody was told", async || {
        vm.console().contains(said).then_some(())
    })
    .await;
    let listener = vm.listen_for_notice();
    notice_at(&listener).await;
    eventually("that it was taken", async || {
        let taken = "notify_port 1052: a host has taken it";
        vm.console().contains(taken).then_some(())
    })
    .await;
    assert_eq!(vm.console().matches(said).count(), 1, "each error once");
}

async fn notice_at(listener: &UnixListener) {
    let (mut stream, _) = timeout(SOON, listener.accept())
        .await
        .expect("a notice")
        .unwrap();
    let mut bytes = Vec::new();
    // To the end: it says one thing and closes.
    timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .expect("its end")
        .unwrap();
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    let Some(Frame::Json(body)) = decoder.next_frame().unwrap() else {
        panic!("no frame in {bytes:?}");
    };
    let frame: AnswerFrame = serde_json::from_slice(&body).unwrap();
    assert!(matches!(frame.answer, Answer::Status(_)), "{frame:?}");
    assert!(!decoder.is_mid_frame() && decoder.next_frame().unwrap().is_none());
}

/// What the agent refuses by who dials it. Whether there is vsock loopback at all in the guest shows
/// at a port that nobody listens on.
#[tokio::test]
async fn a_program_in_the_guest_is_refused() {
    let Some(vm) = TestVm::new() else { return };
    for address in ["1 52", "self 52"] {
        let said = vm.sh(&format!("guest-probe dial {address}")).await;
        assert!(
            said.starts_with("connected, then closed without a byte"),
            "{address}: {said}"
        );
    }
    let said = vm.sh("guest-probe dial 1 53").await;
    assert!(
        said.starts_with("not connected: Connection reset"),
        "{said}"
    );
}

/// Not even to be refused: it has no such sockets. A service of the guest's init has, as above.
#[tokio::test]
async fn what_the_agent_starts_dials_nobody_and_listens_nowhere() {
    let Some(vm) = TestVm::new() else { return };
    for probe in ["dial-loopback", "dial-host", "listen"] {
        let said = vm.value(probe).await;
        assert!(
            said.contains("Address family not supported by protocol"),
            "{probe}: {said}"
        );
    }
}

#[tokio::test]
async fn an_unplugged_device_takes_its_connections_along() {
    let Some(mut vm) = TestVm::new() else { return };
    let before: u32 = vm.value("agent-sockets").await.parse().unwrap();
    let mut watches = Vec::new();
    for _ in 0..20 {
        let watch = Watcher::start(vm.session().await, Duration::from_secs(60)).await;
        watches.push(watch.unwrap());
    }
    // Of a connection that was closed the agent learns when its turn comes.
    eventually("20 sockets more", async || {
        let now: u32 = vm.value("agent-sockets").await.parse().ok()?;
        (now == before + 20).then_some(())
    })
    .await;
    vm.unplug();
    vm.plug();
    eventually("no more sockets than before", async || {
        let now: u32 = vm.value("agent-sockets").await.parse().ok()?;
        (now == before).then_some(())
    })
    .await;
    let status = vm.session().await.status().await.unwrap();
    assert!(!status.integrations.is_empty());
}

/// A client is told at once, not after a deadline.
#[tokio::test]
async fn nobody_listens_on_another_port() {
    let Some(vm) = TestVm::new() else { return };
    let endpoint = Endpoint::unix(vm.socket()).with_port(53);
    let error = Session::connect(&endpoint, &Deadlines::default()).await;
    let error = error.map(|_| ()).unwrap_err();
    assert!(
        matches!(error, mvm_client::Error::NobodyListening { .. }),
        "{error:?}"
    );
}
