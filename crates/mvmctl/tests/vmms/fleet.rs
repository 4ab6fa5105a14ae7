//! `mvmctl fleet serve --policy` from end to end: what it does to VMs, whom it lets be, which connections
//! it holds, and what is left when it is killed.

use super::test_host::{Backend, LONG, TestHost};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// A policy that is being served.
pub(crate) struct Fleet<'a> {
    host: &'a TestHost,
    server: Child,
    /// Where it answers.
    address: String,
}

impl Drop for Fleet<'_> {
    /// Of a story that has failed.
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What the last of them has said.
fn said(host: &TestHost) -> String {
    fs::read_to_string(host.path("home/fleet.log")).unwrap_or_default()
}

impl<'a> Fleet<'a> {
    pub(crate) fn serve(host: &'a TestHost, policy: &str) -> Self {
        let file = host.path("home/fleet.toml");
        fs::write(&file, policy).unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_mvmctl"))
            .args(["fleet", "serve", "--listen", "127.0.0.1:0", "--policy"])
            .arg(file)
            .env("MVM_HOME", host.path("home"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(host.path("home/fleet.log")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LONG;
        let address = loop {
            let said = said(host);
            let line = said.lines().find_map(|line| line.split_once("serving on "));
            if let Some((_, address)) = line {
                break address.trim_start_matches("http://").to_owned();
            }
            let is_there = server.try_wait().unwrap().is_none();
            assert!(is_there && Instant::now() < deadline, "{said}");
            sleep(Duration::from_millis(5));
        };
        Self {
            host,
            server,
            address,
        }
    }

    /// Ends it in order, and gives what it said.
    pub(crate) fn end(mut self) -> String {
        let pid = self.server.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.unwrap().success());
        let ended = self.server.wait().unwrap();
        let said = said(self.host);
        assert!(ended.success(), "{ended}: {said}");
        said
    }

    /// Kills it, and gives what it said.
    pub(crate) fn kill(mut self) -> String {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        said(self.host)
    }

    /// Waits until it says that.
    fn until_says(&self, path: &str, word: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            let said = self.get(path);
            if said.contains(word) {
                return;
            }
            assert!(Instant::now() < deadline, "not {word}: {said}");
            sleep(Duration::from_millis(50));
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&BTreeMap<String, String>) -> bool) {
        until(self.host, what, is_so);
    }
}

/// As the records of all VMs have it: their states by their names. One that is being frozen is `freezing`
/// until it has ended.
pub(crate) fn states(host: &TestHost) -> BTreeMap<String, String> {
    let vms = fs::read_dir(host.path("home/vms")).into_iter().flatten();
    let records = vms.flatten().filter_map(|vm| {
        let name = vm.file_name().into_string().ok()?;
        let record = fs::read(vm.path().join("vm.json")).ok()?;
        let record: Value = serde_json::from_slice(&record).ok()?;
        let state = match record["state"].as_str()? {
            "asleep" if record["processes"] != Value::Array(Vec::new()) => "freezing",
            state => state,
        };
        Some((name, state.to_owned()))
    });
    records.collect()
}

/// Waits until the VMs' records are so.
fn until(host: &TestHost, what: &str, is_so: impl Fn(&BTreeMap<String, String>) -> bool) {
    let deadline = Instant::now() + LONG * 2;
    loop {
        let states = states(host);
        if is_so(&states) {
            return;
        }
        let said = || said(host);
        assert!(
            Instant::now() < deadline,
            "not {what}: {states:?}\n{}",
            said()
        );
        sleep(Duration::from_millis(20));
    }
}

pub(crate) fn are(states: &BTreeMap<String, String>, expected: &[(&str, &str)]) -> bool {
    states.len() == expected.len()
        && expected
            .iter()
            .all(|(name, state)| states.get(*name).is_some_and(|it| it == state))
}

pub(crate) fn how_many(states: &BTreeMap<String, String>, state: &str) -> usize {
    states.values().filter(|it| *it == state).count()
}

/// An address on which nobody listens.
pub(crate) fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn dial(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + LONG;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LONG * 2)).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(20));
    }
}

