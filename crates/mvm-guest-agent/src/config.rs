//! Flags, `/etc/mvm/agent.json` and defaults: a flag beats the file, the file beats the default.

use crate::machine::proc;
use crate::machine::workload::FreezePolicy;
use crate::serve::listener::ListenAddress;
use lexopt::{Arg, Parser, ValueExt};
use mvm_protocol::object::{Object, Problem, printable_number};
use mvm_protocol::status::BusySignal;
use mvm_protocol::{PORT, drop_in};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the file is if no flag says otherwise. Only here may it be missing.
const DEFAULT_FILE: &str = "/etc/mvm/agent.json";

/// The largest configuration file in bytes.
const MAX_FILE: u64 = 65_536;

pub(crate) const USAGE: &str = "\
mvm-guest-agent: answers a microVM's host about health, load and probes

Usage: mvm-guest-agent [FLAGS]
       mvm-guest-agent --check-config DIR
       mvm-guest-agent --payload POINTER

  --config PATH                 settings as JSON (default /etc/mvm/agent.json); a flag beats it
  --listen ADDRESS              vsock:PORT or unix:PATH, may be repeated (default vsock:52)
  --notify-port PORT            vsock port of the host to tell once that the agent listens
  --busy-threshold N            load average, or share, from which the guest is busy (0.1)
  --busy-signals LIST           loadavg,cpu,pressure,session,inhibit (loadavg)
  --sample-interval-secs N      how often the signals are read (5)
  --integrations-dir DIR        health checks (/etc/mvm/integrations.d)
  --probes-dir DIR              probes (/etc/mvm/probes.d)
  --run-dir DIR                 state and busy.d (/run/mvm)
  --max-connections N           (512)
  --max-concurrent-checks N     (32)
  --freeze WHAT                 what stands still while the guest sleeps: workload or off (workload)
  --freeze-exempt LIST          cgroups that are not frozen, by their path from the root (none)
  --exec BOOL                   false switches a dev build's exec, put and get off (true)
  --expose LIST                 TCP ports of the loopback that hosts reach (none)
  --allow-vsock BOOL            true: what the agent starts may open AF_VSOCK sockets (false)
  --no-system-effects           outside of a guest: leave the machine as it is
  --check-config DIR            read DIR/integrations.d, DIR/probes.d and DIR/agent.json, print
                                every problem, exit 1 if there is one
  --payload POINTER             print a value of the payload, by its JSON pointer, such as
                                /network/addresses; exit 1 if there is none
  --version, --help
";

/// A number over 0 that makes a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Positive(f64);

impl<'de> Deserialize<'de> for Positive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        if number > 0.0 && number.is_finite() {
            Ok(Self(number))
        } else {
            let number = printable_number(number);
            Err(D::Error::custom(format!("{number} is not over 0")))
        }
    }
}

/// How often the signals are read.
#[derive(Debug, Clone, Copy, PartialEq)]
struct SampleInterval(Duration);

/// To read them takes a millisecond and more, and nobody looks more often.
const SHORTEST_SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

impl<'de> Deserialize<'de> for SampleInterval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let interval = drop_in::Secs::deserialize(deserializer)?.duration();
        if interval < SHORTEST_SAMPLE_INTERVAL {
            let number = printable_number(interval.as_secs_f64());
            return Err(D::Error::custom(format!("{number} is below 0.05 seconds")));
        }
        Ok(Self(interval))
    }
}

/// What a file or the flags say; what they leave out is `None`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    #[serde(deserialize_with = "addresses")]
    listen: Option<Vec<ListenAddress>>,
    notify_port: Option<u32>,
    busy_threshold: Option<Positive>,
    busy_signals: Option<Vec<BusySignal>>,
    sample_interval_secs: Option<SampleInterval>,
    #[serde(deserialize_with = "folder")]
    integrations_dir: Option<PathBuf>,
    #[serde(deserialize_with = "folder")]
    probes_dir: Option<PathBuf>,
    #[serde(deserialize_with = "folder")]
    run_dir: Option<PathBuf>,
    max_connections: Option<NonZeroUsize>,
    max_concurrent_checks: Option<NonZeroUsize>,
    exec: Option<bool>,
    freeze: Option<Freeze>,
    freeze_exempt: Option<Vec<CgroupPath>>,
    expose: Option<Vec<NonZeroU16>>,
    allow_vsock: Option<bool>,
}

