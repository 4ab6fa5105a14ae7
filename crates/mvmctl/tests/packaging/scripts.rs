//! Scripts that are shipped, with programs that stand in for those that they start.

use super::{program, root};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with programs that stand in for those that a script starts. What `said` has of them is what
/// they were started with, a line each.
struct StandIns {
    folder: TempDir,
}

impl StandIns {
    /// Each is a name and the rest of its script.
    fn new(programs: &[(&str, &str)]) -> Self {
        let own = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for (name, script) in programs {
            let path = own.folder.path().join(name);
            let said = own.folder.path().join("said");
            let text = format!(
                "#!/bin/sh\necho \"{name} $*\" >>{said}\n{script}\n",
                said = said.display()
            );
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        own
    }

    /// A script of packaging/, which finds them first.
    fn script(&self, script: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .arg(root().join("packaging").join(script))
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("MVM_POOLS", self.folder.path())
            .current_dir(self.folder.path());
        command
    }

    /// A round of `mvm-scale`, for at most so many jobs.
    fn scale(&self, most: &str) -> Output {
        let mut round = self.script("slurm/mvm-scale");
        round.args(["web", most]).output().unwrap()
    }

    /// How those of that name were started, in their order.
    fn said(&self, names: &[&str]) -> Vec<String> {
        let said = fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        let lines = said.lines().map(str::to_owned);
        lines
            .filter(|line| {
                names
                    .iter()
                    .any(|name| line.split(' ').next() == Some(name))
            })
            .collect()
    }
}

/// What the scripts cannot do without. In CI it is installed.
fn has_jq() -> bool {
    let has_jq = program("jq").is_some();
    if !has_jq {
        assert!(std::env::var_os("CI").is_none(), "jq is not there");
        eprintln!("SKIPPED, NOTHING WAS TESTED: jq is not there");
    }
    has_jq
}

/// What Prometheus answers to a query with one number.
const TWO: &str = r#"echo '{"data":{"result":[{"value":[1,"2"]}]}}'"#;

/// Jobs 1 and 3 to 5, of which the last three are not needed where two are wanted.
const SQUEUE: &str =
    "printf 'web-1 11 RUNNING a\\nweb-3 13 RUNNING a\\nweb-4 14 PENDING \\nweb-5 15 RUNNING b\\n'";

#[test]
fn slurms_jobs_stay_as_they_are_while_nobody_says_how_many_are_wanted() {
    if !has_jq() {
        return;
    }
    for (broken, script) in [
        ("curl", "exit 22"),
        ("curl", ""),
        (
            "curl",
            r#"echo '{"data":{"result":[{"value":[1,"NaN"]}]}}'"#,
        ),
        ("curl", "echo '{\"data\":{\"result\":[]}}'"),
        ("squeue", "exit 1"),
        ("sinfo", "exit 1"),
    ] {
        let mut programs = [
            ("curl", TWO),
            ("squeue", SQUEUE),
            ("sinfo", "echo a"),
            ("sbatch", ""),
            ("scancel", ""),
        ];
        for (name, own) in &mut programs {
            if *name == broken {
                *own = script;
            }
        }
        let slurm = StandIns::new(&programs);
        assert!(!slurm.scale("6").status.success(), "{broken}");
        assert!(slurm.said(&["sbatch", "scancel"]).is_empty(), "{broken}");
    }
}

#[test]
fn slurms_jobs_that_are_not_needed_go_although_none_can_be_submitted() {
    if !has_jq() {
        return;
    }
    // A limit is reached, and a job that is to be cancelled has just ended.
    let slurm = StandIns::new(&[
        ("curl", TWO),
        ("squeue", SQUEUE),
        ("sinfo", "printf 'a\\nb\\n'"),
        ("sbatch", "exit 1"),
        ("scancel", "[ \"$2\" != 14 ]"),
    ]);
    let round = slurm.scale("6");
    assert_eq!(
        slurm.said(&["sbatch", "scancel"]),
        [
            "scancel --batch --signal=USR1 13",
            "scancel --state=PENDING 14",
            "scancel --batch --signal=USR1 15",
            "sbatch --quiet --job-name=web-2 /usr/lib/mvm/mvm-vm",
        ]
    );
    // That something failed is not hidden.
    assert_eq!(round.status.code(), Some(1), "{round:?}");

    // Nothing fails; b does not answer.
    let slurm = StandIns::new(&[
        ("curl", TWO),
        ("squeue", SQUEUE),
        ("sinfo", "echo a"),
        ("sbatch", ""),
        ("scancel", ""),
    ]);
    let round = slurm.scale("6");
    assert!(round.status.success(), "{round:?}");
    assert_eq!(
        slurm.said(&["sbatch", "scancel"]),
        [
            "scancel --batch --signal=USR1 13",
            "scancel --state=PENDING 14",
            "sbatch --quiet --job-name=web-2 /usr/lib/mvm/mvm-vm",
        ]
    );
}

#[test]
fn slurms_jobs_beyond_the_most_that_may_be_leave() {
    if !has_jq() {
        return;
    }
    // Six are wanted, and two may be: there were more when they were begun. Others' jobs are let be.
    let six = TWO.replace("\"2\"", "\"6\"");
    let others = format!("{SQUEUE}; printf 'web-blue-7 21 RUNNING a\\nxweb-8 22 RUNNING a\\n'");
    let slurm = StandIns::new(&[
        ("curl", &six),
        ("squeue", &others),
        ("sinfo", "printf 'a\\nb\\n'"),
        ("sbatch", ""),
        ("scancel", ""),
    ]);
    let round = slurm.scale("2");
    assert!(round.status.success(), "{round:?}");
    assert_eq!(
        slurm.said(&["sbatch", "scancel"]),
        [
            "scancel --batch --signal=USR1 13",
            "scancel --state=PENDING 14",
            "scancel --batch --signal=USR1 15",
            "sbatch --quiet --job-name=web-2 /usr/lib/mvm/mvm-vm",
        ]
    );
}

/// A job of Slurm whose VM lives until it gets TERM or the file `ends` is there, and what it was told.
fn job(slurm: &StandIns, settings: &str) -> Child {
    fs::write(slurm.folder.path().join("web.conf"), settings).unwrap();
    let mut job = slurm.script("slurm/mvm-vm");
    job.env("SLURM_JOB_NAME", "web-1")
        .env("MVM_HOME", "/nowhere");
    job.stderr(Stdio::null()).spawn().unwrap()
}

/// How the job ended, which has 20 s for it.
fn ended(job: &mut Child) -> Option<i32> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if let Some(status) = job.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    job.kill().unwrap();
    job.wait().unwrap();
    None
}

