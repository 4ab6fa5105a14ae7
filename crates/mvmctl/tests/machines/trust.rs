//! Records and folders that another user may have written are not believed, and files that are none
//! hang nothing.

use super::{Home, START, end, is_there};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

/// Longer than any command takes that does not wait for a writer to a FIFO.
const HANGS: Duration = Duration::from_secs(30);

/// A home with a VM `db` that runs, and a VM `web` that was stopped.
fn home() -> Home {
    let home = Home::new();
    home.ok("vm start db --backend local");
    home.ok(START);
    home.ok("vm stop web");
    home
}

/// `vm ls` shows `db` as ever, and `web` as one of which nothing is known, with that error.
fn lists_web_as_unknown(home: &Home, code: &str) {
    let listing = home.begin("vm ls --json");
    let begun = Instant::now();
    let listed: Value = serde_json::from_str(&end(listing).stdout).unwrap();
    assert!(begun.elapsed() < HANGS);
    assert_eq!(
        (&listed[0]["vm"], &listed[0]["state"]),
        (&json!("db"), &json!("running"))
    );
    assert_eq!(
        (&listed[1]["vm"], &listed[1]["state"]),
        (&json!("web"), &json!("unknown"))
    );
    assert_eq!(listed[1]["error"]["code"], code, "{listed}");
}

/// A record by which a process that is not the VM's is ended, a program is run, and a folder removed.
fn hostile(home: &Home, pid: u32) -> String {
    let agent = home.agent(&format!("echo >{}/ran", home.0.path().display()));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let start_ticks: u64 = fields.split(' ').nth(19).unwrap().parse().unwrap();
    let snapshot_dir = home.0.path().join(".partial-x");
    fs::create_dir_all(&snapshot_dir).unwrap();
    let mut record = home.record("db");
    record["name"] = "web".into();
    record["state"] = "starting".into();
    record["agent"] = agent.into();
    record["snapshot_dir"] = snapshot_dir.to_str().into();
    record["processes"] = json!([{"role": "agent", "pid": pid, "start_ticks": start_ticks}]);
    record.to_string()
}

/// Nothing is done on the word of `web`'s record, whatever is asked for.
fn is_not_believed(home: &Home, mut distrust: impl FnMut(&Path)) {
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let record = home.file("web/vm.json");
    fs::write(&record, hostile(home, other.id())).unwrap();
    distrust(&record);
    let content = fs::read(&record).unwrap();
    lists_web_as_unknown(home, "not-trusted");
    for line in ["start", "stop --force", "rm --force", "rm", "logs", "wake"] {
        let run = home.run(&format!("vm {line} web"));
        let told = run.stderr.contains("is not believed");
        let runs = is_there(i64::from(other.id()));
        if !told || !runs || run.code == Some(0) {
            other.kill().unwrap();
            other.wait().unwrap();
            panic!("{line}: runs {runs}, {:?}: {}", run.code, run.stderr);
        }
    }
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(!home.0.path().join("ran").exists(), "its program was run");
    assert!(home.0.path().join(".partial-x").exists());
    assert_eq!(fs::read(&record).unwrap(), content);
}

fn is_root(home: &Home) -> bool {
    let is_root = fs::metadata(home.0.path()).unwrap().uid() == 0;
    if !is_root {
        eprintln!("not run: only root can make another user's files");
    }
    is_root
}

#[test]
fn another_users_record_is_not_believed() {
    let home = home();
    if is_root(&home) {
        is_not_believed(&home, |record| chown(record, Some(NOBODY), None).unwrap());
    }
}

#[test]
fn a_record_in_another_users_folder_is_not_believed() {
    let home = home();
    if is_root(&home) {
        let folder = home.file("web");
        is_not_believed(&home, |_| chown(&folder, Some(NOBODY), None).unwrap());
        // Nor is a VM started in an empty one.
        fs::create_dir(home.file("new")).unwrap();
        chown(home.file("new"), Some(NOBODY), None).unwrap();
        home.fails("vm start new --backend local", 1, "belongs to user 65534");
        assert_eq!(fs::read_dir(home.file("new")).unwrap().count(), 0);
    }
}

#[test]
fn a_record_that_others_may_write_is_not_believed() {
    let home = home();
    let open = fs::Permissions::from_mode(0o666);
    is_not_believed(&home, |record| {
        fs::set_permissions(record, open.clone()).unwrap();
    });
}

#[test]
fn a_home_in_which_others_may_move_things_is_not_used_unless_it_is_sticky() {
    let home = home();
    let mode = |mode| fs::set_permissions(home.0.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o777);
    home.fails(
        "vm start web",
        1,
        "others than its owner may write to it (mode 777)",
    );
    mode(0o1777);
    home.ok("vm start web");
}

#[test]
fn a_record_that_is_no_file_or_too_large_hangs_nothing() {
    let home = home();
    let record = home.file("web/vm.json");
    let fifo = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let zero = |path: &Path| symlink("/dev/zero", path).unwrap();
    let huge = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    for make in [&fifo as &dyn Fn(&Path), &zero, &huge] {
        fs::remove_file(&record).unwrap();
        make(&record);
        lists_web_as_unknown(&home, "bad-record");
        home.fails("vm rm --force web", 1, "cannot use");
    }
    // An image's manifest likewise.
    let image = home.0.path().join("image");
    fs::create_dir(&image).unwrap();
    let manifest = image.join("manifest.json");
    for make in [&fifo as &dyn Fn(&Path), &zero, &huge] {
        make(&manifest);
        let line = format!("vm start new --backend local --image {}", image.display());
        home.fails(
            &line,
            1,
            "is no image folder: cannot read its manifest.json: it ",
        );
        assert!(!home.file("new").exists());
        fs::remove_file(&manifest).unwrap();
    }
}
