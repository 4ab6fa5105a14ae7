//! Snapshot folders: written, read, altered.

use super::*;
use rustix::fs::Mode;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn manifest() -> Manifest {
    Manifest {
        version: VERSION,
        vm: "web".into(),
        vmm: Vmm {
            name: "qemu".into(),
            version: "7.2.22".into(),
            accelerator: Some("tcg".into()),
        },
        image: "/images/web".into(),
        cpus: 1,
        memory_mib: 256,
        port: 52,
        token: Token::new("t0ken").unwrap(),
        agent_version: "0.1.0".into(),
        created: Timestamp(1_763_964_131_123),
        files: Vec::new(),
    }
}

/// Of a test that does not look at what is remembered: nothing can be there.
fn home() -> Home {
    Home::at("/dev/null/home")
}

fn begin(home: &Home, at: &Path) -> Result<SnapshotDir, Error> {
    SnapshotPlace::beside(at)?.make(home)
}

fn taken(at: &Path) -> Snapshot {
    let snapshot_dir = begin(&home(), at).unwrap();
    std::fs::write(snapshot_dir.folder().join("state"), "the guest").unwrap();
    snapshot_dir.publish(manifest()).unwrap()
}

#[test]
fn what_was_published_is_read_back_and_is_for_its_owner_alone() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("a/b");
    let taken = taken(&at);
    let read = Snapshot::open(&at).unwrap();
    assert_eq!(read.manifest, taken.manifest);
    let [file] = read.manifest.files.as_slice() else {
        panic!("{read:?}");
    };
    assert_eq!((file.file.as_str(), file.bytes), ("state", 9));
    assert_eq!((&file.sha256, read.manifest.version), (&None, 2));
    // `(printf '\0\0\0\0\0\0\0\0'; printf 'the guest' | openssl sha256 -binary) | sha256sum`
    assert_eq!(
        file.sparse_sha256.as_deref(),
        Some("48ddbca158513a499e8a55feeb39912941d4af5acd6f5ec4c19b8a297b3213aa")
    );
    let mode = std::fs::metadata(&at).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700, "the guest's memory has its secrets");
    assert_eq!(std::fs::read_dir(at.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_draft_that_is_given_up_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let snapshot_dir = begin(&home(), &root.path().join("s")).unwrap();
    std::fs::write(snapshot_dir.folder().join("state"), "half").unwrap();
    drop(snapshot_dir);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn nothing_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("s");
    let late = begin(&home(), &at).unwrap();
    taken(&at);
    let exists = |error| matches!(error, Error::Snapshot(SnapshotError::Exists { .. }));
    assert!(exists(begin(&home(), &at).unwrap_err()));
    // An empty folder could be renamed over, if that were not forbidden.
    std::fs::remove_file(at.join("state")).unwrap();
    std::fs::remove_file(at.join(MANIFEST)).unwrap();
    assert!(exists(late.publish(manifest()).unwrap_err()));
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[test]
fn one_without_files_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("s");
    let empty = begin(&home(), &at).unwrap().publish(manifest());
    empty.unwrap();
    let error = Snapshot::open(&at).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("manifest.json: it names no files"), "{text}");
    assert!(error.hint().contains("take it again"), "{}", error.hint());
}

#[test]
fn what_the_vmm_writes_has_to_be_there() {
    let root = tempfile::tempdir().unwrap();
    let mut snapshot = taken(&root.path().join("s"));
    assert_eq!(snapshot.need("state").unwrap().bytes, 9);
    let text = snapshot.need("memory").unwrap_err().to_string();
    assert!(
        text.contains("no file \"memory\", which qemu writes"),
        "{text}"
    );
    snapshot.manifest.files[0].bytes = 0;
    let text = snapshot.need("state").unwrap_err().to_string();
    assert!(text.contains("\"state\" has no bytes"), "{text}");
}

#[test]
fn whatever_was_altered_is_found() {
    let check = |alter: &dyn Fn(&Path), expected: &str| {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("s");
        taken(&at);
        alter(&at);
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    };
    let state =
        |content: &'static str| move |at: &Path| std::fs::write(at.join("state"), content).unwrap();
    let rewrite = |from: &'static str, to: &'static str| {
        move |at: &Path| {
            let path = at.join(MANIFEST);
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{text}");
            std::fs::write(path, text.replace(from, to)).unwrap();
        }
    };
    check(&state("the gu"), "it has 6 bytes, and had 9");
    check(&state("the guesT"), "its SHA-256 is another one");
    check(
        &|at| std::fs::remove_file(at.join("state")).unwrap(),
        "state: No such file",
    );
    check(
        &|at| std::fs::remove_file(at.join(MANIFEST)).unwrap(),
        "is no snapshot",
    );
    check(&rewrite("\"cpus\"", "\"cpu\""), "unknown field `cpu`");
    check(&rewrite("\"port\": 52,", ""), "missing field `port`");
    check(
        &rewrite("\"version\": 2", "\"version\": 3"),
        "has version 3",
    );
    check(
        &rewrite("\"state\"", "\"../s/state\""),
        "the name of a file beside it",
    );
}

