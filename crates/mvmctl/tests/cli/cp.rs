//! Files and folders into a guest and out of it.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, dev};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tar::{EntryType, Header};
use tempfile::TempDir;

/// What a guest was asked to write.
pub(crate) struct Written {
    asked: Value,
    content: Vec<u8>,
}

/// Takes what is sent up to `put-end`; `None` if the client goes away before that.
fn content(peer: &mut Peer) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        match peer.frame()? {
            Frame::Data { channel: 3, bytes } => content.extend(bytes),
            Frame::Json(body) => {
                assert_eq!(body, br#"{"type":"put-end"}"#);
                return Some(content);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A guest that takes all that it is sent; it tells of what was given up with `None`.
pub(crate) fn taking() -> (Host, Receiver<Option<Written>>) {
    let (tell, heard) = channel();
    let tell = Mutex::new(tell);
    let host = Host::with(
        "web",
        dev(move |peer, asked| {
            assert_eq!(asked["type"], "put");
            peer.reply(asked, json!({"type": "put-ready", "path": asked["path"]}));
            let content = content(peer);
            if let Some(content) = &content {
                peer.reply(asked, json!({"type": "put-done", "bytes": content.len()}));
            }
            let asked = asked.clone();
            let written = content.map(|content| Written { asked, content });
            tell.lock().unwrap().send(written).unwrap();
        }),
    );
    (host, heard)
}

/// A guest that has one file.
pub(crate) fn with_file(content: &'static [u8], mode: u32) -> Host {
    giving(move |peer, asked| {
        started(peer, asked, Some(content.len()), mode, false);
        for piece in content.chunks(7) {
            peer.data(3, piece);
        }
        done(peer, asked, content.len());
    })
}

/// A guest that has one folder.
pub(crate) fn with_folder(archive: Vec<u8>, mode: u32) -> Host {
    giving(move |peer, asked| {
        started(peer, asked, None, mode, true);
        for piece in archive.chunks(1000) {
            peer.data(3, piece);
        }
        done(peer, asked, archive.len());
    })
}

fn giving(serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> Host {
    Host::with(
        "web",
        dev(move |peer, asked| {
            assert_eq!(
                (&asked["type"], &asked["archive"]),
                (&"get".into(), &"tar".into())
            );
            serve(peer, asked);
        }),
    )
}

fn started(peer: &mut Peer, asked: &Value, bytes: Option<usize>, mode: u32, archive: bool) {
    let mut answer = json!({"type": "get-started", "bytes": bytes, "mode": mode});
    if archive {
        answer["archive"] = "tar".into();
    }
    peer.reply(asked, answer);
}

fn done(peer: &mut Peer, asked: &Value, bytes: usize) {
    peer.reply(asked, json!({"type": "get-done", "bytes": bytes}));
}

pub(crate) fn cp(host: &Host, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Ran {
    Ran::from(cp_command(host, from, to).output().unwrap())
}

pub(crate) fn cp_command(host: &Host, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Command {
    let mut command = host.command("vm cp");
    command.arg(from.as_ref()).arg(to.as_ref());
    command
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

#[test]
fn a_file_that_ends_short_of_what_was_announced_leaves_nothing() {
    let host = giving(|peer, asked| {
        started(peer, asked, Some(8), 0o644, false);
        peer.data(3, b"half");
        done(peer, asked, 4);
    });
    let folder = TempDir::new().unwrap();
    let old = folder.path().join("old");
    fs::write(&old, "old").unwrap();
    for target in [folder.path().join("new"), old.clone()] {
        cp(&host, "web:/x", &target).exits(3);
    }
    assert_eq!(names(folder.path()), ["old"]);
    assert_eq!(fs::read(&old).unwrap(), b"old");
}

#[test]
fn a_file_goes_into_the_guest() {
    let (host, heard) = taking();
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("some name");
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&file, &content).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o2751)).unwrap();
    cp(&host, &file, "web:/srv").exits(0).silently();
    let written = heard.recv().unwrap().unwrap();
    assert!(written.content == content);
    assert_eq!(
        written.asked,
        json!({"type": "put", "id": 1, "path": "/srv", "mode": 0o2751, "name": "some name"})
    );
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    let by_address = format!("unix:{}:/x", host.socket("web").display());
    cp(&host, &empty, by_address).exits(0);
    assert_eq!(heard.recv().unwrap().unwrap().content, b"");
}

#[test]
fn a_stream_goes_into_the_guest() {
    let (host, heard) = taking();
    let mut command = cp_command(&host, "-", "web:/srv/x");
    let input = host.path().join("mvmctl.toml");
    fs::write(&input, "# content\n").unwrap();
    command.stdin(fs::File::open(input).unwrap());
    Ran::from(command.output().unwrap()).exits(0).silently();
    let written = heard.recv().unwrap().unwrap();
    assert_eq!(written.content, b"# content\n");
    assert_eq!(
        written.asked,
        json!({"type": "put", "id": 1, "path": "/srv/x"})
    );
}

#[test]
fn a_folder_goes_into_the_guest() {
    let (host, heard) = taking();
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("site");
    let long = "n".repeat(120);
    fs::create_dir_all(root.join(&long).join(&long)).unwrap();
    fs::write(root.join(&long).join(&long).join("deep"), "deep").unwrap();
    fs::write(root.join("b"), "content of b").unwrap();
    fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o604)).unwrap();
    symlink("/etc/passwd", root.join("a link")).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
    // By a name of its own, wherever it is meant from.
    let mut command = cp_command(&host, ".", "web:/srv");
    let ran = Ran::from(command.current_dir(&root).output().unwrap());
    ran.exits(0).silently();
    let written = heard.recv().unwrap().unwrap();
    assert_eq!(
        written.asked,
        json!({"type": "put", "id": 1, "path": "/srv", "mode": 0o711, "name": "site", "archive": "tar"})
    );
    let mut archive = tar::Archive::new(written.content.as_slice());
    let mut seen = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        std::io::Read::read_to_string(&mut entry, &mut content).unwrap();
        let path = entry.path().unwrap().display().to_string();
        let link = entry
            .link_name()
            .unwrap()
            .map(|it| it.display().to_string());
        let kind = entry.header().entry_type();
        seen.push((path, kind, entry.header().mode().unwrap(), link, content));
    }
    let folder = |path: String| {
        (
            path,
            EntryType::Directory,
            mode(&root.join(&long)),
            None,
            String::new(),
        )
    };
    assert_eq!(
        seen,
        [
            (
                "a link".into(),
                EntryType::Symlink,
                0o777,
                Some("/etc/passwd".into()),
                String::new()
            ),
            (
                "b".into(),
                EntryType::Regular,
                0o604,
                None,
                "content of b".into()
            ),
            folder(long.clone()),
            folder(format!("{long}/{long}")),
            (
                format!("{long}/{long}/deep"),
                EntryType::Regular,
                mode(&root.join(&long).join(&long).join("deep")),
                None,
                "deep".into()
            ),
        ]
    );
}

#[test]
fn what_cannot_be_packed_is_not_half_copied() {
    let (host, heard) = taking();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a"), "content").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(folder.path().join("b")).unwrap();
    cp(&host, folder.path(), "web:/srv")
        .exits(1)
        .says("/b: neither a file, a folder nor a symbolic link");
    assert!(heard.recv().unwrap().is_none(), "it was not given up");
    drop(socket);
    cp(&host, folder.path().join("none"), "web:/srv")
        .exits(1)
        .says("cannot read")
        .says("No such file");
}

#[test]
fn a_guest_that_fails_in_the_middle_is_believed() {
    let host = Host::with(
        "web",
        dev(|peer, asked| {
            peer.reply(asked, json!({"type": "put-ready", "path": "/srv/x"}));
            peer.frame();
            peer.refuse(asked, "failed", "write `/srv/x`: No space left on device");
            // What comes up to the end of the content is dropped; then it is in step again.
            content(peer);
        }),
    );
    let mut command = cp_command(&host, "-", "web:/srv/x");
    command.stdin(fs::File::open("/dev/zero").unwrap());
    Ran::from(command.output().unwrap())
        .exits(1)
        .says("No space left on device");
    // Also while there is nothing to send.
    let host = Host::with(
        "web",
        dev(|peer, asked| {
            peer.reply(asked, json!({"type": "put-ready", "path": "/srv/x"}));
            peer.refuse(asked, "busy", "the guest goes to sleep");
            content(peer);
        }),
    );
    let mut command = cp_command(&host, "-", "web:/srv/x");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _stdin = child.stdin.take().unwrap();
    Ran::from(child.wait_with_output().unwrap())
        .exits(1)
        .says("goes to sleep")
        .says("try again later");
}

#[test]
fn a_file_comes_out_of_the_guest() {
    let host = with_file(b"content of a file", 0o6751);
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("x");
    fs::write(&target, "old and longer than the new one").unwrap();
    cp(&host, "web:/etc/motd", &target).exits(0).silently();
    assert_eq!(fs::read(&target).unwrap(), b"content of a file");
    // Whatever a guest says: no program of its is setuid here.
    assert_eq!(mode(&target), 0o751);
    cp(&host, "web:/etc/motd", folder.path()).exits(0);
    symlink(&target, folder.path().join("link")).unwrap();
    cp(&host, "web:/etc/other", folder.path().join("link")).exits(0);
    assert!(folder.path().join("link").is_symlink());
    assert_eq!(names(folder.path()), ["link", "motd", "x"]);
}

#[test]
fn where_nothing_can_go() {
    let host = with_file(b"content", 0o644);
    let folder = TempDir::new().unwrap();
    let fails = |from: &str, to: PathBuf, code: i32, says: &str| {
        cp(&host, from, to).exits(code).says(says);
    };
    fails("web:/", folder.path().into(), 2, "no name of its own");
    fails("web:/x", folder.path().join("no/x"), 1, "No such file");
    fails("web:/x", folder.path().join("no/"), 1, "no folder");
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    fails("web:/x", pipe.clone(), 1, "is no file");
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
    assert_eq!(names(folder.path()), ["pipe"]);
}

#[test]
fn what_stops_in_the_middle_leaves_the_old_file() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("x");
    fs::write(&target, "old").unwrap();
    let gone = giving(|peer, asked| {
        started(peer, asked, Some(10), 0o644, false);
        peer.data(3, b"half ");
        peer.hang_up();
    });
    cp(&gone, "web:/x", &target)
        .exits(3)
        .says("while a file was on its way");
    let failing = giving(|peer, asked| {
        started(peer, asked, Some(10), 0o644, false);
        peer.data(3, b"half ");
        peer.refuse(asked, "failed", "read `/x`: Input/output error");
    });
    cp(&failing, "web:/x", &target)
        .exits(1)
        .says("Input/output error");
    let lossy = giving(|peer, asked| {
        started(peer, asked, Some(10), 0o644, false);
        peer.data(3, b"half ");
        done(peer, asked, 10);
    });
    cp(&lossy, "web:/x", &target).exits(3).says("is no agent");
    let silent = giving(|peer, asked| {
        started(peer, asked, Some(10), 0o644, false);
        peer.until_closed();
    });
    let mut command = cp_command(&silent, "web:/x", &target);
    command.args(["--timeout", "300ms"]);
    Ran::from(command.output().unwrap())
        .exits(3)
        .says("no progress of the file within 300ms");
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    for archive in [false, true] {
        let (tell, heard) = channel();
        let tell = Mutex::new(tell);
        let host = giving(move |peer, asked| {
            started(peer, asked, None, 0o644, archive);
            let mut header = Header::new_gnu();
            header.set_path("x").unwrap();
            header.set_size(1 << 40);
            header.set_mode(0o644);
            header.set_cksum();
            peer.data(3, header.as_bytes());
            // Until it is surely being written, since a queue is short.
            for _ in 0..20 {
                peer.data(3, &vec![7; 200_000]);
            }
            tell.lock().unwrap().send(()).unwrap();
            peer.until_closed();
        });
        let folder = TempDir::new().unwrap();
        let mut command = cp_command(&host, "web:/x", folder.path());
        command.stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        heard.recv().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        Ran::from(child.wait_with_output().unwrap())
            .exits(130)
            .says("nothing was copied");
        assert_eq!(names(folder.path()), [""; 0]);
    }
}

