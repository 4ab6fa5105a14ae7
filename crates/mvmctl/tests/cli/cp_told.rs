//! What programs are told of a copy that is there.

use crate::cp::{taking, with_file};
use crate::host::Host;
use mvm_fake_agent::dev;
use serde_json::json;
use std::fs;

#[test]
fn how_many_bytes_went_over() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("a"), folder.path().join("b"));
    fs::write(&from, "12345").unwrap();
    let (host, _heard) = taking();
    let ran = host.mvmctl(&format!("vm cp --json {} web:/x", from.display()));
    assert_eq!(ran.exits(0).json(), json!({"vm": "web", "bytes": 5}));
    let host = with_file(b"1234567", 0o644);
    let ran = host.mvmctl(&format!("vm cp --json web:/x {}", to.display()));
    assert_eq!(ran.exits(0).json(), json!({"vm": "web", "bytes": 7}));
    // The bytes are what is asked for there.
    let ran = host.mvmctl("vm cp --json web:/x -").exits(0);
    assert_eq!(ran.stdout, "1234567");
    let quiet = host.mvmctl(&format!("vm cp web:/x {}", to.display()));
    assert_eq!(quiet.exits(0).stdout, "");
}

#[test]
fn what_to_do_about_a_place_in_the_guest_that_is_no_place() {
    let refusing = |code: &'static str| {
        Host::with(
            "web",
            dev(move |peer, asked| peer.refuse(asked, code, "no")),
        )
    };
    let host = refusing("not-found");
    for (line, remedy) in [
        ("vm cp web:/no/such -", "`mvmctl vm exec web -- ls -la /no`"),
        ("vm cp - web:/no/such", "mkdir -p /no`"),
    ] {
        host.mvmctl(line).exits(1).says(remedy);
    }
    refusing("bad-request")
        .mvmctl("vm cp - web:/tmp/")
        .exits(1)
        .says("name the file in it: web:/tmp/FILE");
}
