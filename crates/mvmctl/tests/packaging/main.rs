//! What is shipped for other programs, read by those: units by systemd, rules by promtool. And the
//! examples of docs/autoscaling.md: they are YAML, or what is shipped, and the series that they ask for
//! are there.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod scripts;

use granit_parser::{Event, Parser};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