fn signal(job: &Child, signal: &str) {
    let id = job.id().to_string();
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", signal, &id])
        .status();
    assert!(sent.unwrap().success());
}

/// Waits until something that the job does was done so often.
fn until_said(slurm: &StandIns, what: &str, count: usize) {
    let began = Instant::now();
    let times = || {
        slurm
            .said(&["mvmctl", "slow"])
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
    };
    while times() < count {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `vm run` until TERM, for 30 s at most; `vm wait` fails twice before the guest is idle.
const VM: &str = "case $2 in
    run) trap 'exit 0' TERM; for _ in $(seq 600); do [ ! -e ends ] || exit 1; /bin/sleep 0.05; done; exit 1 ;;
    wait) echo >>waits; [ $(wc -l <waits) -gt 2 ] ;;
    esac";

#[test]
fn a_job_of_slurm_leaves_although_its_guest_cannot_be_asked_at_first() {
    let slurm = StandIns::new(&[("mvmctl", VM), ("sleep", "/bin/sleep 0.05")]);
    let mut job_1 = job(&slurm, "MVM_RUN=--quiet\n");
    until_said(&slurm, "mvmctl vm run", 1);
    signal(&job_1, "USR1");
    signal(&job_1, "USR1");
    assert_eq!(ended(&mut job_1), Some(0), "{:?}", slurm.said(&["mvmctl"]));
    assert_eq!(
        slurm.said(&["mvmctl", "sleep"])[1..],
        [
            "mvmctl vm wait web-1 --for idle",
            "sleep 5",
            "mvmctl vm wait web-1 --for idle",
            "sleep 5",
            "mvmctl vm wait web-1 --for idle",
        ]
    );

    // A VM that ends by itself meanwhile takes its job with it, and who waits for it.
    let never = VM.replace("-gt 2", "-gt 999999");
    let slurm = StandIns::new(&[("mvmctl", &never), ("sleep", "/bin/sleep 0.05")]);
    let mut job_1 = job(&slurm, "MVM_RUN=--quiet\n");
    until_said(&slurm, "mvmctl vm run", 1);
    signal(&job_1, "USR1");
    until_said(&slurm, "mvmctl vm wait", 3);
    fs::write(slurm.folder.path().join("ends"), "").unwrap();
    assert_eq!(ended(&mut job_1), Some(1));
    std::thread::sleep(Duration::from_millis(300));
    let waits = slurm.said(&["mvmctl"]).len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(slurm.said(&["mvmctl"]).len(), waits, "it asks on");
}