/// Nobody opens its other end.
#[test]
fn a_fifo_that_is_waited_for_can_be_interrupted() {
    let (host, _heard) = taking();
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    let mut command = cp_command(&host, &fifo, "web:/x");
    command.stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // Until it waits in the kernel for that: then it listens for signals as well.
    let until = Instant::now() + Duration::from_secs(20);
    let waits = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).unwrap();
        tasks.flatten().any(|task| {
            let at = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            at.contains("partner")
        })
    };
    while !waits() {
        assert!(Instant::now() < until, "it waits for no FIFO");
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("one signal does not end it");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Or until its time is over.
    let mut command = cp_command(&host, &fifo, "web:/x");
    command.args(["--timeout", "100ms"]);
    let ran = Ran::from(command.output().unwrap());
    ran.exits(1).says("could not be opened in time");
}

#[test]
fn what_cannot_be_meant() {
    let (host, _heard) = taking();
    for (from, to, says) in [
        ("web:/x", "web:/y", "one of the two has to be here"),
        ("a", "b", "neither of the two is in a guest"),
        ("-", "-", "neither of the two"),
        ("web:x", "y", "web:/x"),
        ("x", "../web!:/y", "neither of the two"),
        ("-", "we!b:/y", "64 letters"),
    ] {
        cp(&host, from, to).exits(2).says(says);
    }
    host.mvmctl("vm cp web:/x").exits(2);
    cp(&host, "-", "webb:/y")
        .exits(3)
        .says("did you mean `web`?");
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn a_folder_that_is_too_deep_is_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
    let mode = rustix::fs::Mode::RWXU;
    let mut inner = rustix::fs::open(folder.path(), flags, mode).unwrap();
    for _ in 0..600 {
        rustix::fs::mkdirat(&inner, "folder", mode).unwrap();
        inner = rustix::fs::openat(&inner, "folder", flags, mode).unwrap();
    }
    let (host, written) = taking();
    let ran = cp(&host, folder.path().join("folder"), "web:/srv/site").exits(1);
    ran.says("256 levels down").says("pack it with tar");
    assert!(written.recv().unwrap().is_none(), "all of it or nothing");
}
