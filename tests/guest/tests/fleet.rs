//! `mvmctl fleet serve --policy` with real guests: who sleeps, who does not, and what a connection wakes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts, build_pool, remote};
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far more than anything here takes, on a busy machine without KVM.
const PATIENCE: Duration = Duration::from_secs(120);

/// VMs whose guests have a web server, and what serves their fleet.
struct Story {
    mvmctl: Mvmctl,
    folder: TempDir,
    server: Option<Child>,
    address: SocketAddr,
}

impl Story {
    /// With a VM `web` that runs.
    fn new(dev: bool) -> Option<Self> {
        let parts = Parts::find()?;
        let folder = tempfile::tempdir().unwrap();
        build_pool(&parts, folder.path(), dev);
        let mvmctl = Mvmctl::new();
        let image = folder.path().join("image");
        let image = image.to_str().unwrap();
        let start = ["vm", "start", "web", "--image", image, "--backend", "qemu"];
        mvmctl.ok(&[&start[..], &["--memory", "128"]].concat());
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        Some(Self {
            mvmctl,
            folder,
            server: None,
            address: address.unwrap(),
        })
    }

    /// Starts the server, and does not wait for it.
    fn serve(&mut self, policy: &str) {
        let mut command = self.server(policy);
        self.server = Some(command.spawn().unwrap());
    }

