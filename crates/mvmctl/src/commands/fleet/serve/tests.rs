//! The server as a whole, with a clock that jumps.

use super::http::door::Server;
use super::http::listen::Listen;
use super::inputs::Inputs;
use super::owner::{Owner, Settings};
use crate::args::Color;
use crate::feed::{clock, folders};
use crate::ui::Ui;
use clap::Parser as _;
use mvm_client::{Deadlines, Dialer};
use mvm_fake_fleet::{Behaviour, FakeFleet, Guests};
use mvm_fleet::{Now, Policy};
use mvm_registry::Inventory;
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A deadline that is not meant to be met.
const LONG: Duration = Duration::from_secs(30);

/// For how many seconds the host was suspended.
static SUSPENDED: AtomicU64 = AtomicU64::new(0);

/// As a host shows it that was suspended: the monotonic clock stood still.
fn suspended() -> Now {
    let for_secs = SUSPENDED.load(Ordering::Relaxed);
    let mut now = clock::now();
    now.boottime += Duration::from_secs(for_secs);
    now.wall.0 += i64::try_from(for_secs * 1000).unwrap();
    now
}

#[derive(clap::Parser)]
struct Args {
    #[command(flatten)]
    listen: Listen,
}

/// What a GET comes to: the status, and the body.
async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// How many are wanted, and whether that may be believed.
async fn wanted(address: &str) -> (u16, u64) {
    let (status, body) = get(address, "/v1/pools/web").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    (status, body["wanted"].as_u64().unwrap_or_default())
}

/// Waits until numbers are given that may be believed; none on the way asks for fewer than `least`.
async fn until_complete(address: &str, least: u64) -> u64 {
    let complete = async {
        loop {
            let (status, wanted) = wanted(address).await;
            assert!(status != 200 || wanted >= least, "{status}: {wanted}");
            if status == 200 {
                return wanted;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, complete).await.unwrap()
}

async fn idle_secs(address: &str, vm: &str) -> f64 {
    let (_, metrics) = get(address, "/metrics").await;
    let start = format!("mvm_worker_idle_seconds{{pool=\"web\",vm=\"{vm}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_host_that_was_suspended_for_an_hour_gives_no_number_that_scales_down() {
    let home = tempfile::tempdir().unwrap();
    let mut agents = FakeFleet::start(home.path(), Guests::default());
    for (name, behaviour) in [
        ("web-1", Behaviour::Idle(Duration::from_secs(600))),
        ("web-2", Behaviour::Busy),
        ("web-3", Behaviour::Busy),
    ] {
        agents.set(name, behaviour);
    }
    let inventory = Inventory::at(home.path());
    let listen = Args::parse_from(["", "--listen", "127.0.0.1:0"]).listen;
    let listeners = listen.open(inventory.home()).unwrap();
    let address = listeners.addresses().next().unwrap();
    let address = address.strip_prefix("http://").unwrap();
    let (inputs, received) = Inputs::new();
    let settings = Settings {
        per_vm: true,
        inventory: inventory.clone(),
        dialer: Dialer::new(),
        deadlines: Deadlines::all(Duration::from_secs(2)),
        parallel: 8,
        clock: suspended,
    };
    // Heartbeats each second.
    let policy = "[[pool]]\nname = \"web\"\nidle_sleep_after = \"4s\"\nmax = 9";
    let policy = Policy::parse(policy, "fleet.toml").unwrap();
    let mut owner = Owner::new(settings, policy, inputs.clone());
    let _server = Server::start(listeners, &inputs);
    let _folders = folders::watch(inventory, inputs);
    let ui = Ui::new(Color::Never, false);
    let story = async {
        assert_eq!(until_complete(address, 2).await, 2);
        let idle = async {
            while idle_secs(address, "web-1").await < 600.0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(LONG, idle).await.unwrap();
        // Its connection stays, and it does not answer any more.
        agents.set("web-3", Behaviour::Stalled);
        SUSPENDED.store(3600, Ordering::Relaxed);
        // Whoever asks first is told that nobody knows.
        let (status, wanted) = wanted(address).await;
        assert_eq!((status, wanted), (503, 3), "all are unknown");
        // One works, and of one nobody knows.
        assert_eq!(until_complete(address, 2).await, 2);
        let idle = idle_secs(address, "web-1").await;
        assert!(idle < 60.0, "the host stood still for that time: {idle}");
    };
    tokio::select! {
        ended = owner.run(received, &ui) => panic!("{ended:?}"),
        () = story => {}
    }
}
