//! `fleet.toml`: read, and refused with file, line and field where it makes no sense.

use super::terms::{PoolPolicy, Port, WakeListener};
use crate::state::Bounds;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What a `fleet.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    pools: BTreeMap<String, PoolPolicy>,
}

/// Why a policy is refused: all that is wrong with it, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyError {
    /// One at least.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong in a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The pool, if it has a name already.
    pub pool: Option<String>,
    /// The field.
    pub field: Option<String>,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(pool) = &self.pool {
            write!(f, "pool `{pool}`: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "`{field}`: ")?;
        }
        f.write_str(&self.problem)
    }
}

/// The longest period: ten years. Beyond some centuries clocks overflow.
const LONGEST: Duration = Duration::from_secs(3660 * 86_400);

/// The most VMs that a policy may ask for.
const MOST: u32 = 1_000_000;

/// Room for a number of nine digits after a clone's pool, in a name of 64 bytes.
const MAX_POOL: usize = 54;

const FILE_KEYS: [&str; 1] = ["pool"];
const POOL_KEYS: [&str; 11] = [
    "name",
    "idle_pause_after",
    "idle_sleep_after",
    "asleep_remove_after",
    "max_lifetime",
    "min",
    "max",
    "spare",
    "golden",
    "payload",
    "wake",
];
const WAKE_KEYS: [&str; 3] = ["listen", "guest_port", "vsock_port"];

#[derive(Debug, Deserialize)]
struct RawFile {
    #[serde(default)]
    pool: Vec<RawPool>,
}

#[derive(Debug, Deserialize)]
struct RawPool {
    name: Spanned<String>,
    idle_pause_after: Option<Spanned<Period>>,
    idle_sleep_after: Option<Spanned<Period>>,
    asleep_remove_after: Option<Spanned<Period>>,
    max_lifetime: Option<Spanned<Period>>,
    min: Option<Spanned<u32>>,
    max: Option<Spanned<u32>>,
    spare: Option<Spanned<u32>>,
    golden: Option<Spanned<PathBuf>>,
    payload: Option<Spanned<PathBuf>>,
    #[serde(default)]
    wake: Vec<RawWake>,
}

#[derive(Debug, Deserialize)]
struct RawWake {
    listen: Spanned<SocketAddr>,
    guest_port: Option<Spanned<u16>>,
    vsock_port: Option<Spanned<u32>>,
}

/// A duration over zero, as `30s`, `5m`, `1h30m`, `7d`.
#[derive(Debug, Clone, Copy)]
struct Period(Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let days = jiff::SpanRelativeTo::days_are_24_hours();
        let period = text
            .parse::<jiff::Span>()
            .and_then(|span| span.to_duration(days))
            .ok()
            .and_then(|signed| Duration::try_from(signed).ok())
            .filter(|period| !period.is_zero() && *period <= LONGEST);
        period.map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is no duration over zero, such as \"30s\", \"5m\" or \"7d\"; ten years at most"
            ))
        })
    }
}

impl Policy {
    /// Reads a policy. `file` is what the file is called in errors.
    pub fn parse(text: &str, file: &str) -> Result<Self, PolicyError> {
        let mut reader = Reader {
            text,
            file,
            problems: Vec::new(),
        };
        let policy = reader.policy();
        reader.problems.sort_by_key(|problem| problem.line);
        match policy {
            Some(policy) if reader.problems.is_empty() => Ok(policy),
            _ => Err(PolicyError {
                problems: reader.problems,
            }),
        }
    }

    /// The pools that it names, in name order.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &PoolPolicy)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), pool))
    }

    /// What it says of a pool.
    pub fn pool(&self, name: &str) -> Option<&PoolPolicy> {
        self.pools.get(name)
    }

    /// How many VMs a pool may have; without bounds if the policy does not name it.
    pub fn bounds(&self, pool: &str) -> Bounds {
        self.pool(pool).map(|pool| pool.bounds).unwrap_or_default()
    }

    /// How often a guest's agent should be heard, so that no period is overrun by much: a quarter of
    /// the shortest idle period, from one second to the protocol's default of 15.
    pub fn heartbeat(&self) -> Duration {
        let pools = self.pools.values();
        let periods = pools.flat_map(|pool| [pool.idle_pause_after, pool.idle_sleep_after]);
        let shortest = periods.flatten().min().unwrap_or(Duration::MAX);
        (shortest / 4).clamp(Duration::from_secs(1), Duration::from_secs(15))
    }
}

#[cfg(test)]
impl Policy {
    pub(crate) fn with(name: &str, pool: PoolPolicy) -> Self {
        let pools = [(name.to_owned(), pool)].into();
        Self { pools }
    }
}

/// Reads one text, and gathers what is wrong with it.
struct Reader<'a> {
    text: &'a str,
    file: &'a str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn policy(&mut self) -> Option<Policy> {
        let table = match DeTable::parse(self.text) {
            Ok(table) => table,
            Err(error) => {
                self.toml_error(&error, None);
                return None;
            }
        };
        let table = table.get_ref();
        self.keys(table, &FILE_KEYS, None);
        for pool in tables(table, "pool") {
            let name = name_of(pool);
            self.keys(pool, &POOL_KEYS, name.as_deref());
            for wake in tables(pool, "wake") {
                self.keys(wake, &WAKE_KEYS, name.as_deref());
            }
        }
        if !self.problems.is_empty() {
            return None;
        }
        let raw: RawFile = match toml::from_str(self.text) {
            Ok(raw) => raw,
            Err(error) => {
                self.toml_error(&error, Some(table));
                return None;
            }
        };
        let mut policy = Policy::default();
        let mut listens: Vec<(SocketAddr, String)> = Vec::new();
        for pool in raw.pool {
            let name = pool.name.get_ref().clone();
            for wake in &pool.wake {
                let listen = *wake.listen.get_ref();
                let other = listens.iter().find(|(known, _)| *known == listen);
                if let Some((_, other)) = other {
                    let problem = format!("pool `{other}` listens on {listen} already");
                    self.wrong(wake.listen.span(), &name, "listen", problem);
                }
                listens.push((listen, name.clone()));
            }
            let span = pool.name.span();
            let read = self.pool(pool);
            if policy.pools.insert(name.clone(), read).is_some() {
                let problem = "there is a pool of this name already; a pool is written once".into();
                self.wrong(span, &name, "name", problem);
            }
        }
        Some(policy)
    }

    /// Checks one pool for what contradicts itself.
    fn pool(&mut self, raw: RawPool) -> PoolPolicy {
        let name = raw.name.get_ref().clone();
        if !is_pool(&name) {
            let problem =
                format!("a pool's name is of A-Z a-z 0-9 . _ - and has 1 to {MAX_POOL} of them");
            self.wrong(raw.name.span(), &name, "name", problem);
        }
        let value = |number: &Option<Spanned<u32>>| number.as_ref().map(|number| *number.get_ref());
        let (min, max, spare) = (value(&raw.min), value(&raw.max), value(&raw.spare));
        for (field, number) in [("min", &raw.min), ("max", &raw.max), ("spare", &raw.spare)] {
            if let Some(number) = number.as_ref().filter(|number| *number.get_ref() > MOST) {
                self.wrong(number.span(), &name, field, format!("at most {MOST}"));
            }
        }
        let most = max.unwrap_or(u32::MAX);
        if let Some(max) = raw.max.as_ref().filter(|max| *max.get_ref() == 0) {
            let problem = "a pool of which none may be up: leave the pool out, or say 1 or more";
            self.wrong(max.span(), &name, "max", problem.into());
        } else {
            for (field, number) in [("min", &raw.min), ("spare", &raw.spare)] {
                if let Some(number) = number.as_ref().filter(|number| *number.get_ref() > most) {
                    let problem = format!("{} are over `max`, which is {most}", number.get_ref());
                    self.wrong(number.span(), &name, field, problem);
                }
            }
        }
        if let (Some(pause), Some(sleep)) = (&raw.idle_pause_after, &raw.idle_sleep_after)
            && pause.get_ref().0 >= sleep.get_ref().0
        {
            let problem = "is not before `idle_sleep_after`: a VM would be asleep before it is paused; \
                           leave one of the two out, or make this one shorter";
            self.wrong(pause.span(), &name, "idle_pause_after", problem.into());
        }
        match (&raw.golden, &raw.payload) {
            (Some(golden), _) if max.is_none() => {
                let problem = "a pool that makes clones needs a `max`";
                self.wrong(golden.span(), &name, "golden", problem.into());
            }
            (None, Some(payload)) => {
                let problem = "is handed to clones, and without `golden` none are made";
                self.wrong(payload.span(), &name, "payload", problem.into());
            }
            _ => {}
        }
        for (field, path) in [("golden", &raw.golden), ("payload", &raw.payload)] {
            if let Some(path) = path.as_ref().filter(|path| !path.get_ref().is_absolute()) {
                let problem = "is relative, and nobody knows to what: write it from / on";
                self.wrong(path.span(), &name, field, problem.into());
            }
        }
        let wake = raw
            .wake
            .iter()
            .filter_map(|wake| self.listener(&name, wake));
        let wake = wake.collect();
        let period = |period: Option<Spanned<Period>>| period.map(|period| period.into_inner().0);
        PoolPolicy {
            idle_pause_after: period(raw.idle_pause_after),
            idle_sleep_after: period(raw.idle_sleep_after),
            asleep_remove_after: period(raw.asleep_remove_after),
            max_lifetime: period(raw.max_lifetime),
            bounds: Bounds {
                min: min.unwrap_or(0),
                max: most,
                spare: spare.unwrap_or(0),
            },
            golden: raw.golden.map(Spanned::into_inner),
            payload: raw.payload.map(Spanned::into_inner),
            wake,
        }
    }

    fn listener(&mut self, pool: &str, raw: &RawWake) -> Option<WakeListener> {
        let listen = *raw.listen.get_ref();
        let port = match (&raw.guest_port, &raw.vsock_port) {
            (Some(tcp), None) => Port::Tcp(*tcp.get_ref()),
            (None, Some(vsock)) => Port::Vsock(*vsock.get_ref()),
            (Some(_), Some(vsock)) => {
                let problem = "stands beside `guest_port`: a connection is joined to one port";
                self.wrong(vsock.span(), pool, "vsock_port", problem.into());
                return None;
            }
            (None, None) => {
                let problem = "has no `guest_port` (TCP on the guest's loopback) and no `vsock_port`: \
                               where in the guest does a connection go?";
                self.wrong(raw.listen.span(), pool, "listen", problem.into());
                return None;
            }
        };
        if matches!(port, Port::Tcp(0)) || listen.port() == 0 {
            let problem = "port 0 is none".to_owned();
            self.wrong(raw.listen.span(), pool, "listen", problem);
        }
        Some(WakeListener { listen, port })
    }

    /// Refuses the keys of a table that mean nothing.
    fn keys(&mut self, table: &DeTable, known: &[&str], pool: Option<&str>) {
        for key in table.keys() {
            let text = key.get_ref().as_ref();
            if known.contains(&text) {
                continue;
            }
            let problem = match nearest(text, known) {
                Some(near) => format!("there is no such key; `{near}` is the nearest"),
                None => format!("there is no such key; there are {}", known.join(", ")),
            };
            let line = self.line(key.span().start);
            self.problem(line, pool, Some(text), problem);
        }
    }

    fn wrong(&mut self, span: Range<usize>, pool: &str, field: &str, problem: String) {
        let line = self.line(span.start);
        self.problem(line, Some(pool), Some(field), problem);
    }

    /// An error of the parser or of serde; with the tables that were read, in which field it is.
    fn toml_error(&mut self, error: &toml::de::Error, read: Option<&DeTable>) {
        let span = error.span().unwrap_or_default();
        let (pool, field) = read.map_or((None, None), |table| place(table, &span));
        let problem = error.message().trim().replace('\n', " ");
        let line = self.line(span.start);
        self.problem(line, pool.as_deref(), field.as_deref(), problem);
    }

    fn problem(&mut self, line: usize, pool: Option<&str>, field: Option<&str>, problem: String) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            pool: pool.map(str::to_owned),
            field: field.map(str::to_owned),
            problem,
        });
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or_default();
        before.matches('\n').count() + 1
    }
}

/// The tables in an array of a table.
fn tables<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> impl Iterator<Item = &'a DeTable<'i>> {
    let array = table.get(key).and_then(|value| value.get_ref().as_array());
    array
        .into_iter()
        .flat_map(|array| array.iter())
        .filter_map(|one| one.get_ref().as_table())
}

fn name_of(pool: &DeTable) -> Option<String> {
    Some(pool.get("name")?.get_ref().as_str()?.to_owned())
}

/// The pool and the field in which an error is.
fn place(table: &DeTable, span: &Range<usize>) -> (Option<String>, Option<String>) {
    for pool in tables(table, "pool") {
        for (key, value) in pool {
            let value_span = value.span();
            if value_span.start <= span.start && span.end <= value_span.end {
                let field = inner_field(value.get_ref(), span);
                let field = field.unwrap_or_else(|| key.get_ref().to_string());
                return (name_of(pool), Some(field));
            }
        }
    }
    (None, None)
}

/// The key within an array of inline tables.
fn inner_field(value: &DeValue, span: &Range<usize>) -> Option<String> {
    let tables = value
        .as_array()?
        .iter()
        .filter_map(|one| one.get_ref().as_table());
    for (key, value) in tables.flatten() {
        let value = value.span();
        if value.start <= span.start && span.end <= value.end {
            return Some(key.get_ref().to_string());
        }
    }
    None
}

fn is_pool(name: &str) -> bool {
    (1..=MAX_POOL).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The key that was probably meant: at most a third of it mistyped.
fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let distances = known
        .iter()
        .map(|key| (strsim::damerau_levenshtein(typed, key), *key));
    distances
        .filter(|(distance, key)| *distance <= (typed.len().max(key.len()) / 3).max(1))
        .min()
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests;