#[test]
fn a_job_of_slurm_keeps_a_signal_that_comes_before_its_vm() {
    let run = "mvmctl vm run web-1 --on-term stop --timeout 100s --quiet";
    for (name, begins) in [("USR1", true), ("TERM", false)] {
        // The settings of the pool are read for a while.
        let slurm = StandIns::new(&[
            ("mvmctl", VM),
            ("sleep", "/bin/sleep 0.05"),
            ("slow", "/bin/sleep 1"),
        ]);
        let mut job_1 = job(&slurm, "slow\nMVM_RUN=--quiet\n");
        until_said(&slurm, "slow", 1);
        signal(&job_1, name);
        assert_eq!(ended(&mut job_1), Some(0), "{name}");
        // Who waits for it to be idle is begun at the same time.
        let said = slurm.said(&["mvmctl"]);
        assert_eq!(said.iter().any(|line| line == run), begins, "{name}");
    }
}

#[test]
fn units_follow_a_number_and_nothing_else() {
    if !has_jq() {
        return;
    }
    let host = |curl: &str| {
        let systemd = StandIns::new(&[
            ("curl", curl),
            // web-4 works.
            ("mvmctl", "[ \"$3\" != web-4 ]"),
            // web-6 sleeps; web-1 cannot be started.
            (
                "systemctl",
                "case $1,$3 in is-active,mvm@web-6 | start,mvm@web-1) exit 1 ;; esac",
            ),
        ]);
        let mut round = systemd.script("systemd/mvm-follow");
        let round = round.args(["web", "6"]).output().unwrap();
        (systemd, round)
    };
    let (systemd, round) = host("echo '{\"wanted\":2}'");
    assert_eq!(round.status.code(), Some(1), "{round:?}");
    let done = systemd.said(&["systemctl"]);
    let done: Vec<_> = done
        .iter()
        .filter(|line| !line.contains("is-active"))
        .collect();
    assert_eq!(
        done,
        [
            "systemctl start --no-block mvm@web-1",
            "systemctl start --no-block mvm@web-2",
            "systemctl stop --no-block mvm@web-3",
            "systemctl stop --no-block mvm@web-5",
        ]
    );
    // Nobody waits for a VM that does not run: hundreds of them would take the round minutes.
    let waited = systemd.said(&["mvmctl"]);
    assert!(
        !waited.iter().any(|line| line.contains("web-6")),
        "{waited:?}"
    );
    // A server that takes the connection and says nothing holds nobody for good: neither the script nor
    // its unit, without which its timer does not run it again.
    let asked = &systemd.said(&["curl"])[0];
    assert!(asked.contains(" --max-time 10 "), "{asked}");
    let unit = fs::read_to_string(root().join("packaging/systemd/mvm-follow@.service")).unwrap();
    assert!(unit.contains("\nTimeoutStartSec=5min\n"), "{unit}");

    for curl in ["exit 22", "", "echo '{}'", "echo '{\"wanted\":\"many\"}'"] {
        let (systemd, round) = host(curl);
        assert!(!round.status.success(), "{curl}");
        assert!(systemd.said(&["systemctl"]).is_empty(), "{curl}");
    }
}
