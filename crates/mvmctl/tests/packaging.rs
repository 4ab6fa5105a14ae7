//! What is shipped for other programs, read by those: units by systemd, rules by promtool. And the
//! examples of docs/autoscaling.md: they are YAML, or what is shipped, and the series that they ask for
//! are there.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use granit_parser::{Event, Parser};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program that runs here, if it is there.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

#[test]
fn systemd_takes_the_units() {
    let Some(verify) = program("systemd-analyze") else {
        eprintln!("systemd-analyze is not there: the units are not verified");
        return;
    };
    for unit in ["mvm@.service", "mvm-fleet.service", "mvm-follow@.service"] {
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(root().join("packaging/systemd").join(unit)).unwrap();
        let line = text.lines().find(|line| line.starts_with("ExecStart="));
        let mut words = line.unwrap().trim_start_matches("ExecStart=").split(' ');
        // A program that is not there is a fault to it.
        let own = env!("CARGO_BIN_EXE_mvmctl");
        let text = text.replace(words.next().unwrap(), own);
        fs::write(folder.path().join(unit), text).unwrap();
        let verified = Command::new(&verify)
            .args(["verify", "--man=no"])
            .arg(folder.path().join(unit))
            .output()
            .unwrap();
        let said = String::from_utf8(verified.stderr).unwrap();
        // An unknown setting is a warning, which does not fail.
        let about: Vec<_> = said.lines().filter(|line| line.contains(unit)).collect();
        assert!(verified.status.success() && about.is_empty(), "{said}");
        // And the program takes the options, as far as it knows the command.
        let options: Vec<_> = words
            .map(|word| match word {
                "%i" => "web",
                "${MVM_ON_TERM}" => "sleep",
                "${MVM_NOTIFY}" => "healthy",
                word => word,
            })
            .filter(|word| *word != "$MVM_RUN")
            .collect();
        if options.first() == Some(&"vm") {
            let mut help = Command::new(own);
            let help = help
                .args(options)
                .arg("--help")
                .stdout(Stdio::null())
                .status();
            assert!(help.unwrap().success(), "{text}", text = line.unwrap());
        }
    }
}

#[test]
fn promtool_takes_the_rules_and_they_say_what_their_tests_say() {
    let Some(promtool) = std::env::var_os("MVM_TEST_PROMTOOL")
        .map(PathBuf::from)
        .or_else(|| program("promtool"))
    else {
        eprintln!("promtool is not there: the rules are not tested");
        return;
    };
    for arguments in [
        ["check", "rules", "mvm.rules.yml"],
        ["test", "rules", "mvm.rules.test.yml"],
    ] {
        let run = Command::new(&promtool)
            .args(arguments)
            .current_dir(root().join("packaging/prometheus"))
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
    }
}

/// What is at `path` of a server on this machine.
fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn prometheus_counts_the_hosts_that_do_not_say_what_is_to_be_scraped() {
    let Some(prometheus) = std::env::var_os("MVM_TEST_PROMETHEUS") else {
        eprintln!("prometheus is not there: its own series are not asked for");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let free = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (own, off) = (free(), free());
    let config = folder.path().join("prometheus.yml");
    let text = format!(
        "scrape_configs:\n- job_name: mvm\n  http_sd_configs:\n  - url: http://{off}/sd\n    refresh_interval: 1s\n"
    );
    fs::write(&config, text).unwrap();
    let mut child = Command::new(prometheus)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--web.listen-address={own}"))
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // As the rule and the dashboard ask for it, and with another value than 0.
    let series = "prometheus_sd_refresh_failures_total{mechanism=\"http\"}";
    let counted = |metrics: &str| {
        let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(series));
        lines.any(|value| value.trim() != "0")
    };
    let began = Instant::now();
    let mut metrics = String::new();
    while !counted(&metrics) && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(200));
        metrics = get(&own, "/metrics").unwrap_or_default();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(counted(&metrics), "{metrics}");
    for file in ["prometheus/mvm.rules.yml", "grafana/mvm-fleet.json"] {
        let text = fs::read_to_string(root().join("packaging").join(file)).unwrap();
        assert!(text.replace('\\', "").contains(series), "{file}");
    }
}

