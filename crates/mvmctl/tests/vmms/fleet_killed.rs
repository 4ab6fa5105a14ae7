//! What is left of a `mvmctl fleet serve` that is killed, and how the next one goes on.

use super::fleet::{Fleet, are, ask, call_count, free, how_many, snapshots, states};
use super::test_host::{Backend, TestHost};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread::{self, sleep};
use std::time::Duration;

/// Kills the server again and again while its fleet sleeps and wakes. At the end, all is as the policy
/// wants it, nothing is left over, and nobody slept who worked.
pub(crate) fn killed_at_any_moment_it_goes_on(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to golden");
    let golden = host.path("golden");
    let address = free();
    let policy = format!(
        r#"[[pool]]
        name = "web"
        min = 2
        max = 4
        spare = 1
        idle_pause_after = "1s"
        idle_sleep_after = "2s"
        asleep_remove_after = "4s"
        golden = "{}"
        wake = [{{ listen = "{address}", guest_port = 8080 }}]"#,
        golden.display()
    );
    host.touch("web", "guest-works");
    let times = std::env::var("MVM_TEST_KILLS").ok();
    let times = times.and_then(|times| times.parse().ok()).unwrap_or(8);
    let mut moment = 0x2545_f491_u32;
    for _ in 0..times {
        let fleet = Fleet::serve(&host, &policy);
        let asking = thread::spawn(move || {
            let _ = TcpStream::connect(address).map(|stream| {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = (&stream).write_all(b"x");
                let _ = (&stream).read(&mut [0; 64]);
            });
        });
        // Up to 5 s: all of it has begun, and some has ended.
        moment ^= moment << 13;
        moment ^= moment >> 17;
        moment ^= moment << 5;
        sleep(Duration::from_millis(u64::from(moment % 5000)));
        fleet.kill();
        asking.join().unwrap();
    }
    let fleet = Fleet::serve(&host, &policy);
    // The one that works, one that `min` asks for, and as many as `spare` does; no sleepers, since they
    // are removed.
    fleet.until("as the policy wants it", |states| {
        how_many(states, "running") == 2 && states.len() == 2
    });
    let answer = ask(address, "hello");
    assert!(answer.ends_with(":hello"), "{answer}");
    let said = fleet.end();
    for vm in states(&host).keys() {
        assert_eq!(
            call_count(&host, vm, "guest slept at work"),
            0,
            "{vm}: {said}"
        );
        assert_eq!(snapshots(&host, vm), 0, "{vm}");
    }
    assert_eq!(states(&host)["web"], "running");
    // Of each VM that runs its VMM, and what keeps its console.
    assert_eq!(host.processes().len(), 4, "{said}");
    let removing = fs::read_dir(host.path("home/removing"));
    assert_eq!(removing.into_iter().flatten().count(), 0);
    assert_eq!(fs::read_dir(host.path("home/vms")).unwrap().count(), 2);
}

/// Kills the server in the middle of each step that changes something. The next one brings it to its end.
pub(crate) fn killed_within_each_step_it_goes_on(backend: &Backend) {
    let pause = "idle_pause_after = \"1s\"";
    let sleep = "idle_sleep_after = \"1s\"";
    let wake = "min = 1";
    let load = if backend.name == "firecracker" {
        "PUT /snapshot/load"
    } else {
        "PUT /api/v1/vm.restore"
    };
    let told = "guest wake restored, time, entropy";
    for (policy, call, how, then) in [
        (pause, backend.pause, "wait", "paused"),
        (sleep, "guest sleep-prep", "hang", "asleep"),
        (sleep, "guest sleep-prep", "cut", "asleep"),
        (sleep, backend.pause, "wait", "asleep"),
        (sleep, backend.write, "wait", "asleep"),
        (wake, load, "wait", "running"),
        (wake, told, "hang", "running"),
    ] {
        let host = TestHost::with_web(backend);
        if policy == wake {
            host.ok("vm snapshot web --stop");
        }
        host.inject(&format!("{call} {how}"));
        let policy = format!("[[pool]]\nname = \"web\"\n{policy}");
        let fleet = Fleet::serve(&host, &policy);
        let stuck = format!("{call} fault {how}");
        fleet.until(&stuck, |_| call_count(&host, "web", &stuck) == 1);
        let said = fleet.kill();
        host.touch("web", "go");
        let fleet = Fleet::serve(&host, &policy);
        let name = format!("{then} after {stuck}, having said {said}");
        fleet.until(&name, |states| are(states, &[("web", then)]));
        if then == "running" {
            // It is the guest that slept, and it knows that it was woken.
            fleet.until("woken", |_| {
                call_count(&host, "web", "guest wake restored") >= 1
            });
            fleet.until("noted", |_| {
                let record = fs::read_to_string(host.file("web", "vm.json")).unwrap();
                !record.contains("unwoken")
            });
            assert_eq!(host.lifecycle("web"), "running", "{stuck}");
        }
        // The one in which it sleeps, or the user's own, in which it slept.
        fleet.until("cleared", |_| {
            snapshots(&host, "web") == usize::from(then != "paused")
        });
        fleet.end();
        // Its VMM, and what keeps its console.
        let processes = 2 * usize::from(then != "asleep");
        let left = host.processes();
        let lines: Vec<_> = left
            .iter()
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")))
            .collect();
        assert_eq!(left.len(), processes, "{stuck}: {lines:?}");
    }
}