/// An agent that listens nowhere runs, and nobody learns why it does not answer.
fn addresses<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<ListenAddress>>, D::Error> {
    let addresses: Option<Vec<_>> = Option::deserialize(deserializer)?;
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        let why = "no address is named, such as vsock:52 or unix:PATH";
        return Err(D::Error::custom(why));
    }
    Ok(addresses)
}

/// What is joined to an empty path lies in whichever folder the agent was started in.
fn folder<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let folder: Option<PathBuf> = Option::deserialize(deserializer)?;
    if folder.as_ref().is_some_and(|it| it.as_os_str().is_empty()) {
        return Err(D::Error::custom("an empty path names no folder"));
    }
    Ok(folder)
}

/// What is frozen while the guest sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Freeze {
    Workload,
    Off,
}

/// A cgroup's path, as /proc/PID/cgroup has it, but for the slash at its beginning.
#[derive(Debug, Clone, PartialEq)]
struct CgroupPath(String);

impl<'de> Deserialize<'de> for CgroupPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let path = text.trim_matches('/');
        if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            let why =
                format!("`{text}` is no path of a cgroup below the root, such as /services/web");
            return Err(D::Error::custom(why));
        }
        Ok(Self(path.to_owned()))
    }
}

/// How a flag's text becomes a JSON value, so that flags and file are read by one rule.
#[derive(Clone, Copy)]
enum Form {
    Text,
    /// A number or `true` or `false`.
    Literal,
    /// Texts, by commas or by repeating the flag.
    List,
    /// Numbers, likewise.
    Numbers,
}

const FLAGS: [(&str, Form); 15] = [
    ("listen", Form::List),
    ("notify-port", Form::Literal),
    ("busy-threshold", Form::Literal),
    ("busy-signals", Form::List),
    ("sample-interval-secs", Form::Literal),
    ("integrations-dir", Form::Text),
    ("probes-dir", Form::Text),
    ("run-dir", Form::Text),
    ("max-connections", Form::Literal),
    ("max-concurrent-checks", Form::Literal),
    ("exec", Form::Literal),
    ("freeze", Form::Text),
    ("freeze-exempt", Form::List),
    ("expose", Form::Numbers),
    ("allow-vsock", Form::Literal),
];

/// The settings of a running agent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) listen: Vec<ListenAddress>,
    pub(crate) notify_port: Option<u32>,
    pub(crate) busy_threshold: f64,
    pub(crate) busy_signals: Vec<BusySignal>,
    pub(crate) sample_interval: Duration,
    pub(crate) integrations_dir: PathBuf,
    pub(crate) probes_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) max_connections: usize,
    pub(crate) max_concurrent_checks: usize,
    pub(crate) exec: bool,
    /// The TCP ports of the loopback that hosts reach.
    pub(crate) expose: Vec<NonZeroU16>,
    /// Whether what the agent starts may open sockets to the host.
    pub(crate) allow_vsock: bool,
    pub(crate) freeze: FreezePolicy,
    pub(crate) system_effects: bool,
}

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Invocation {
    Run(Box<Config>),
    CheckConfig(PathBuf),
    Payload(String),
    Version,
    Help,
}

/// Reads a command line, and the file that it names.
pub(crate) fn read(mut parser: Parser) -> Result<Invocation, String> {
    let mut flags = Map::new();
    let mut file = None;
    let mut system_effects = true;
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        let Arg::Long(name) = arg else {
            return Err(arg.unexpected().to_string());
        };
        let name = name.to_owned();
        let mut value = || parser.value().map_err(|error| format!("--{name}: {error}"));
        match name.as_str() {
            "help" => return Ok(Invocation::Help),
            "version" => return Ok(Invocation::Version),
            "check-config" => return Ok(Invocation::CheckConfig(value()?.into())),
            "payload" => {
                let pointer = value()?.string();
                let pointer = pointer.map_err(|error| format!("--payload: {error}"))?;
                return Ok(Invocation::Payload(pointer));
            }
            "config" => file = Some(PathBuf::from(value()?)),
            "no-system-effects" => system_effects = false,
            flag => {
                let Some((_, form)) = FLAGS.iter().find(|(known, _)| *known == flag) else {
                    return Err(format!("there is no flag --{flag}; --help lists them"));
                };
                let text = value()?
                    .string()
                    .map_err(|error| format!("--{flag}: {error}"))?;
                set_flag(&mut flags, flag, *form, text);
            }
        }
    }
    let flags = Value::Object(flags).to_string();
    let flags = given(flags.as_bytes()).map_err(|problem| flag_message(&problem))?;
    let file = match &file {
        Some(path) => read_file(path)?,
        None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
        None => Given::default(),
    };
    Ok(Invocation::Run(Box::new(merge(
        flags,
        file,
        system_effects,
    ))))
}