#[test]
fn a_snapshot_of_version_1_is_read_and_checked() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("s");
    let mut manifest = taken(&at).manifest;
    manifest.version = 1;
    // `printf 'the guest' | sha256sum`
    let sha256 = "ba3c94e4024dd874eb17b3ac4b8acf810ed8da98b4ca4736ebfcd3577b9d18c3";
    let [file] = manifest.files.as_mut_slice() else {
        panic!("{manifest:?}");
    };
    (file.sha256, file.sparse_sha256) = (Some(sha256.into()), None);
    let write = |manifest: &Manifest| {
        std::fs::write(at.join(MANIFEST), serde_json::to_vec(manifest).unwrap()).unwrap();
    };
    write(&manifest);
    assert_eq!(Snapshot::open(&at).unwrap().manifest, manifest);
    std::fs::write(at.join("state"), "the guesT").unwrap();
    let error = Snapshot::open(&at).unwrap_err().to_string();
    assert!(error.contains("its SHA-256 is another one"), "{error}");
    for digests in [(None, None), (Some(sha256.into()), Some(sha256.into()))] {
        (manifest.files[0].sha256, manifest.files[0].sparse_sha256) = digests;
        write(&manifest);
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains("has not one digest"), "{error}");
    }
}

/// The digest in the manifest is made another one, so that reading the file would be seen.
#[test]
fn what_was_verified_is_read_once() {
    let root = tempfile::tempdir().unwrap();
    let home = Home::at(root.path().join("home"));
    let at = root.path().join("s");
    let snapshot_dir = begin(&home, &at).unwrap();
    std::fs::write(snapshot_dir.folder().join("state"), "the guest").unwrap();
    snapshot_dir.publish(manifest()).unwrap();
    let entries = || std::fs::read_dir(home.root().join("verified")).unwrap();
    let entry = entries().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(&entry).unwrap();
    let in_time = Deadline::new(Duration::from_secs(20), None);
    let opened = |verify| Snapshot::open_verified(&home, &at, verify, in_time);
    let sees_it = |verify| match opened(verify) {
        Ok(_) => false,
        Err(error) => error.to_string().contains("its SHA-256 is another one"),
    };
    for verify in [Verify::Always, Verify::Once, Verify::Never] {
        assert!(!sees_it(verify), "{verify:?}");
    }
    // Taken for the same file, it is not read; what is not the same is.
    let path = at.join("state");
    std::fs::write(&path, "the guesT").unwrap();
    assert!(sees_it(Verify::Once) && sees_it(Verify::Always) && !sees_it(Verify::Never));
    let file = File::open(&path).unwrap();
    let identity = Identity::settled(&file).unwrap().unwrap();
    let digest = serde_json::from_str::<serde_json::Value>(&text).unwrap()["digest"].clone();
    let forged = serde_json::json!({"identity": identity, "digest": digest});
    std::fs::write(&entry, forged.to_string()).unwrap();
    assert!(!sees_it(Verify::Once) && sees_it(Verify::Always));
    // Nobody knows it any more: it is read, and remembered.
    std::fs::write(&path, "the guest").unwrap();
    std::fs::remove_file(&entry).unwrap();
    opened(Verify::Once).unwrap();
    assert!(entry.exists());
}

/// A guest's memory on a slow disk takes long to read.
#[test]
fn what_is_not_wanted_any_more_or_takes_too_long_is_read_no_further() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("s");
    let mut manifest = taken(&at).manifest;
    let home = Home::at(root.path().join("home"));
    let raised = AtomicBool::new(true);
    let long = Duration::from_secs(20);
    // The older digest, too.
    for version in [VERSION, VERSION_SHA256] {
        if version == VERSION_SHA256 {
            manifest.version = version;
            let file = &mut manifest.files[0];
            (file.sha256, file.sparse_sha256) = (Some("0".repeat(64)), None);
            let content = serde_json::to_vec(&manifest).unwrap();
            std::fs::write(at.join(MANIFEST), content).unwrap();
        }
        let opened = |verify, deadline| Snapshot::open_verified(&home, &at, verify, deadline);
        let error = opened(Verify::Once, Deadline::new(long, Some(&raised))).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
        let late = Deadline::new(Duration::ZERO, None);
        let error = opened(Verify::Always, late).unwrap_err().to_string();
        assert!(error.contains("the end of reading"), "{error}");
        assert!(error.contains("/s/state"), "{error}");
        // Of these the content is not read.
        opened(Verify::Never, late).unwrap();
    }
}

#[test]
fn what_is_no_file_or_endless_hangs_nothing() {
    use rustix::fs::{FileType, mknodat};
    let root = tempfile::tempdir().unwrap();
    let at = root.path().join("s");
    taken(&at);
    for name in ["state", MANIFEST] {
        let path = at.join(name);
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{name}: {error}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{name}: {error}");
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains("bytes"), "{name}: {error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, kept).unwrap();
    }
    Snapshot::open(&at).unwrap();
}
