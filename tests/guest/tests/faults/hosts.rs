//! More hosts, slower ones and more of their output than there is room for.

use crate::{agent_pid, shell, write_integrations};
use mvm_client::dev::Output;
use mvm_client::{Deadlines, Endpoint, Session};
use mvm_guest_tests::{SOON, TestVm, eventually};
use mvm_protocol::lifecycle::{Outcome, SleepPrep, Wake};
use mvm_protocol::signal::Signal;
use mvm_protocol::status::Health;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The agent's number of descriptors, its ticks of CPU time, and its resident memory in KB.
async fn used(vm: &TestVm, agent: u32) -> [u64; 3] {
    let script = format!(
        "cd /proc/{agent}; ls fd | wc -l; awk '{{print $14 + $15}}' stat; \
         sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' status"
    );
    let numbers = vm.sh(&script).await;
    let mut numbers = numbers.split_whitespace().map(|it| it.parse().unwrap());
    [(); 3].map(|()| numbers.next().unwrap())
}

async fn sleeps_and_wakes(session: &mut Session) {
    let ready = session.sleep_prep(SleepPrep::default()).await.unwrap();
    let wake = Wake {
        token: Some(ready.token),
        ..Wake::default()
    };
    let awake = session.wake(wake).await.unwrap();
    let failed = |it: &&mvm_protocol::lifecycle::Step| it.outcome == Outcome::Failed;
    assert_eq!(awake.steps.iter().find(failed), None);
}

async fn healthy(session: &mut Session) {
    eventually("it is healthy", async || {
        let status = session.status().await.unwrap();
        let web = status
            .integrations
            .into_iter()
            .find(|it| it.name == "web")?;
        (web.health == Health::Healthy).then_some(())
    })
    .await;
}

fn frame(body: &str) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length, body.as_bytes()].concat()
}

/// What a host gets to its ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Pong,
    /// `too-many-connections`
    Refused,
    /// Closed, or reset, without a word.
    Closed,
}

