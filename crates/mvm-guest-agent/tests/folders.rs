//! `put` and `get` of folders, as archives.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::assert_refused;
use common::dev::with;
use common::files::{agent, archive, get, header, names, put};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use tar::EntryType;

/// One entry with a name as it stands, however wicked.
fn entry(kind: EntryType, name: &str, link: &str) -> Vec<u8> {
    let mut header = header(kind, 0o755);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_link_name_literal(link).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn a_folder_comes_back_as_it_was_put() {
    let (agent, files) = agent();
    let from = agent.path("from");
    fs::create_dir_all(from.join("sub/deep")).unwrap();
    fs::write(from.join("sub/file"), "content").unwrap();
    fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::set_permissions(from.join("sub"), PermissionsExt::from_mode(0o550)).unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    fs::create_dir(from.join("d".repeat(120))).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    symlink("/nonexistent/elsewhere", from.join("link")).unwrap();
    fs::set_permissions(&from, PermissionsExt::from_mode(0o751)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    let mut host = agent.connection();
    let (started, stream, done) = host.get(&archive(get(&from)));
    assert_eq!(
        started,
        json!({"type": "get-started", "bytes": null, "mode": 0o751, "archive": "tar"})
    );
    assert_eq!(done["bytes"], stream.len());
    let to = files.join("to");
    let request = with(archive(put(&to)), json!({"mode": 0o751}));
    assert_eq!(host.put(&request, &stream)["bytes"], stream.len());
    assert_eq!(names(&to), [&"d".repeat(120), "link", "sub"]);
    assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"content");
    assert_eq!(fs::read(to.join(long)).unwrap(), b"long");
    assert_eq!(
        fs::read_link(to.join("link")).unwrap(),
        Path::new("/nonexistent/elsewhere")
    );
    for path in ["", "sub", "sub/file", "sub/deep"] {
        let (old, new) = (fs::metadata(from.join(path)), fs::metadata(to.join(path)));
        let (old, new) = (old.unwrap(), new.unwrap());
        assert_eq!(old.mode(), new.mode(), "{path}");
        assert!(path.is_empty() || old.mtime() == new.mtime(), "{path}");
    }
    // A file that is asked for as a folder comes as a file.
    let (started, content, _) = host.get(&archive(get(&from.join("sub/file"))));
    assert_eq!(
        (&started["archive"], content.as_slice()),
        (&Value::Null, &b"content"[..])
    );
    // Into a folder that is there by its name, and never over one.
    let named = with(archive(put(&files)), json!({"name": "again"}));
    assert_eq!(host.put(&named, &stream)["type"], "put-done");
    for taken in [
        archive(put(&files)),
        named,
        archive(put(&to.join("sub/file"))),
    ] {
        let answer = host.put(&taken, &stream);
        assert_refused(&answer, "failed", "there already");
    }
    assert_eq!(names(&files), ["again", "to"]);
}

#[test]
fn an_archive_writes_nowhere_but_into_its_folder() {
    let (agent, files) = agent();
    let outside = agent.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let out = outside.to_str().unwrap();
    let zeroes = vec![0; 1024];
    let link = |name, to| entry(EntryType::Symlink, name, to);
    let file = |name| entry(EntryType::Regular, name, "");
    let hard = |name, to| entry(EntryType::Link, name, to);
    let absolute = format!("{out}/new");
    let kept = format!("{out}/kept");
    let mut host = agent.connection();
    for (entries, message) in [
        (vec![file("../outside/new")], "leads outside"),
        (vec![file("a/../../outside/new")], "leads outside"),
        (vec![file(&absolute)], "absolute"),
        (vec![link("l", out), file("l/new")], "through the link"),
        (vec![link("l", "."), file("l/new")], "through the link"),
        (
            vec![link("l", out), entry(EntryType::Directory, "l", "")],
            "through the link",
        ),
        (vec![hard("h", "../outside/kept")], "leads outside"),
        (vec![hard("h", &kept)], "absolute"),
        (
            vec![link("l", out), hard("h", "l/kept")],
            "through the link",
        ),
        (vec![entry(EntryType::Char, "null", "")], "neither file"),
        (vec![entry(EntryType::Fifo, "pipe", "")], "neither file"),
        (vec![vec![b'x'; 512]], "archive cannot be read"),
    ] {
        let stream = [entries.concat(), zeroes.clone()].concat();
        let answer = host.put(&archive(put(&files.join("new"))), &stream);
        assert_refused(&answer, "failed", message);
        assert_eq!(names(&outside), ["kept"], "{message}");
        assert_eq!(names(&files), [""; 0], "{message}");
    }
    // A link may be replaced by a file, which is then written and not what the link led to.
    let stream = [link("l", &kept), file("l"), hard("h", "l"), zeroes].concat();
    let answer = host.put(&archive(put(&files.join("new"))), &stream);
    assert_eq!(answer["type"], "put-done", "{answer}");
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    assert_eq!(fs::metadata(files.join("new/h")).unwrap().nlink(), 2);
}

/// As bsdtar writes any file with holes.
#[test]
fn a_sparse_file_of_the_pax_format_is_refused() {
    let (agent, files) = agent();
    let mut builder = tar::Builder::new(Vec::new());
    let records = [("GNU.sparse.major", b"1".as_slice())];
    builder.append_pax_extensions(records).unwrap();
    let mut of_file = header(EntryType::Regular, 0o644);
    let path = "GNUSparseFile.0/disk";
    builder
        .append_data(&mut of_file, path, std::io::empty())
        .unwrap();
    let stream = builder.into_inner().unwrap();
    let answer = agent
        .connection()
        .put(&archive(put(&files.join("new"))), &stream);
    assert_refused(&answer, "failed", "--no-read-sparse");
    assert_eq!(names(&files), [""; 0]);
}

/// The tar library quotes what it cannot read.
#[test]
fn what_is_wrong_with_an_archive_is_told_without_control_characters() {
    let (agent, files) = agent();
    let mut wicked = header(EntryType::Regular, 0o644);
    wicked.set_path("file").unwrap();
    let mut of_mode = wicked.clone();
    of_mode.as_old_mut().mode = *b"\x1b[31m\x1b7\0";
    let mut of_size = wicked;
    of_size.as_old_mut().size = *b"\x1b]0;titles\x07\0";
    let mut host = agent.connection();
    for mut header in [of_mode, of_size] {
        header.set_cksum();
        let stream = [header.as_bytes().as_slice(), &[0; 1024]].concat();
        let answer = host.put(&archive(put(&files.join("new"))), &stream);
        assert_refused(&answer, "failed", "not a number: \u{fffd}");
        let message = answer["message"].as_str().unwrap();
        assert!(!message.contains(char::is_control), "{message:?}");
    }
}

/// Deeper ones cost more with each level, and no client takes them.
#[test]
fn an_archive_goes_down_256_levels_and_no_further() {
    let (agent, files) = agent();
    let mut host = agent.connection();
    for (depth, fits) in [(256, true), (257, false)] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut file = header(EntryType::Regular, 0o644);
        let path = format!("{}file", "d/".repeat(depth - 1));
        builder.append_data(&mut file, path, &b""[..]).unwrap();
        let stream = builder.into_inner().unwrap();
        let to = files.join(format!("put-{depth}"));
        let answer = host.put(&archive(put(&to)), &stream);
        let from = files.join(format!("get-{depth}"));
        fs::create_dir_all(from.join("d/".repeat(depth - 1))).unwrap();
        fs::write(from.join("d/".repeat(depth - 1)).join("file"), "").unwrap();
        let (_, _, done) = host.get(&archive(get(&from)));
        if fits {
            assert_eq!(answer["type"], "put-done", "{answer}");
            assert_eq!(done["type"], "get-done", "{done}");
        } else {
            assert_refused(&answer, "failed", "257 folders deep, and no more than 256");
            assert!(!to.exists());
            assert_refused(&done, "failed", "more than 256 levels down");
        }
    }
}
