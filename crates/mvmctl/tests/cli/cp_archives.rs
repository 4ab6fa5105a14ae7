//! Folders that come out of a guest: archives, some of them hostile.

use super::cp::{cp, cp_command, mode, names, with_folder};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

fn header(path: &str, kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o6755);
    header.set_mtime(1_000_000_000);
    // Not by its own means, which refuse what a hostile guest sends.
    let name = &mut header.as_gnu_mut().unwrap().name;
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    header
}

fn link_header(path: &str, kind: EntryType, target: &str) -> Header {
    let mut header = header(path, kind, 0);
    let name = &mut header.as_gnu_mut().unwrap().linkname;
    name[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header
}

/// An archive of raw headers and contents.
fn archive(entries: &[(Header, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, content) in entries {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn a_folder_comes_out_of_the_guest() {
    let mut builder = Builder::new(Vec::new());
    let mut add = |path: &str, kind, mode, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content).unwrap();
    };
    let long = "n".repeat(150);
    add("closed", EntryType::Directory, 0o500, b"");
    add("closed/in", EntryType::Directory, 0o2750, b"");
    add("closed/in/x", EntryType::Regular, 0o4755, b"content");
    add(&long, EntryType::Regular, 0o600, &vec![0; 100_000]);
    add("not/mentioned/before", EntryType::Regular, 0o644, b"y");
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_mtime(0);
    builder
        .append_link(&mut header, "away", "/etc/passwd")
        .unwrap();
    let host = with_folder(builder.into_inner().unwrap(), 0o2711);
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("copy");
    cp(&host, "web:/srv/site", &target).exits(0).silently();
    assert_eq!(mode(&target), 0o711);
    assert_eq!(mode(&target.join("closed")), 0o500);
    assert_eq!(mode(&target.join("closed/in")), 0o750);
    assert_eq!(mode(&target.join("closed/in/x")), 0o755);
    assert_eq!(
        target.join("closed/in/x").metadata().unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        target.join("closed").metadata().unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(fs::read(target.join(&long)).unwrap(), vec![0; 100_000]);
    assert_eq!(target.join(&long).metadata().unwrap().blocks(), 0);
    assert_eq!(
        fs::read_link(target.join("away")).unwrap(),
        Path::new("/etc/passwd")
    );
    // Into a folder that is there, by its own name; never over one.
    cp(&host, "web:/srv/site", folder.path()).exits(0);
    cp(&host, "web:/srv/site", folder.path())
        .exits(1)
        .says("is there already")
        .says("not merged");
    assert_eq!(names(folder.path()), ["copy", "site"]);
    // To standard output it goes as it came.
    let output = cp_command(&host, "web:/srv/site", "-").output().unwrap();
    assert_eq!(
        tar::Archive::new(output.stdout.as_slice())
            .entries()
            .unwrap()
            .count(),
        6
    );
}

#[test]
fn a_hostile_archive_writes_nothing_anywhere() {
    let outside = TempDir::new().unwrap();
    let away = outside.path().to_str().unwrap().to_owned();
    let file = |path: &str| (header(path, EntryType::Regular, 4), b"evil".as_slice());
    let kind = |kind| (header("x", kind, 0), b"".as_slice());
    let link = |target: &str| {
        (
            link_header("link", EntryType::Symlink, target),
            b"".as_slice(),
        )
    };
    let pax = b"29 size=99999999999999999999\n";
    let huge = EntryType::GNULongName;
    let long = vec![b'n'; 70_000];
    let all = [
        ("`..`", vec![file("../evil")]),
        ("`..`", vec![file("a/../../evil")]),
        ("absolute", vec![file(&format!("{away}/evil"))]),
        ("leads through", vec![link(&away), file("link/evil")]),
        (
            "leads through",
            vec![link(&away), file("link/deep/er/evil")],
        ),
        ("leads through", vec![link("."), file("link/evil")]),
        (
            "File exists",
            vec![link(&format!("{away}/evil")), file("link")],
        ),
        ("File exists", vec![file("x"), file("x")]),
        ("leads through", vec![file("x"), file("x/y")]),
        (
            "hard link",
            vec![(link_header("x", EntryType::Link, "/etc/passwd"), b"")],
        ),
        ("neither a file", vec![kind(EntryType::Char)]),
        ("neither a file", vec![kind(EntryType::Block)]),
        ("neither a file", vec![kind(EntryType::Fifo)]),
        ("no name", vec![file("./")]),
        (
            "a name is too long",
            vec![(header("x", huge, long.len()), &long)],
        ),
        (
            "size outside of its header",
            vec![(header("x", EntryType::XHeader, pax.len()), pax), file("x")],
        ),
        (
            "",
            vec![(header("x", EntryType::Regular, 4000), b"cut off")],
        ),
    ];
    for (says, entries) in all {
        let host = with_folder(archive(&entries), 0o755);
        let folder = TempDir::new().unwrap();
        let ran = cp(&host, "web:/x", folder.path().join("new"));
        ran.exits(1).says("cannot unpack").says(says);
        assert_eq!(names(folder.path()), [""; 0], "{says}");
        assert_eq!(names(outside.path()), [""; 0], "{says}");
    }
}

#[test]
fn an_archive_that_is_too_deep_is_refused_and_leaves_nothing() {
    let mut builder = Builder::new(Vec::new());
    for depth in [255, 1500] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o500);
        header.set_size(0);
        let path = vec!["folder"; depth].join("/");
        builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
    }
    let host = with_folder(builder.into_inner().unwrap(), 0o755);
    let folder = TempDir::new().unwrap();
    cp(&host, "web:/srv/site", folder.path().join("copy"))
        .exits(1)
        .says("1500 folders deep, and no more than 256");
    assert_eq!(names(folder.path()), [""; 0]);
}