    /// Starts the server, and waits until it knows what each VM is: it listens before.
    fn serve_until_ready(&mut self, policy: &str) {
        let path = self.folder.path().join("notify");
        let _ = fs::remove_file(&path);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = self.server(policy);
        self.server = Some(command.env("NOTIFY_SOCKET", &path).spawn().unwrap());
        let mut buffer = [0; 4096];
        loop {
            let count = told.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("it is not ready: {error}:\n{}", self.log());
            });
            let words = String::from_utf8_lossy(&buffer[..count]);
            if words.lines().any(|line| line == "READY=1") {
                return;
            }
        }
    }

    fn server(&self, policy: &str) -> Command {
        let file = self.folder.path().join("fleet.toml");
        let wake = format!(
            "wake = [{{ listen = \"{}\", guest_port = 8080 }}]\n",
            self.address
        );
        fs::write(&file, format!("[[pool]]\nname = \"web\"\n{wake}{policy}")).unwrap();
        let log = self.folder.path().join("log");
        let log = fs::File::options().create(true).append(true).open(log);
        let file = file.to_str().unwrap();
        let serve = [
            "fleet",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--policy",
            file,
        ];
        let mut command = self.mvmctl.command(&serve);
        command.stderr(log.unwrap());
        command
    }

    /// Ends the server in order.
    fn end(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let pid = server.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(server.wait().unwrap().success(), "{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// As its record has it. One that is being frozen is `freezing` until it has ended.
    fn state(&self, vm: &str) -> String {
        let record = fs::read(self.mvmctl.file(vm, "vm.json")).unwrap_or_default();
        let record: Value = serde_json::from_slice(&record).unwrap_or_default();
        match record["state"].as_str().unwrap_or("gone") {
            "asleep" if record["processes"] != Value::Array(Vec::new()) => "freezing",
            state => state,
        }
        .to_owned()
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not {what}:\n{}", self.log());
            sleep(Duration::from_millis(50));
        }
    }

    fn until_is(&self, vm: &str, state: &str) {
        self.until(&format!("{vm} {state}"), || self.state(vm) == state);
    }

    /// The page, and how long it took until its first byte was there.
    fn page(&self) -> (String, Duration) {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut first = [0];
        let _ = stream.read_exact(&mut first);
        let took = begun.elapsed();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        (format!("{}{rest}", char::from(first[0])), took)
    }

    fn assert_page(&self) -> Duration {
        let (page, took) = self.page();
        let is_whole = page.starts_with("HTTP/1.1 200 OK") && page.ends_with("It works\n");
        assert!(is_whole, "{page:?}\n{}", self.log());
        took
    }

    fn sh(&self, vm: &str, script: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(remote::run(&self.mvmctl.file(vm, "v.sock"), script));
    }

    /// The names of all VMs.
    fn vms(&self) -> Vec<String> {
        let vms = fs::read_dir(self.mvmctl.home().join("vms"))
            .into_iter()
            .flatten();
        let mut names: Vec<String> = vms
            .flatten()
            .filter_map(|vm| vm.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Where a snapshot goes that clones are made of.
    fn golden(&self) -> String {
        let golden = self.folder.path().join("golden");
        golden.to_str().unwrap().to_owned()
    }

    /// Has the guest say that it works.
    fn inhibit(&self, vm: &str) {
        self.sh(vm, "mkdir -p /run/mvm/busy.d; touch /run/mvm/busy.d/x");
    }

    /// Those that are in that state.
    fn those(&self, state: &str) -> Vec<String> {
        let mut vms = self.vms();
        vms.retain(|vm| self.state(vm) == state);
        vms
    }

    /// The command lines of all processes that have to do with a VM's folder.
    fn processes(&self) -> Vec<String> {
        let folder = self.mvmctl.home().join("vms");
        let folder = folder.to_str().unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let lines = processes.filter_map(|process| {
            let line = fs::read(process.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        lines.filter(|line| line.contains(folder)).collect()
    }

    fn failed(&self, vm: &str) -> Value {
        let notes = fs::read(self.mvmctl.file(vm, "fleet.json")).unwrap_or_default();
        let notes: Value = serde_json::from_slice(&notes).unwrap_or_default();
        notes["failed"].clone()
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[test]
fn idle_ones_pause_and_then_sleep_and_a_connection_wakes_one() {
    let Some(mut story) = Story::new(false) else {
        return;
    };
    story.serve("idle_pause_after = \"3s\"\nidle_sleep_after = \"10s\"");
    story.until_is("web", "paused");
    story.assert_page();
    story.until_is("web", "asleep");
    // The first one of all reads the snapshot to see that it is sound.
    story.assert_page();
    story.until_is("web", "paused");
    story.until_is("web", "asleep");
    story.end();
    // The same by hand, and by a connection, in turn.
    let mut by_hand = Vec::new();
    let mut by_connection = Vec::new();
    for _ in 0..5 {
        by_hand.push(restored_by_hand(&story));
        story.mvmctl.ok(&["vm", "snapshot", "web", "--stop"]);
        story.serve_until_ready("idle_sleep_after = \"1h\"");
        by_connection.push(story.assert_page());
        story.end();
        story.mvmctl.ok(&["vm", "snapshot", "web", "--stop"]);
    }
    by_hand.sort();
    by_connection.sort();
    eprintln!(
        "vm restore and one ping {:?}; a connection's first byte {:?} (medians of 5: {:?}, {:?})",
        by_hand[2], by_connection[2], by_hand, by_connection
    );
}

/// How long `vm restore` takes, and one ping.
fn restored_by_hand(story: &Story) -> Duration {
    let record = fs::read(story.mvmctl.file("web", "vm.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let folder = record["suspended_in"].as_str().unwrap().to_owned();
    let begun = Instant::now();
    story
        .mvmctl
        .ok(&["vm", "restore", &folder, "--name", "web"]);
    story.mvmctl.ok(&["vm", "ping", "web"]);
    begun.elapsed()
}

#[test]
fn whoever_works_is_let_be_and_a_checkpoint_that_fails_costs_nothing() {
    let Some(mut story) = Story::new(true) else {
        return;
    };
    // Until it is seen that each keeps it awake for some periods, each is there.
    story.sh(
        "web",
        "mkdir -p /run/mvm/busy.d; touch /run/mvm/busy.d/backup",
    );
    let exec = ["vm", "exec", "web", "--", "sleep", "6"];
    let mut exec = story.mvmctl.start(&exec);
    story.serve("idle_sleep_after = \"2s\"");
    assert!(exec.wait().unwrap().success());
    assert_eq!(story.state("web"), "running");
    sleep(Duration::from_secs(6));
    assert_eq!(story.state("web"), "running", "a file keeps it awake");
    story.mvmctl.ok(&["vm", "pin", "web"]);
    story.sh("web", "rm /run/mvm/busy.d/backup; touch /run/fail");
    sleep(Duration::from_secs(6));
    assert_eq!(story.state("web"), "running", "it is pinned");
    assert!(story.failed("web").is_null(), "nothing was tried");
    story.mvmctl.ok(&["vm", "touch", "web", "--for", "8s"]);
    story.mvmctl.ok(&["vm", "unpin", "web"]);
    sleep(Duration::from_secs(5));
    assert_eq!(story.state("web"), "running", "a touch keeps it awake");
    story.until("a failure noted", || !story.failed("web").is_null());
    let failed = story.failed("web");
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
    assert_eq!(story.state("web"), "running");
    story.assert_page();
    story.sh("web", "rm /run/fail");
    story.until_is("web", "asleep");
    story.until("noted", || story.failed("web").is_null());
    story.assert_page();
    story.end();
}

#[test]
fn a_golden_pool_keeps_spare_and_at_most_max() {
    let Some(mut story) = Story::new(false) else {
        return;
    };
    let golden = story.golden();
    story
        .mvmctl
        .ok(&["vm", "snapshot", "web", "--to", &golden, "--stop"]);
    story.mvmctl.ok(&["vm", "rm", "web"]);
    story.serve(&format!("spare = 1\nmax = 2\ngolden = \"{golden}\""));
    story.until_is("web-1", "running");
    story.assert_page();
    story.inhibit("web-1");
    story.until_is("web-2", "running");
    story.inhibit("web-2");
    sleep(Duration::from_secs(5));
    assert_eq!(story.state("web-3"), "gone", "max is 2");
    story.end();
}

#[test]
fn fifty_connections_at_once_wake_one() {
    let Some(mut story) = Story::new(false) else {
        return;
    };
    let golden = story.golden();
    let mvmctl = &story.mvmctl;
    mvmctl.ok(&["vm", "snapshot", "web", "--to", &golden]);
    mvmctl.ok(&["vm", "restore", &golden, "--name", "web-1", "--clone"]);
    for vm in ["web", "web-1"] {
        mvmctl.ok(&["vm", "snapshot", vm, "--stop"]);
    }
    story.serve_until_ready("max = 2");
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| story.assert_page());
        }
    });
    assert_eq!(story.those("running").len(), 1, "{}", story.log());
    assert_eq!(story.those("asleep").len(), 1);
    let log = story.log();
    assert_eq!(log.matches("wake web").count(), 1, "{log}");
    story.end();
}

/// At the end all is as the policy wants it, nothing is left over, and nobody slept who worked.
#[test]
fn killed_at_any_moment_it_goes_on() {
    let Some(mut story) = Story::new(false) else {
        return;
    };
    let golden = story.golden();
    story.mvmctl.ok(&["vm", "snapshot", "web", "--to", &golden]);
    story.inhibit("web");
    let slept = |story: &Story| {
        let told = story.mvmctl.ok(&["vm", "inspect", "web", "--json"]);
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        told["snapshot"]["last_sleep"].clone()
    };
    let before = slept(&story);
    let policy = format!(
        "min = 2\nmax = 3\nspare = 1\nidle_pause_after = \"2s\"\nidle_sleep_after = \"4s\"\n\
         asleep_remove_after = \"8s\"\ngolden = \"{golden}\""
    );
    let given = |variable| Some(std::env::var(variable).ok()?.parse::<u32>().unwrap());
    // Not 0, of which no other number comes.
    let mut moment = given("MVM_TEST_SEED").unwrap_or(0x2545_f491).max(1);
    for _ in 0..given("MVM_TEST_KILLS").unwrap_or(6) {
        story.serve(&policy);
        // Up to 16 s: all of it has begun, and some has ended.
        moment ^= moment << 13;
        moment ^= moment >> 17;
        moment ^= moment << 5;
        sleep(Duration::from_millis(u64::from(moment % 8000)));
        // Wants one more, if anybody listens by now.
        let asking = TcpStream::connect(story.address);
        sleep(Duration::from_millis(u64::from(moment / 8000 % 8000)));
        let mut server = story.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        drop(asking);
    }
    story.serve_until_ready(&policy);
    story.until("as the policy wants it", || {
        let running = story.those("running");
        running.len() == 2 && story.vms() == running
    });
    story.assert_page();
    story.end();
    let vms = story.vms();
    assert!(vms.contains(&"web".to_owned()), "{vms:?}\n{}", story.log());
    assert_eq!(slept(&story), before, "{}", story.log());
    for line in story.processes() {
        let is_of_one = vms.iter().any(|vm| {
            let folder = story.mvmctl.file(vm, "");
            line.contains(folder.to_str().unwrap())
        });
        assert!(is_of_one, "{line}\n{}", story.log());
    }
    let removing = story.mvmctl.home().join("removing");
    let left = fs::read_dir(removing).into_iter().flatten().count();
    assert_eq!(left, 0);
}