fn set_flag(flags: &mut Map<String, Value>, flag: &str, form: Form, text: String) {
    let field = flag.replace('-', "_");
    match form {
        Form::Text => {
            flags.insert(field, text.into());
        }
        Form::Literal => {
            flags.insert(field, literal(&text));
        }
        Form::List | Form::Numbers => {
            let items = text
                .split(',')
                .filter(|item| !item.is_empty())
                .map(|item| match form {
                    Form::Numbers => literal(item),
                    _ => item.into(),
                });
            match flags
                .entry(field)
                .or_insert_with(|| Value::Array(Vec::new()))
            {
                Value::Array(list) => list.extend(items),
                other => *other = items.collect(),
            }
        }
    }
}

/// A number or a word as JSON has it, any other text as text: whoever reads it says what is wrong.
fn literal(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn flag_message(problem: &Problem) -> String {
    let Some(field) = &problem.field else {
        return problem.message.clone();
    };
    let reason = problem
        .message
        .split_once(": ")
        .map_or(problem.message.as_str(), |(_, why)| why);
    format!("--{}: {reason}", field.replace('_', "-"))
}

fn given(json: &[u8]) -> Result<Given, Problem> {
    Object::parse(json)?.into_shape()
}

fn read_file(path: &Path) -> Result<Given, String> {
    let text =
        proc::read(path, MAX_FILE + 1).map_err(|error| format!("{}: {error}", path.display()))?;
    check_file(&text).map_err(|problem| format!("{}:{}: {problem}", path.display(), problem.line))
}

/// Reads the text of a configuration file.
fn check_file(text: &str) -> Result<Given, Problem> {
    if text.len() as u64 > MAX_FILE {
        let message = format!("larger than {MAX_FILE} bytes");
        return Err(Problem {
            line: 1,
            field: None,
            message,
        });
    }
    given(text.as_bytes())
}

/// What is wrong with a configuration file, if something is.
pub(crate) fn problem_in(path: &Path) -> Option<String> {
    read_file(path).err()
}

fn merge(flags: Given, file: Given, system_effects: bool) -> Config {
    let secs = flags.sample_interval_secs.or(file.sample_interval_secs);
    let number = |flag: Option<NonZeroUsize>, file: Option<NonZeroUsize>, default: usize| {
        flag.or(file).map_or(default, NonZeroUsize::get)
    };
    let dir = |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| {
        flag.or(file).unwrap_or_else(|| default.into())
    };
    Config {
        listen: flags
            .listen
            .or(file.listen)
            .unwrap_or_else(|| vec![ListenAddress::Vsock(PORT)]),
        notify_port: flags.notify_port.or(file.notify_port),
        busy_threshold: flags
            .busy_threshold
            .or(file.busy_threshold)
            .map_or(0.1, |it| it.0),
        busy_signals: flags
            .busy_signals
            .or(file.busy_signals)
            .unwrap_or_else(|| vec![BusySignal::Loadavg]),
        sample_interval: secs.map_or(Duration::from_secs(5), |it| it.0),
        integrations_dir: dir(
            flags.integrations_dir,
            file.integrations_dir,
            "/etc/mvm/integrations.d",
        ),
        probes_dir: dir(flags.probes_dir, file.probes_dir, "/etc/mvm/probes.d"),
        run_dir: dir(flags.run_dir, file.run_dir, "/run/mvm"),
        max_connections: number(flags.max_connections, file.max_connections, 512),
        max_concurrent_checks: number(flags.max_concurrent_checks, file.max_concurrent_checks, 32),
        exec: flags.exec.or(file.exec).unwrap_or(true),
        expose: flags.expose.or(file.expose).unwrap_or_default(),
        allow_vsock: flags.allow_vsock.or(file.allow_vsock).unwrap_or(false),
        freeze: FreezePolicy {
            off: flags.freeze.or(file.freeze) == Some(Freeze::Off),
            exempt: flags
                .freeze_exempt
                .or(file.freeze_exempt)
                .unwrap_or_default()
                .into_iter()
                .map(|path| path.0)
                .collect(),
        },
        system_effects,
    }
}

#[cfg(test)]
mod tests;