/// The fenced blocks of that language.
fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut inside: Option<String> = None;
    for line in markdown.lines() {
        match (&mut inside, line.strip_prefix("```")) {
            (None, Some(begun)) if begun == language => inside = Some(String::new()),
            (Some(_), Some("")) => blocks.extend(inside.take()),
            (Some(block), _) => {
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

#[test]
fn the_examples_are_yaml_and_ask_for_series_that_there_are() {
    let docs = fs::read_to_string(root().join("docs/autoscaling.md")).unwrap();
    let examples = blocks(&docs, "yaml");
    assert!(examples.len() >= 5, "{}", examples.len());
    for example in &examples {
        let mut mappings = 0;
        for event in Parser::new_from_str(example) {
            let (event, _) = event.unwrap_or_else(|error| panic!("{error}\n{example}"));
            mappings += u32::from(matches!(event, Event::MappingStart(..)));
        }
        assert!(mappings > 0, "{example}");
    }
    let rules = fs::read_to_string(root().join("packaging/prometheus/mvm.rules.yml")).unwrap();
    let recorded: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .collect();
    let metrics = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let words = docs.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let mut asked = 0;
    for word in words.filter(|word| word.contains("mvm_fleet_")) {
        let is_there = if word.contains(':') {
            recorded.contains(&word)
        } else {
            metrics.contains(&format!("| `{word}` |"))
        };
        assert!(is_there, "nothing gives {word}");
        asked += 1;
    }
    assert!(asked > 0);
}

#[test]
fn what_the_documentation_shows_is_what_is_shipped() {
    let docs = fs::read_to_string(root().join("docs/autoscaling.md")).unwrap();
    for (language, file) in [
        ("sh", "systemd/mvm-follow"),
        ("sh", "slurm/mvm-scale"),
        ("sh", "slurm/mvm-vm"),
        ("ini", "slurm/slurm.conf"),
    ] {
        let shipped = fs::read_to_string(root().join("packaging").join(file)).unwrap();
        assert!(blocks(&docs, language).contains(&shipped), "{file}");
    }
}

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

/// What Prometheus answers to a query with one number.
const TWO: &str = r#"echo '{"data":{"result":[{"value":[1,"2"]}]}}'"#;

/// Jobs 1 and 3 to 5, of which the last three are not needed where two are wanted.
const SQUEUE: &str =
    "printf 'web-1 11 RUNNING a\\nweb-3 13 RUNNING a\\nweb-4 14 PENDING \\nweb-5 15 RUNNING b\\n'";

#[test]
fn slurms_jobs_stay_as_they_are_while_nobody_says_how_many_are_wanted() {
    if program("jq").is_none() {
        eprintln!("jq is not there: mvm-scale is not tested");
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
        let round = slurm.script("slurm/mvm-scale").args(["web", "6"]).output();
        assert!(!round.unwrap().status.success(), "{broken}");
        assert!(slurm.said(&["sbatch", "scancel"]).is_empty(), "{broken}");
    }
}
#[test]
fn slurms_jobs_that_are_not_needed_go_although_none_can_be_submitted() {
    if program("jq").is_none() {
        eprintln!("jq is not there: mvm-scale is not tested");
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
    let round = slurm.script("slurm/mvm-scale").args(["web", "6"]).output();
    let round = round.unwrap();
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
    let round = slurm.script("slurm/mvm-scale").args(["web", "6"]).output();
    let round = round.unwrap();
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
    if program("jq").is_none() {
        eprintln!("jq is not there: mvm-scale is not tested");
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
    let round = slurm.script("slurm/mvm-scale").args(["web", "2"]).output();
    assert!(round.as_ref().unwrap().status.success(), "{round:?}");
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
    if program("jq").is_none() {
        eprintln!("jq is not there: mvm-follow is not tested");
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

#[test]
fn what_a_scrape_of_thousands_takes_is_the_same_on_every_page() {
    let read = |name: &str| fs::read_to_string(root().join("docs").join(name)).unwrap();
    let measured = read("performance.md");
    let row = |begin: &str| {
        let mut rows = measured.lines().filter_map(|row| row.strip_prefix(begin));
        rows.next().unwrap_or_else(|| panic!("{begin}")).to_owned()
    };
    let of_fleet = row("| `/metrics` of 10,000 VMs, size and samples | ");
    let (size, samples) = of_fleet.split_once(", ").unwrap();
    let samples = samples.trim_end_matches([' ', '|']);
    let (thousands, rest) = samples.split_at(samples.len() - 3);
    let of_serve = row("| `/metrics`, ");
    let served = of_serve.split(',').next().unwrap();
    for page in ["metrics.md", "scale.md"] {
        let text = read(page);
        for figure in [size, &format!("{thousands},{rest} "), served] {
            assert!(text.contains(figure), "{page}: {figure}");
        }
    }
}

#[test]
fn the_fleets_unit_has_longer_to_start_than_a_view_takes() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/commands/fleet/serve/owner.rs");
    let number = |text: &str, from: &str, to: &str| -> u64 {
        let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{from}"));
        rest.split_once(to).unwrap().0.parse().unwrap()
    };
    let own = fs::read_to_string(own).unwrap();
    let view = number(
        &own,
        "const ANSWER_DEADLINE: Duration = Duration::from_secs(",
        ")",
    );
    let unit = fs::read_to_string(root().join("packaging/systemd/mvm-fleet.service")).unwrap();
    let start = number(&unit, "\nTimeoutStartSec=", "min\n");
    assert!(start * 60 >= view * 2, "{start} min, {view} s");
}
