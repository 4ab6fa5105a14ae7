//! `mvmctl fleet plan` and `mvmctl fleet status`, with a server and without.

use crate::server::Fleet;
use mvm_fake_fleet::Behaviour;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::Duration;

const IDLE: Behaviour = Behaviour::Idle(Duration::from_secs(100));

fn ran(fleet: &Fleet, args: &str) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = fleet.mvmctl(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn a_plan_without_a_server() {
    let fleet = Fleet::new()
        .and("web-1", IDLE)
        .and("web-2", Behaviour::Busy)
        .and("web-3", Behaviour::Dead);
    let policy = fleet.write(
        "fleet.toml",
        "[[pool]]\nname = \"web\"\nmin = 5\nmax = 9\ngolden = \"/s\"\n",
    );
    let (code, stdout, stderr) = ran(&fleet, &format!("fleet plan --policy {policy}"));
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stdout,
        "POOL  ACTION  NAME   WHY\n\
         web   clone   web-4  3 up, min is 5\n\
         web   clone   web-5  4 up, min is 5\n"
    );
    assert!(stderr.contains("web: 1 VM is unknown"), "{stderr}");
    let (code, _, stderr) = ran(&fleet, "fleet plan");
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("nobody serves") && stderr.contains("--policy"),
        "{stderr}"
    );
}

#[test]
fn the_servers_plan_and_its_status() {
    let fleet = Fleet::new()
        .and("web-1", IDLE)
        .and("web-2", Behaviour::Busy);
    let policy = fleet.write("fleet.toml", "[[pool]]\nname = \"web\"\nmin = 3\nmax = 9\n");
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    let socket = std::fs::metadata(fleet.path().join("fleet.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let (code, stdout, stderr) = ran(&fleet, "fleet plan");
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    assert!(
        stderr.contains("web: one more is wanted: none sleeps"),
        "{stderr}"
    );
    let expected = "\
POOL  WANTED  VMS  BUSY  IDLE  STARTING  PAUSED  ASLEEP  STOPPED  UNKNOWN
web   3       2    1     1     0         0       0       0        0
";
    let (code, stdout, stderr) = ran(&fleet, "fleet status");
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (Some(0), expected, "")
    );
    let (_, stdout, _) = ran(&fleet, "fleet status --json");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["pools"][0]["wanted"], 3);
    // All of what `/v1/fleet` answers.
    assert_eq!((&json["wanted"], &json["vms"]), (&3.into(), &2.into()));
    drop(server);
    // A socket is left of a server that was killed.
    let (code, stdout, stderr) = ran(&fleet, "fleet status");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("nobody serves this fleet"), "{stderr}");
    assert!(stdout.contains("web   1       2    1     1 "), "{stdout}");
}

#[test]
fn a_clone_that_failed_is_waited_for_by_the_next_server_too() {
    let fleet = Fleet::new().and("web-1", IDLE);
    let golden = fleet.path().join("none");
    let policy = fleet.write(
        "fleet.toml",
        &format!(
            "[[pool]]\nname = \"web\"\nmin = 2\nmax = 9\ngolden = \"{}\"\n",
            golden.display()
        ),
    );
    let serve = format!("--policy {policy}");
    let mut server = fleet.serve(&serve).ready();
    server.says("clone web-2 (1 up, min is 2): failed");
    // Killed, so that it can note nothing more.
    drop(server);
    let noted = std::fs::read(fleet.path().join("failed-clones.json")).unwrap();
    let noted: serde_json::Value = serde_json::from_slice(&noted).unwrap();
    assert_eq!(noted["web"]["times"], 1);
    let mut server = fleet.serve(&serve).ready();
    let (_, stdout, stderr) = ran(&fleet, "fleet plan");
    assert_eq!(stdout, "", "{stderr}");
    assert!(
        stderr.contains("web: one more is wanted: the next try is in"),
        "{stderr}"
    );
    // And then it is the second one.
    server.says("clone web-2 (1 up, min is 2): failed");
    drop(server);
    let noted = std::fs::read(fleet.path().join("failed-clones.json")).unwrap();
    let noted: serde_json::Value = serde_json::from_slice(&noted).unwrap();
    assert_eq!(noted["web"]["times"], 2);
}
