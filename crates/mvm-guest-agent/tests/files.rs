//! `put` and `get`: files and folders, whole or not at all.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::dev::{shell, with};
use common::files::{agent, archive, get, mode, names, put, tar_of};
use common::{Agent, As, Settings, assert_refused, children, folder, within};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

#[test]
fn a_file_comes_back_as_it_was_put() {
    let (agent, files) = agent();
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let mut host = agent.connection();
    let path = files.join("a");
    let done = host.put(
        &with(put(&path), json!({"mode": 0o4750, "id": 7})),
        &content,
    );
    assert_eq!(
        done,
        json!({"type": "put-done", "bytes": 3_000_000, "id": 7})
    );
    assert!(fs::read(&path).unwrap() == content);
    assert_eq!(mode(&path), 0o4750);
    let (started, back, done) = host.get(&get(&path));
    assert_eq!(
        started,
        json!({"type": "get-started", "bytes": 3_000_000, "mode": 0o4750})
    );
    assert!(back == content);
    assert_eq!(done, json!({"type": "get-done", "bytes": 3_000_000}));
    assert_eq!(host.put(&put(&files.join("b")), b"")["bytes"], 0);
    assert_eq!(mode(&files.join("b")), 0o644);
    let (started, back, _) = host.get(&get(Path::new("/proc/self/status")));
    assert_eq!(started["bytes"], 0, "as the kernel says");
    assert!(back.starts_with(b"Name:"));
    assert_eq!(names(&files), ["a", "b"]);
}

#[test]
fn a_file_that_becomes_shorter_is_not_taken_for_whole() {
    let (agent, files) = agent();
    let path = files.join("log");
    let file = fs::File::create(&path).unwrap();
    // More than waits anywhere on the way.
    file.set_len(256 << 20).unwrap();
    let mut connection = agent.connection();
    let started = connection.begin(&get(&path));
    assert_eq!(started["bytes"], 256 << 20);
    file.set_len(0).unwrap();
    let last = loop {
        match connection.frame().unwrap() {
            Frame::Data { .. } => {}
            Frame::Json(body) => break serde_json::from_slice::<Value>(&body).unwrap(),
            Frame::EmptyData => panic!("an empty frame"),
        }
    };
    assert_refused(&last, "failed", "became shorter while it was read");
    // It can be used further; and a file whose size says nothing has none.
    let (started, content, last) = connection.get(&get(Path::new("/sys/kernel/uevent_seqnum")));
    assert_eq!(started["bytes"], Value::Null, "{started}");
    assert_eq!(last["bytes"], content.len(), "{last}");
    let (_, content, last) = connection.get(&get(Path::new("/proc/self/status")));
    assert!(
        content.len() > 100,
        "more than the nothing that was announced: {last}"
    );
}

