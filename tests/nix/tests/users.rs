//! What mkGuest says of a guest's users, their homes and their groups.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mvm_nix_tests::{Nix, refusal};
use mvm_protocol::drop_in::{self, Probe};
use serde_json::json;

#[test]
fn a_user_is_whomever_the_agent_takes() {
    let Some(nix) = Nix::find() else { return };
    for user in ["1000", "0", "4000000000", "john.doe", "Debian-exim", "_x"] {
        let drop_in = json!({"name": "x", "command": "id", "user": user}).to_string();
        drop_in::read::<Probe>(drop_in.as_bytes()).unwrap();
        let guest = format!(
            r#"{{ name = "x"; users."john.doe".uid = 1; users.Debian-exim.uid = 2; users._x.uid = 3;
               services.a = {{ command = "id"; user = "john.doe"; }};
               probes.x = {{ command = "id"; user = "{user}"; }}; }}"#
        );
        nix.eval(&format!("(mkGuest {guest}).drvPath")).unwrap();
    }
    for (user, expected) in [
        ("a b", "is not a user's name or number"),
        ("a:b", "is not a user's name or number"),
        ("", "is not a user's name or number"),
        (
            "john.do",
            "there is no user \"john.do\" in users; did you mean",
        ),
        ("4294967295", "there is no user \"4294967295\" in users"),
    ] {
        let guest = format!(
            r#"{{ name = "x"; users."john.doe".uid = 1;
               probes.x = {{ command = "id"; user = "{user}"; }}; }}"#
        );
        let said = refusal(&nix, &guest);
        assert!(
            said.contains("probes.x.user: ") && said.contains(expected),
            "{said}"
        );
    }
    // Services are run by busybox's su, which takes a name alone.
    let said = refusal(
        &nix,
        r#"{ name = "x"; services.a = { command = "id"; user = "1000"; }; }"#,
    );
    assert!(
        said.contains("services.a.user: there is no user \"1000\""),
        "{said}"
    );
}

/// What init gives to a user is no folder that others have.
#[test]
fn homes_are_nobody_elses() {
    let Some(nix) = Nix::find() else { return };
    let guest =
        |home: &str| format!(r#"{{ name = "x"; users.x = {{ uid = 1; home = "{home}"; }}; }}"#);
    for home in [
        "/srv/x",
        "/home/x",
        "/var/lib/x",
        "/tmp/x",
        "/run/x",
        "/data",
        "/mnt/etc",
    ] {
        nix.eval(&format!("(mkGuest {}).drvPath", guest(home)))
            .unwrap();
    }
    for home in [
        "/etc",
        "/etc/x",
        "/usr/bin",
        "/var",
        "/var/lib",
        "/tmp",
        "/home",
        "/root",
        "/nix/store",
        "/proc/x",
        "/run/mvm-init",
        "/var/run/mvm",
        "/var/run/mvm-init",
        "/init",
    ] {
        let said = refusal(&nix, &guest(home));
        assert!(said.contains("no folder of the system's"), "{said}");
    }
}

/// A home is its user's alone (mode 700).
#[test]
fn homes_are_not_shared() {
    let Some(nix) = Nix::find() else { return };
    let said = refusal(
        &nix,
        r#"{
          name = "x";
          users.a = { uid = 1000; home = "/srv/other"; };
          users.b = { uid = 1001; home = "/srv/x"; };
          users.c = { uid = 1002; home = "/srv/x"; };
          users.d = { uid = 1003; home = "/srv/x/deep"; };
          users.e.uid = 1004;
          users.f = { uid = 1005; home = "/var/lib/e"; };
          users.g = { uid = 1006; home = "/run/g"; };
          users.h = { uid = 1007; home = "/var/run/g/h"; };
        }"#,
    );
    let expected = r#"mkGuest "x": 4 problems
  users.b.home: "/srv/x" is also that of c
  users.d.home: "/srv/x/deep" is within that of b, c
  users.e.home: "/var/lib/e" is also that of f
  users.h.home: "/var/run/g/h" is within that of g"#;
    assert_eq!(said, expected);
    // Folders whose names begin alike.
    let guest = r#"{ name = "x"; users.b = { uid = 1001; home = "/srv/x"; };
          users.c = { uid = 1002; home = "/srv/x1"; }; users.d = { uid = 1003; home = "/srv/d/x"; }; }"#;
    nix.eval(&format!("(mkGuest {guest}).drvPath")).unwrap();
}

/// Those of every guest, which nix/image.nix writes.
#[test]
fn a_users_group_is_none_that_every_guest_has() {
    let Some(nix) = Nix::find() else { return };
    let said = refusal(
        &nix,
        r#"{
          name = "x";
          users.a.uid = 5;
          users.b = { uid = 1001; gid = 5; };
          users.c = { uid = 1002; gid = 0; };
          users.d = { uid = 1003; gid = 65534; };
          users.e = { uid = 65534; };
        }"#,
    );
    let expected = r#"mkGuest "x": 5 problems
  users.c.gid: 0 is not a whole number from 1 to 65533, or null for the uid
  users.d.gid: 65534 is not a whole number from 1 to 65533, or null for the uid
  users.e.uid: 65534 is not a whole number from 1 to 65533
  users.a.gid: 5, its uid, is also that of tty, a group that every guest has
  users.b.gid: 5 is also that of tty, a group that every guest has"#;
    assert_eq!(said, expected);
    // A uid of that number is fine, with another gid.
    let guest = r#"{ name = "x"; users.a = { uid = 5; gid = 6; }; }"#;
    nix.eval(&format!("(mkGuest {guest}).drvPath")).unwrap();
}
