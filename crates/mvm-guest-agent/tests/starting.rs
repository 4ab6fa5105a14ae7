//! Starting in what an earlier agent has left, or somebody else.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, NOBODY, PATIENCE, Settings, folder, processes, within};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

fn start(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mvm-guest-agent"))
        .args(["--no-system-effects", "--config", "agent.json"])
        .args(["--listen", "unix:run/agent.sock", "--run-dir", "run"])
        .args(["--integrations-dir", "integrations.d"])
        .args(["--probes-dir", "probes.d"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What an agent says from its start to a line with these words, or to its end; it is killed then.
fn said(dir: &Path, last: &str) -> Vec<String> {
    let mut agent = start(dir);
    let mut lines = Vec::new();
    for line in BufReader::new(agent.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let over = line.contains(last);
        lines.push(line);
        if over {
            break;
        }
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    lines
}

fn journal(kind: &str, dir: &Path) {
    let path = dir.join("run/journal.json");
    let write = |content: &[u8]| std::fs::write(&path, content).unwrap();
    let good = br#"{"asleep":true,"owed":["gone"],"generation":9}"#;
    match kind {
        "empty" => write(b""),
        "cut" => write(&good[..30]),
        "garbage" => write(&[0xff; 4000]),
        "deep" => write(format!("{{\"later\":{}", "[".repeat(1_000_000)).as_bytes()),
        "large" => write(&vec![b' '; 5_000_000]),
        "another shape" => write(br#"{"owed":{"a":1}}"#),
        "a FIFO" => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        "a link" => symlink("/dev/zero", &path).unwrap(),
        "a folder" => std::fs::create_dir(&path).unwrap(),
        "another user's" => {
            write(good);
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_journal_that_is_none_is_said_to_be_and_owes_nothing() {
    for (kind, words) in [
        ("empty", "EOF"),
        ("cut", "EOF"),
        ("garbage", "expected value"),
        ("deep", "EOF"),
        ("large", "is larger than 4194304 bytes"),
        ("another shape", "invalid type: map"),
        ("a FIFO", "is a FIFO, not a regular file"),
        ("a link", "is a link, not a regular file"),
        ("a folder", "is a folder, not a regular file"),
        ("another user's", "belongs to uid 65534"),
    ] {
        let owner = json!({"name": "gone", "restore_cmd": "touch run/restored"});
        let dir = folder(&[owner], &[]);
        std::fs::write(dir.path().join("run/generation"), "5\n").unwrap();
        journal(kind, dir.path());
        let lines = said(dir.path(), "integrations and 0 probes loaded");
        let text = lines.join("\n");
        assert!(text.contains("probes loaded"), "{kind}: {text}");
        assert!(text.contains("listening on"), "{kind}: {text}");
        let told = lines.iter().find(|line| line.contains("journal.json: "));
        let told = told.unwrap_or_else(|| panic!("{kind}: {text}"));
        assert!(told.contains(words), "{kind}: {told}");
        assert!(
            text.contains("what may have been owed is not known"),
            "{kind}"
        );
        let agent = Agent::launch(dir, Settings::default());
        assert_eq!(agent.status()["lifecycle"], "running", "{kind}");
        assert_eq!(agent.inspect()["snapshot"]["generation"], 5, "{kind}");
        assert!(!agent.path("run/restored").exists(), "{kind}");
    }
}

#[test]
fn a_journal_of_any_length_is_paid_as_far_as_its_debtors_are_known() {
    let dir = folder(&[], &[]);
    let restored = dir.path().join("run/restored").display().to_string();
    let here = json!({"name": "here", "restore_cmd": format!("echo it >> {restored}")});
    std::fs::write(dir.path().join("integrations.d/a.json"), here.to_string()).unwrap();
    let mut owed: Vec<String> = (0..20_000)
        .map(|number| format!("gone-{number:058}"))
        .collect();
    owed.extend(std::iter::repeat_n("here".to_owned(), 20_000));
    let journal = json!({
        "asleep": true, "owed": owed, "generation": u64::MAX, "last_sleep_ms": i64::MIN,
        "last_wake_ms": i64::MAX, "later": {"field": [1]},
    });
    std::fs::write(dir.path().join("run/journal.json"), journal.to_string()).unwrap();
    let lines = said(dir.path(), "lifecycle: running").join("\n");
    assert!(lines.contains("40000 restore commands are owed"), "{lines}");
    assert!(lines.contains("lifecycle: running"), "{lines}");
    assert_eq!(std::fs::read(&restored).unwrap(), b"it\n", "once");
    let agent = Agent::launch(dir, Settings::default());
    assert_eq!(agent.status()["lifecycle"], "running");
    assert_eq!(agent.inspect()["snapshot"]["generation"], u64::MAX);
    let awake = agent.ask(&json!({"type": "wake", "cause": "restored"}));
    assert_eq!(awake["generation"], u64::MAX, "{awake}");
    assert_eq!(
        std::fs::read(&restored).unwrap(),
        b"it\n",
        "owed nothing more"
    );
}

/// What an agent has forked may not have become a program when the agent is killed.
#[test]
fn what_stands_still_before_its_program_holds_nothing_of_the_agents() {
    let dir = folder(
        &[json!({"name": "x", "health_cmd": "true", "health_interval_secs": 0.05})],
        &[],
    );
    let agent = Agent::launch(dir, Settings::default());
    let Some(root) = cgroups_of(agent.pid(), &agent.path("run")) else {
        let required = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        assert!(!required, "no cgroup v2 can be written");
        eprintln!("SKIPPED, NOTHING WAS TESTED: no cgroup v2 can be written");
        return;
    };
    std::fs::write(root.join("cgroup.freeze"), "1").unwrap();
    // Frozen as it enters its cgroup: still a copy of the agent, by its command line.
    within(|| {
        let mut all = processes("unix:run/agent.sock").into_iter();
        all.find(|pid| {
            let at = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            *pid != agent.pid() && at.contains(root.file_name().unwrap().to_str().unwrap())
        })
    });
    let (dir, _) = agent.crash();
    let lines = said(dir.path(), "probes loaded").join("\n");
    std::fs::write(root.join("cgroup.freeze"), "0").unwrap();
    assert!(lines.contains("probes loaded"), "{lines}");
    Agent::launch(dir, Settings::default());
}

#[test]
fn an_agent_that_a_command_of_an_earlier_one_has_started_does_not_end_itself() {
    let settings = Settings {
        first: Some("export MVM_RUN=\"$PWD/run:7\""),
        ..Settings::default()
    };
    let agent = Agent::launch(folder(&[], &[]), settings);
    assert_eq!(agent.ask(&json!({"type": "ping"}))["type"], "pong");
}

/// The cgroup below which an agent makes those of its runs.
fn cgroups_of(pid: u32, run_dir: &Path) -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let own = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let name = run_dir
        .canonicalize()
        .unwrap()
        .to_string_lossy()
        .replace('/', "-");
    let root = Path::new(mount.split_whitespace().nth(4)?)
        .join(own)
        .join(format!("mvm-guest-agent{name}"));
    root.exists().then_some(root)
}

#[test]
fn two_hundred_that_are_killed_are_each_followed_by_the_next() {
    let busy = |number: u32| {
        let command = "setsid sleep 600 & true";
        json!({"name": format!("busy-{number}"), "health_cmd": command, "health_interval_secs": 0.01})
    };
    let entries: Vec<_> = (0..4).map(busy).collect();
    let dir: TempDir = folder(&entries, &[]);
    for round in 0..200 {
        // Between them they fork all the time.
        let lines = said(dir.path(), "probes loaded").join("\n");
        assert!(lines.contains("probes loaded"), "round {round}: {lines}");
    }
    let agent = Agent::launch(dir, Settings::default());
    assert_eq!(agent.status()["lifecycle"], "running");
}

#[test]
fn inspect_says_when_what_was_up() {
    let web = json!({"name": "web", "health_cmd": "true"});
    let agent = Agent::start(&[web, json!({"name": "unchecked"})], &[]);
    agent.check("web");
    let inspect = agent.inspect();
    let boot = &inspect["boot"];
    let at = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{boot}"));
    // In the order of their files: `unchecked`, `web`.
    let up = [
        at(&boot["process_started_secs"]),
        // Of the process the kernel tells hundredths, cut off.
        at(&boot["agent_started_secs"]),
        at(&boot["drop_ins_loaded_secs"]),
        at(&inspect["integrations"][1]["first_healthy_secs"]),
        at(&boot["ready_secs"]),
        at(&inspect["uptime_secs"]),
    ];
    assert!(up.is_sorted(), "{up:?}");
    assert!(up[5] - up[0] < PATIENCE.as_secs_f64(), "{up:?}");
    assert_eq!(inspect["integrations"][0].get("first_healthy_secs"), None);
}

/// Some inits and `nohup` do that. A child that no SIGCHLD tells of is gone with its exit code.
#[test]
fn signals_that_whoever_starts_it_ignores_are_not_ignored_in_what_it_starts() {
    let tell = "grep '^SigIgn:' /proc/self/status";
    let probe = json!({"name": "ignored", "command": tell, "interval_secs": 86_400});
    let settings = Settings {
        first: Some("exec env --ignore-signal \"$0\" \"$@\""),
        ..Settings::default()
    };
    let agent = Agent::launch(folder(&[], &[probe]), settings);
    let checked = agent.ask(&json!({"type": "check", "kind": "probe", "name": "ignored"}));
    let probe = &checked["probe"];
    let told = probe["value"].as_str().and_then(|it| it.split_once('\t'));
    let ignored = told.and_then(|(_, mask)| u64::from_str_radix(mask, 16).ok());
    // 32 to 34 are the C libraries' own, and nobody else may set them.
    let of_libc = 0b111 << 31;
    assert_eq!(ignored.map(|mask| mask & !of_libc), Some(0), "{probe}");
}

/// As a thread of a supervisor's that takes its signals by a signalfd may leave them.
#[test]
fn signals_that_whoever_starts_it_blocks_reach_it() {
    let settings = Settings {
        first: Some("exec env --block-signal \"$0\" \"$@\""),
        ..Settings::default()
    };
    let mut agent = Agent::launch(folder(&[], &[]), settings);
    assert_eq!(agent.ask(&json!({"type": "ping"}))["type"], "pong");
    agent.signal(Signal::TERM);
    assert!(agent.wait().success());
}

/// As of `sh -c 'logger & exec mvm-guest-agent'`.
#[test]
fn what_it_was_given_by_whoever_started_it_is_let_live_and_reaped() {
    let settings = Settings {
        first: Some("sleep 0.05 & sleep 1067 & exec \"$0\" \"$@\""),
        ..Settings::default()
    };
    let probe = json!({"name": "any", "command": "true", "interval_secs": 86_400});
    let agent = Agent::launch(folder(&[], &[probe]), settings);
    let pid = agent.pid();
    within(|| {
        agent.ask(&json!({"type": "check", "kind": "probe", "name": "any"}));
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap();
        let children: Vec<_> = children.split_whitespace().collect();
        match children[..] {
            [lives] => {
                let stat = std::fs::read_to_string(format!("/proc/{lives}/stat")).unwrap();
                assert!(stat.contains("(sleep) S"), "{stat}");
                let lives = Pid::from_raw(lives.parse().unwrap()).unwrap();
                kill_process(lives, Signal::KILL).unwrap();
                Some(())
            }
            _ => None,
        }
    });
}