#[test]
fn a_put_writes_the_named_path_only() {
    let (agent, files) = agent();
    let mut host = agent.connection();
    let named = with(put(&files), json!({"name": "into"}));
    let ready = host.begin(&named);
    assert_eq!(ready["path"], files.join("into").to_str().unwrap());
    host.data(3, b"x");
    host.send(&json!({"type": "put-end"}));
    assert_eq!(host.json()["type"], "put-done");
    assert_eq!(fs::read(files.join("into")).unwrap(), b"x");

    let old = files.join("old");
    fs::write(&old, "old").unwrap();
    chown(&old, Some(1234), Some(1235)).unwrap();
    symlink(&old, files.join("link")).unwrap();
    assert_eq!(
        host.put(&put(&files.join("link")), b"new")["type"],
        "put-done"
    );
    assert!(
        fs::symlink_metadata(files.join("link"))
            .unwrap()
            .is_symlink()
    );
    let new = fs::metadata(&old).unwrap();
    assert_eq!((new.uid(), new.gid()), (1234, 1235), "its owner stays");
    assert_eq!(fs::read(&old).unwrap(), b"new");
    // A link to what is not there stays one, and its file appears.
    symlink("../files/there", files.join("dangling")).unwrap();
    let dangling = put(&files.join("dangling"));
    assert_eq!(host.put(&dangling, b"new")["type"], "put-done");
    assert!(
        fs::symlink_metadata(files.join("dangling"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(fs::read(files.join("there")).unwrap(), b"new");
    fs::remove_file(files.join("there")).unwrap();
    fs::remove_file(files.join("dangling")).unwrap();
    symlink("loop", files.join("loop")).unwrap();
    let too_long = files.join("n".repeat(256));
    let longest = files.join("n".repeat(255));
    assert_eq!(host.put(&put(&longest), b"new")["type"], "put-done");
    fs::remove_file(longest).unwrap();

    fs::create_dir(files.join("dir")).unwrap();
    for (request, code, message) in [
        (put(&files), "failed", "which `name`"),
        (put(&files.join("none/x")), "not-found", "open folder"),
        (put(&files.join("none/")), "not-found", "no folder"),
        (
            with(put(&files), json!({"name": "dir"})),
            "failed",
            "no file",
        ),
        (put(Path::new("/dev/null")), "failed", "no file"),
        (put(&files.join("loop")), "failed", "look at"),
        (put(&too_long), "failed", "look at"),
        (archive(put(&too_long)), "failed", "look at"),
        (put(&files.join("old/x")), "not-found", "look at"),
        (put(Path::new("/..")), "failed", "folder"),
        (put(Path::new("/proc/x")), "not-found", ""),
        (
            with(put(&files), json!({"name": "a/b"})),
            "bad-request",
            "name",
        ),
        (get(&files.join("none")), "not-found", "open"),
        (get(&files), "failed", "`archive`"),
        (
            get(Path::new("/dev/zero")),
            "failed",
            "neither file nor folder",
        ),
    ] {
        // Refused before any content is sent.
        let answer = host.begin(&request);
        assert_refused(&answer, code, message);
    }
    assert_eq!(names(&files), ["dir", "into", "link", "loop", "old"]);
    assert_eq!(children(agent.pid()), [0; 0]);
}

#[test]
fn who_may_not_is_told_so() {
    let dir = folder(&[], &[]);
    let agent = Agent::launch(dir, Settings::user(As::Nobody));
    let mut host = agent.connection();
    let put = host.put(&put(Path::new("/etc/mvm-test")), b"x");
    assert_eq!(put["code"], "not-allowed", "{put}");
    let (get, _, _) = host.get(&get(Path::new("/etc/shadow")));
    assert_eq!(get["code"], "not-allowed", "{get}");
}

#[test]
fn an_aborted_put_leaves_the_old_file_and_no_temporary() {
    let (agent, files) = agent();
    let path = files.join("a");
    fs::write(&path, "old").unwrap();
    for request in [put(&path), archive(put(&files.join("new")))] {
        let mut host = agent.connection();
        assert_eq!(host.begin(&request)["type"], "put-ready");
        host.data(3, &vec![b'x'; 100_000]);
        drop(host);
        within(|| children(agent.pid()).is_empty().then_some(()));
        assert_eq!(names(&files), ["a"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
    // A reader that goes away ends the reading.
    let big = files.join("big");
    fs::File::create(&big).unwrap().set_len(1 << 30).unwrap();
    let mut host = agent.connection();
    assert_eq!(host.begin(&get(&big))["bytes"], 1 << 30);
    drop(host);
    within(|| children(agent.pid()).is_empty().then_some(()));
}

#[test]
fn a_sleep_ends_transfers() {
    let (agent, files) = agent();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    let mut host = agent.connection();
    host.begin(&put(&files.join("a")));
    host.data(3, b"x");
    // Of a folder something would stay unless it were cleaned up.
    let mut folder = agent.connection();
    folder.begin(&archive(put(&files.join("b"))));
    let ready = within(|| {
        let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
        (answer["type"] == "ready").then_some(answer)
    });
    assert_eq!(
        ready["steps"][0]["detail"],
        "ended 2 commands, files or ports"
    );
    let answer = host.json();
    assert_eq!(answer["code"], "busy", "{answer}");
    assert_eq!(folder.json()["code"], "busy");
    assert_eq!(names(&files), [""; 0]);
    host.data(3, b"late");
    host.send(&json!({"type": "put-end"}));
    assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
    agent.ask(&json!({"type": "wake", "token": "t"}));
    assert_eq!(host.put(&put(&files.join("a")), b"x")["type"], "put-done");
}

#[test]
fn a_sleep_ends_a_slow_download_without_breaking_the_framing() {
    let (agent, files) = agent();
    let path = files.join("a");
    fs::write(&path, vec![b'x'; 8 << 20]).unwrap();
    for taken in [0, 1, 70_000, 300_000] {
        let mut host = agent.connection();
        host.send(&get(&path));
        let mut buffer = vec![0; taken];
        host.stream.read_exact(&mut buffer).unwrap();
        host.decoder.push(&buffer);
        // It has begun, and fills what it can: from where three quarters of the socket's buffer have been
        // read, which is when the kernel lets a sender go on (`unix_writable` in net/unix/af_unix.c).
        within(|| {
            let queued = rustix::io::ioctl_fionread(&host.stream).unwrap();
            (queued > 20_000).then_some(())
        });
        let ready = within(|| {
            let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
            (answer["type"] == "ready").then_some(answer)
        });
        assert_eq!(ready["steps"][0]["outcome"], "ok");
        let last = loop {
            match host.frame().unwrap() {
                Frame::Data { channel: 3, bytes } => assert!(bytes.iter().all(|it| *it == b'x')),
                Frame::Json(body) => {
                    let answer: Value = serde_json::from_slice(&body).unwrap();
                    if answer["type"] != "get-started" {
                        break answer;
                    }
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(last["code"], "busy", "{last}");
        assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
        agent.ask(&json!({"type": "wake", "token": "t"}));
    }
    // Nor is the agent's own end held up.
    let mut agent = agent;
    let mut host = agent.connection();
    host.send(&get(&path));
    host.stream.read_exact(&mut vec![0; 70_000]).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert!(agent.wait().success());
}

#[test]
fn a_sleep_that_has_no_time_left_does_not_wait_for_a_file() {
    let (agent, files) = agent();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    let mut host = agent.connection();
    host.begin(&put(&files.join("a")));
    let helper = children(agent.pid())[0];
    // As a disk that hangs would hold it.
    let helper = rustix::process::Pid::from_raw(helper.try_into().unwrap()).unwrap();
    let signal = |signal| rustix::process::kill_process(helper, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t", "deadline_secs": 0.2}));
    assert_eq!(answer["code"], "sleep-prep-failed", "{answer}");
    let drain = &answer["steps"][0];
    assert_eq!(drain["outcome"], "timed-out");
    assert_eq!(drain["detail"], "left 1 that did not end in time");
    assert_eq!(children(agent.pid()).len(), 1, "it was not waited for");
    signal(rustix::process::Signal::CONT);
    assert_eq!(host.json()["code"], "busy");
    assert_eq!(names(&files), [""; 0]);
}

#[test]
fn replacing_a_file_keeps_its_owner_and_mode() {
    let (agent, files) = agent();
    let mut host = agent.connection();
    let path = files.join("a");
    symlink(&path, files.join("link")).unwrap();
    for kept in [0o600, 0o4751, 0o444] {
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(kept)).unwrap();
        for to in [&path, &files.join("link")] {
            assert_eq!(host.put(&put(to), b"new")["type"], "put-done");
            assert_eq!(mode(&path), kept, "{kept:o}");
        }
    }
    let given = with(put(&path), json!({"mode": 0o640}));
    assert_eq!(host.put(&given, b"new")["type"], "put-done");
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn setuid_is_dropped_when_the_owner_changes() {
    let agent = Agent::launch(folder(&[], &[]), Settings::user(As::Nobody));
    let files = agent.path("files");
    fs::create_dir(&files).unwrap();
    chown(&files, Some(common::NOBODY), Some(common::NOBODY)).unwrap();
    let path = files.join("a");
    fs::write(&path, "root's").unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o6750)).unwrap();
    let mut host = agent.connection();
    assert_eq!(host.put(&put(&path), b"new")["type"], "put-done");
    let found = fs::metadata(&path).unwrap();
    assert_eq!((found.uid(), mode(&path)), (common::NOBODY, 0o750));
}

#[test]
fn a_gigabyte_of_zeroes_is_a_hole_and_pings_are_answered_meanwhile() {
    let (agent, files) = agent();
    let path = files.join("sparse");
    let mut host = agent.connection();
    host.begin(&put(&path));
    let zeroes = vec![0; 262_143];
    let mut left = 1_usize << 30;
    let mut pings = agent.connection();
    while left > 0 {
        let piece = &zeroes[..left.min(zeroes.len())];
        host.data(3, piece);
        left -= piece.len();
        if left.is_multiple_of(64) {
            assert_eq!(pings.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
        }
    }
    host.data(3, b"end");
    host.send(&json!({"type": "put-end"}));
    assert_eq!(host.json()["bytes"], (1 << 30) + 3);
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.len(), (1 << 30) + 3);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
}

#[test]
fn a_full_disk_leaves_the_old_file_and_the_connection() {
    let agent = Agent::start(&[], &[]);
    let files = agent.path("files");
    fs::create_dir(&files).unwrap();
    let mut host = agent.connection();
    // The command's own namespace: what is mounted there is gone with it.
    let inner = format!(
        "mount -t tmpfs -o size=1m none {0} && printf old > {0}/a && exec {1} --no-system-effects \
         --config {2} --listen unix:{0}/../run/inner.sock --run-dir {0}/../inner \
         --integrations-dir {0}/../integrations.d --probes-dir {0}/../probes.d",
        files.display(),
        env!("CARGO_BIN_EXE_mvm-guest-agent"),
        agent.path("agent.json").display(),
    );
    let started = host.begin(&common::dev::exec(&[
        "unshare", "--mount", "sh", "-c", &inner,
    ]));
    assert_eq!(started["type"], "exec-started");
    // It is there before anybody listens on it.
    within(|| UnixStream::connect(agent.path("run/inner.sock")).ok());
    let mut full = agent.connection_to("run/inner.sock");
    let path = files.join("a");
    for request in [put(&path), archive(put(&files.join("b")))] {
        let mut content = tar_of(&[("x", &vec![b'x'; 4 << 20])]);
        if request["archive"].is_null() {
            content = vec![b'x'; 4 << 20];
        }
        let answer = full.put(&request, &content);
        assert_refused(&answer, "failed", "No space left");
        let (_, old, _) = full.get(&get(&path));
        assert_eq!(old, b"old");
        let ran = full.exec(&shell(&format!("ls -A {}", files.display())));
        assert_eq!(ran.text(), "a\n");
    }
    assert_eq!(full.put(&put(&path), b"new")["type"], "put-done");
}

/// The process that unpacks is stopped, so that it cannot clean up after itself before the next agent ends
/// it, as it is when there is much to be removed.
#[test]
fn an_agent_that_is_killed_leaves_nothing_beside_what_was_put() {
    let (agent, files) = agent();
    let content = tar_of(&[("a", &vec![7; 100_000]), ("b", b"b")]);
    let mut host = agent.connection();
    host.begin(&archive(put(&files.join("folder"))));
    host.data(3, &content[..102_000]);
    within(|| (names(&files).len() == 1).then_some(()));
    let old = files.join("old");
    fs::write(&old, "old").unwrap();
    let mut other = agent.connection();
    other.begin(&put(&old));
    other.data(3, b"new");
    for pid in children(agent.pid()) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    }
    let agent = agent.crash_and_restart();
    let files = agent.path("files");
    within(|| (names(&files) == ["old"]).then_some(()));
    assert_eq!(fs::read(files.join("old")).unwrap(), b"old");
    within(|| {
        let records = fs::read_dir(agent.path("run/puts"));
        records
            .is_ok_and(|mut it| it.next().is_none())
            .then_some(())
    });
    // What is under way is left alone.
    let mut host = agent.connection();
    host.begin(&archive(put(&files.join("folder"))));
    host.data(3, &content);
    host.send(&json!({"type": "put-end"}));
    assert_eq!(host.json()["type"], "put-done");
    assert_eq!(names(&files), ["folder", "old"]);
}