/// Sends that at once, says that there is no more, and gives all that comes back.
pub(crate) fn ask(address: SocketAddr, question: &str) -> String {
    let mut stream = dial(address);
    stream.write_all(question.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The notes of the fleet on a VM.
fn notes(host: &TestHost, vm: &str) -> Value {
    let notes = fs::read(host.file(vm, "fleet.json")).unwrap_or_default();
    serde_json::from_slice(&notes).unwrap_or_default()
}

pub(crate) fn call_count(host: &TestHost, vm: &str, call: &str) -> usize {
    let calls = mvm_fake_vmm::calls_so_far(&host.file(vm, ""));
    calls.iter().filter(|made| made.starts_with(call)).count()
}

pub(crate) fn snapshots(host: &TestHost, vm: &str) -> usize {
    let entries = fs::read_dir(host.file(vm, "snapshots"));
    entries.into_iter().flatten().count()
}

pub(crate) fn idle_ones_pause_and_then_sleep_and_a_connection_wakes_one(backend: &Backend) {
    let host = TestHost::with_web(backend);
    let address = free();
    let fleet = Fleet::serve(
        &host,
        &format!(
            r#"[[pool]]
            name = "web"
            idle_pause_after = "1s"
            idle_sleep_after = "3s"
            wake = [{{ listen = "{address}", guest_port = 8080 }}]"#
        ),
    );
    fleet.until("paused", |states| are(states, &[("web", "paused")]));
    // A paused one is resumed, and nothing of the first bytes is lost.
    assert_eq!(ask(address, "hello"), "web:hello");
    assert_eq!(call_count(&host, "web", "guest forward"), 1);
    fleet.until("asleep", |states| are(states, &[("web", "asleep")]));
    assert_eq!(call_count(&host, "web", "guest frozen with"), 0);
    assert_eq!(snapshots(&host, "web"), 1);
    assert_eq!(ask(address, "again"), "web:again");
    // What it slept in is of no use any more.
    assert_eq!(snapshots(&host, "web"), 0);
    fleet.until("asleep again", |states| are(states, &[("web", "asleep")]));
    assert_eq!(snapshots(&host, "web"), 1);
    let said = fleet.end();
    assert!(said.contains("sleep web (paused for"), "{said}");
    assert!(said.contains("wake web (a connection waits): ok"), "{said}");
}

pub(crate) fn fifty_connections_wake_one(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to base --stop");
    for name in ["web-1", "web-2", "web-3"] {
        host.ok(&format!("vm restore base --name {name} --clone"));
        host.ok(&format!("vm snapshot {name} --stop"));
    }
    let address = free();
    let fleet = Fleet::serve(
        &host,
        &format!(
            r#"[[pool]]
            name = "web"
            wake = [{{ listen = "{address}", guest_port = 8080 }}]"#
        ),
    );
    let asking: Vec<_> = (0..50)
        .map(|number| thread::spawn(move || ask(address, &format!("question {number}"))))
        .collect();
    let mut woken = Vec::new();
    for (number, asking) in asking.into_iter().enumerate() {
        let answer = asking.join().unwrap();
        let (vm, echo) = answer.split_once(':').unwrap();
        assert_eq!(echo, format!("question {number}"));
        woken.push(vm.to_owned());
    }
    woken.dedup();
    assert_eq!(woken.len(), 1, "{woken:?}");
    let states = states(&host);
    assert_eq!(how_many(&states, "running"), 1, "{states:?}");
    fleet.end();
}

pub(crate) fn a_golden_pool_keeps_spare_and_at_most_max(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to golden --stop");
    host.ok("vm rm web");
    let payload = host.path("home/payload.json");
    fs::write(&payload, r#"{"role":"web"}"#).unwrap();
    let (golden, payload) = (host.path("golden"), payload.display());
    let golden = golden.display();
    let address = free();
    let fleet = Fleet::serve(
        &host,
        &format!(
            r#"[[pool]]
            name = "web"
            max = 3
            spare = 2
            golden = "{golden}"
            payload = "{payload}"
            wake = [{{ listen = "{address}", guest_port = 8080 }}]"#
        ),
    );
    let running = |count: usize| {
        move |states: &BTreeMap<String, String>| {
            how_many(states, "running") == count && states.len() == count
        }
    };
    fleet.until("two spare ones", running(2));
    let names: Vec<_> = states(&host).into_keys().collect();
    assert_eq!(names, ["web-1", "web-2"]);
    assert_eq!(notes(&host, "web-1")["made"], true);
    let told = "guest wake restored, clone, time, entropy, payload";
    fleet.until("told", |_| call_count(&host, "web-1", told) == 1);
    // Both work: there is room for one more, and not for two.
    host.touch("web-1", "guest-works");
    host.touch("web-2", "guest-works");
    fleet.until("a third one", running(3));
    host.touch("web-3", "guest-works");
    fleet.until_says("/v1/pools/web", "\"busy\":3");
    // A clone that has just come up is given whoever waits then, busy or not.
    fleet.until("the clone done", |_| said(&host).contains("clone web-3 ("));
    // All work: a connection waits until one of them does not.
    let asking = thread::spawn(move || ask(address, "hello"));
    fleet.until_says("/v1/plan", "max is 3");
    assert_eq!(states(&host).len(), 3);
    assert!(!asking.is_finished());
    fs::remove_file(host.file("web-2", "guest-works")).unwrap();
    assert_eq!(asking.join().unwrap(), "web-2:hello");
    fleet.end();
    // The VMs are not the server's.
    assert_eq!(how_many(&states(&host), "running"), 3);
}

/// Its guest may be dialled before it was told that it was restored, when it is as it was for its snapshot.
pub(crate) fn a_clone_is_known_as_soon_as_it_is_awake(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to golden --stop");
    host.ok("vm rm web");
    let fleet = Fleet::serve(&host, "[[pool]]\nname = \"c\"");
    fs::create_dir_all(host.file("c-1", "")).unwrap();
    host.touch("c-1", "wake-waits");
    let mut restoring = host.begin("vm restore golden --name c-1 --clone");
    fleet.until("watched", |_| call_count(&host, "c-1", "guest watch") == 1);
    host.touch("c-1", "go");
    assert!(restoring.wait().unwrap().success());
    let begun = Instant::now();
    fleet.until_says("/v1/pools/c", "\"idle\":1");
    // A guest that is to be frozen is let alone for longer.
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    fleet.end();
}

pub(crate) fn a_checkpoint_that_fails_costs_the_vm_nothing_and_is_tried_again(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject("guest sleep-prep refuse");
    let policy = "[[pool]]\nname = \"web\"\nidle_sleep_after = \"1s\"";
    let fleet = Fleet::serve(&host, policy);
    fleet.until("a failure noted", |_| {
        !notes(&host, "web")["failed"].is_null()
    });
    let failed = &notes(&host, "web")["failed"];
    assert_eq!(
        (&failed["action"], &failed["times"]),
        (&"sleep".into(), &1.into())
    );
    assert!(
        failed["problem"]
            .as_str()
            .unwrap()
            .contains("disk is on fire")
    );
    assert_eq!(host.state(), "running");
    fleet.until("a failure told", |_| {
        said(&host).contains("sleep web (idle for")
    });
    // The wait outlives the server.
    fleet.kill();
    let again = Instant::now();
    let fleet = Fleet::serve(&host, policy);
    fleet.until("asleep", |states| are(states, &[("web", "asleep")]));
    assert!(
        again.elapsed() > Duration::from_secs(5),
        "{:?}",
        again.elapsed()
    );
    fleet.until("noted", |_| notes(&host, "web")["failed"].is_null());
    fleet.end();
}

pub(crate) fn one_that_works_is_touched_or_pinned_is_let_be(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to base");
    for name in ["web-1", "web-2", "web-3"] {
        host.ok(&format!("vm restore base --name {name} --clone"));
    }
    host.touch("web", "guest-works");
    host.ok("vm touch web-1 --for 1h");
    host.ok("vm pin web-2");
    let listed = host.json("vm ls");
    let pinned: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| &vm["pinned"])
        .collect();
    assert_eq!(pinned, [false, false, true, false]);
    let fleet = Fleet::serve(
        &host,
        "[[pool]]\nname = \"web\"\nidle_pause_after = \"1s\"\nidle_sleep_after = \"2s\"",
    );
    let all = |first, second, third| {
        move |states: &BTreeMap<String, String>| {
            let fourth = ("web-3", "asleep");
            are(
                states,
                &[("web", first), ("web-1", second), ("web-2", third), fourth],
            )
        }
    };
    fleet.until(
        "the one of which nothing is said asleep",
        all("running", "running", "running"),
    );
    // What has held each of them ends.
    fs::remove_file(host.file("web", "guest-works")).unwrap();
    fleet.until(
        "the one that worked asleep",
        all("asleep", "running", "running"),
    );
    host.ok("vm unpin web-2");
    fleet.until(
        "the one that was pinned asleep",
        all("asleep", "running", "asleep"),
    );
    host.ok("vm touch web-1 --for 1s");
    fleet.until("all asleep", all("asleep", "asleep", "asleep"));
    for vm in ["web", "web-1", "web-2", "web-3"] {
        assert_eq!(call_count(&host, vm, "guest slept at work"), 0, "{vm}");
    }
    fleet.end();
}

pub(crate) fn what_the_user_paused_is_the_users(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm pause web");
    assert_eq!(host.state(), "paused");
    let run = host.run("vm ping web");
    assert!(run.stderr.contains("`mvmctl vm resume web`"), "{run:?}");
    let address = free();
    let fleet = Fleet::serve(
        &host,
        &format!(
            r#"[[pool]]
            name = "web"
            min = 1
            wake = [{{ listen = "{address}", guest_port = 8080 }}]"#
        ),
    );
    let asking = thread::spawn(move || ask(address, "hello"));
    sleep(Duration::from_secs(2));
    assert!(!asking.is_finished());
    assert_eq!(host.state(), "paused");
    host.ok("vm resume web");
    assert_eq!(asking.join().unwrap(), "web:hello");
    fleet.end();
    // One that stands still can be asked to stop all the same.
    host.ok("vm pause web");
    host.ok("vm stop web");
    assert_eq!(host.state(), "stopped");
    host.fails("vm resume web", &["the VM is stopped"]);
    host.ok("vm start web");
    host.fails("vm resume web", &["it is not paused"]);
}

/// By a signal, of which no folder tells.
pub(crate) fn one_that_something_else_paused_is_seen_to_run_again(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.signal_vmm("web", "-STOP");
    let fleet = Fleet::serve(&host, "[[pool]]\nname = \"web\"\n");
    fleet.until_says("/v1/pools/web", "\"paused\":1");
    host.signal_vmm("web", "-CONT");
    let runs = "\"paused\":0,\"asleep\":0,\"stopped\":0,\"unknown\":0";
    fleet.until_says("/v1/pools/web", runs);
    fleet.end();
}