fn answer(stream: &mut UnixStream) -> Answered {
    let mut header = [0; 4];
    let read = stream.read_exact(&mut header).and_then(|()| {
        let mut body = vec![0; u32::from_be_bytes(header) as usize];
        stream.read_exact(&mut body)?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    });
    match read {
        Ok(body) if body.contains(r#""type":"pong""#) => Answered::Pong,
        Ok(body) if body.contains("too-many-connections") => Answered::Refused,
        Ok(body) => panic!("{body}"),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer"),
        Err(_) => Answered::Closed,
    }
}

/// 600 dial before any of them is answered, of which 512 can be served.
#[tokio::test]
async fn of_six_hundred_at_once_as_many_are_served_as_may_and_the_others_are_refused() {
    let Some(vm) = TestVm::new() else { return };
    let agent = agent_pid(&vm).await;
    let before = used(&vm, agent).await;
    let mut hosts: Vec<UnixStream> = (0..600).map(|_| vm.dial()).collect();
    let mut answers: Vec<Answered> = Vec::new();
    for host in &mut hosts {
        let mut line = [0; 6];
        // The backend says OK before the agent has seen it, or closes.
        let shaken = host.read_exact(&mut line);
        // Who is refused is told so before it asks, and may find the connection closed.
        let _ = host.write_all(&frame(r#"{"type":"ping"}"#));
        answers.push(shaken.map_or(Answered::Closed, |()| answer(host)));
    }
    let count = |which| answers.iter().filter(|it| **it == which).count();
    let [served, refused, closed] =
        [Answered::Pong, Answered::Refused, Answered::Closed].map(count);
    eprintln!("600 hosts: {served} served, {refused} refused, {closed} closed");
    assert_eq!(served, 512);
    assert!(refused > 0);
    // Who is served stays so.
    for (host, _) in hosts
        .iter_mut()
        .zip(&answers)
        .filter(|it| *it.1 == Answered::Pong)
    {
        host.write_all(&frame(r#"{"type":"ping"}"#)).unwrap();
        assert_eq!(answer(host), Answered::Pong);
    }
    drop(hosts);
    eventually("all are closed", async || {
        (used(&vm, agent).await[0] <= before[0]).then_some(())
    })
    .await;
    assert_eq!(vm.check("web").await.health, Health::Healthy);
    assert_eq!(agent_pid(&vm).await, agent);
}

/// How long a host may take for its first frame, and between two pieces of another: docs/protocol.md.
const LIMIT: Duration = Duration::from_secs(10);

/// A byte a second of the first frame; and of a later one nothing more than its beginning.
#[tokio::test]
async fn hosts_that_are_too_slow_are_cut_off_and_nobody_else_notices() {
    let Some(vm) = TestVm::new() else { return };
    let mut slow: Vec<UnixStream> = (0..20).map(|_| vm.raw_connection()).collect();
    let dialled = Instant::now();
    let mut stalled = vm.raw_connection();
    stalled.write_all(&frame(r#"{"type":"ping"}"#)).unwrap();
    assert_eq!(answer(&mut stalled), Answered::Pong);
    stalled
        .write_all(&frame(r#"{"type":"ping"}"#)[..5])
        .unwrap();
    let stalled_since = Instant::now();
    let bytes = frame(&json!({"type": "ping", "id": 1}).to_string());
    let closed = |stream: &mut UnixStream| {
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        match stream.read(&mut [0; 16]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    let mut cut_off = Vec::new();
    let mut stalled_for = None;
    let mut sent = 0;
    while !slow.is_empty() || stalled_for.is_none() {
        assert!(
            dialled.elapsed() < LIMIT + SOON,
            "{} are not cut off",
            slow.len()
        );
        let second = usize::try_from(dialled.elapsed().as_secs()).unwrap();
        if sent <= second && sent < bytes.len() - 1 {
            for stream in &mut slow {
                let _ = stream.write_all(&bytes[sent..=sent]);
            }
            sent += 1;
        }
        let asked = Instant::now();
        vm.session().await.ping().await.unwrap();
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
        slow.retain_mut(|stream| {
            let closed = closed(stream);
            if closed {
                cut_off.push(dialled.elapsed());
            }
            !closed
        });
        if stalled_for.is_none() && closed(&mut stalled) {
            stalled_for = Some(stalled_since.elapsed());
        }
    }
    let earliest = cut_off.first().copied().unwrap();
    let latest = cut_off.last().copied().unwrap();
    eprintln!(
        "a byte a second: cut off after {earliest:?} to {latest:?}; stalled: {stalled_for:?}"
    );
    // When a host has dialled the agent knows as soon as the guest has seen it.
    assert!(earliest > Duration::from_secs(9), "{earliest:?}");
    assert!(
        stalled_for.unwrap() > Duration::from_secs(9),
        "{stalled_for:?}"
    );
    assert_eq!(vm.check("web").await.health, Health::Healthy);
}

/// As many hosts as the agent has descriptors for; then fewer than it has open.
#[tokio::test]
async fn an_agent_without_descriptors_refuses_hosts_and_does_all_else() {
    let Some(vm) = TestVm::dev() else { return };
    let agent = agent_pid(&vm).await;
    let limit = async |count: u32| {
        vm.sh(&format!("guest-probe descriptors {agent} {count}"))
            .await;
    };
    let mut session = vm.session().await;
    let before = used(&vm, agent).await;
    limit(80).await;
    let mut held = Vec::new();
    loop {
        let mut host = vm.raw_connection();
        host.write_all(&frame(r#"{"type":"ping"}"#)).unwrap();
        match answer(&mut host) {
            Answered::Pong => held.push(host),
            other => break assert_eq!(other, Answered::Refused),
        }
        assert!(held.len() < 80, "so many are served");
    }
    let refused = session.exec(shell("true")).await.map(|_| ()).unwrap_err();
    assert!(
        refused.to_string().contains("Too many open files"),
        "{refused}"
    );
    let checked = eventually("checks since", async || {
        let web = session.status().await.unwrap().integrations.into_iter();
        let web = web.into_iter().find(|it| it.name == "web")?;
        (web.checks > 20).then_some(web)
    })
    .await;
    assert_eq!(
        (checked.failures, checked.health),
        (0, Health::Healthy.into())
    );
    sleeps_and_wakes(&mut session).await;
    healthy(&mut session).await;

    // Nothing at all can be opened. What is known stays, and nothing spins.
    limit(8).await;
    let refused = session.reload().await.unwrap_err();
    assert!(
        refused.to_string().contains("Too many open files"),
        "{refused}"
    );
    let ticks = used(&vm, agent).await[1];
    let began = session.status().await.unwrap().uptime_secs;
    let last = eventually("a check that cannot be started", async || {
        let status = session.status().await.unwrap();
        assert_eq!(status.integrations.len(), 2, "{status:?}");
        let web = status
            .integrations
            .into_iter()
            .find(|it| it.name == "web")?;
        assert_eq!(web.health, Health::Healthy);
        let last = web.last_check?;
        (status.uptime_secs > began + 2.0 && last.exit_code.is_none()).then_some(last)
    })
    .await;
    assert!(last.output.contains("Too many open files"), "{last:?}");
    let ticks = used(&vm, agent).await[1] - ticks;
    // Of some 200 in these seconds; the questions cost most.
    assert!(ticks < 150, "it spins: {ticks} ticks");
    limit(1024).await;
    drop(held);
    let web = eventually("a check again", async || {
        let mut session = Session::connect(&Endpoint::unix(vm.socket()), &Deadlines::default())
            .await
            .ok()?;
        let status = session.status().await.ok()?;
        let web = status
            .integrations
            .into_iter()
            .find(|it| it.name == "web")?;
        (web.last_check.as_ref()?.exit_code == Some(0)).then_some(web)
    })
    .await;
    assert_eq!(web.health, Health::Healthy);
    eventually("no descriptor more than before", async || {
        (used(&vm, agent).await[0] <= before[0]).then_some(())
    })
    .await;
    assert_eq!(agent_pid(&vm).await, agent);
}

/// What an agent may have more of memory while others flood it, in KB: some pipes' worth for each.
const MORE_KB: u64 = 4096;

/// A command that prints without end, until it is over; by which signal it ended then. A connection that is
/// dropped with much on its way is kept by vhost-device-vsock 0.3.0 now and then, and its command goes on.
async fn flood(socket: PathBuf, read: bool, mut over: watch::Receiver<bool>) -> Option<String> {
    let session = Session::connect(&Endpoint::unix(socket), &Deadlines::default()).await;
    let mut session = session.unwrap();
    let mut over_too = over.clone();
    let command = shell("cat /dev/zero & exec cat /dev/zero >&2");
    let (mut input, mut output) = session.exec(command).await.unwrap().split();
    let end = async {
        over.wait_for(|over| *over).await.unwrap();
        input.signal(Signal::new("KILL").unwrap()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let exited = async {
        if !read {
            over_too.wait_for(|over| *over).await.unwrap();
        }
        loop {
            if let Output::Exited(exited) = output.next().await.unwrap() {
                return exited.signal;
            }
        }
    };
    tokio::select! {
        () = end => unreachable!(),
        signal = exited => signal,
    }
}

#[tokio::test]
async fn floods_of_a_check_and_of_commands_take_no_memory_and_hold_nobody_up() {
    let Some(vm) = TestVm::dev() else { return };
    let agent = agent_pid(&vm).await;
    let drop_in = json!({
        "name": "flood",
        "health_cmd": "exec cat /dev/zero",
        "health_interval_secs": 86_400,
        "health_timeout_secs": 4,
    });
    let before = used(&vm, agent).await;
    write_integrations(&vm, &[drop_in]).await;
    // Half of them is read, half is not before it is over.
    let (over, _) = watch::channel(false);
    let floods: Vec<_> = (0..6)
        .map(|number| tokio::spawn(flood(vm.socket(), number % 2 == 0, over.subscribe())))
        .collect();
    let mut slowest = Duration::ZERO;
    let mut most = 0;
    let flood = eventually("the check's end", async || {
        let asked = Instant::now();
        let status = vm.session().await.status().await.unwrap();
        slowest = slowest.max(asked.elapsed());
        most = most.max(used(&vm, agent).await[2]);
        let flood = status
            .integrations
            .into_iter()
            .find(|it| it.name == "flood")?;
        flood.last_check
    })
    .await;
    assert!(flood.timed_out && flood.truncated, "{flood:?}");
    assert!(flood.output.len() <= 4096 * 3, "{}", flood.output.len());
    over.send_replace(true);
    for flood in floods {
        assert_eq!(flood.await.unwrap().as_deref(), Some("KILL"));
    }
    eprintln!(
        "floods: the slowest status took {slowest:?}, {} KB before, {most} KB at most",
        before[2]
    );
    assert!(most < before[2] + MORE_KB, "{before:?}, {most} KB at most");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    eventually("nothing of it is left", async || {
        let left = vm.sh("ps -o args | grep -c '^cat /dev/zero'; true").await;
        (left == "0\n").then_some(())
    })
    .await;
    assert_eq!(agent_pid(&vm).await, agent);
}
