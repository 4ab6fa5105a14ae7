//! Values as people read them.

use super::shown::table::Style;
use super::text::cut;
use crate::clock::{self, Skew};
use mvm_protocol::Timestamp;
use mvm_protocol::lenient::{Lenient, Word};
use mvm_protocol::status::{
    Health, IntegrationStatus, LastCheck, Lifecycle, RestoreSign, Worker, WorkerState,
};
use serde::Serialize;
use std::time::Duration;

/// A value's name on the wire, which is its name for people as well.
pub(crate) fn wire(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "?".into(),
    }
}

/// A word that we do not know, as it came.
pub(crate) fn other(word: &Word) -> (Style, String) {
    (Style::Warn, word.as_str().to_owned())
}

/// By what a restore was noticed.
pub(crate) fn sign(sign: Lenient<RestoreSign>) -> String {
    match sign {
        Lenient::Known(RestoreSign::Vmgenid) => "the VM's generation id is another one".into(),
        Lenient::Known(RestoreSign::Vmclock) => "vmclock counts another generation".into(),
        Lenient::Known(RestoreSign::Cid) => "the vsock CID is another one".into(),
        Lenient::Other(word) => other(&word).1,
    }
}

pub(crate) fn lifecycle(lifecycle: Lenient<Lifecycle>) -> (Style, String) {
    let tone = match lifecycle {
        Lenient::Known(Lifecycle::Running) => Style::Plain,
        Lenient::Known(Lifecycle::Preparing | Lifecycle::Ready | Lifecycle::Waking) => Style::Warn,
        Lenient::Other(word) => return other(&word),
    };
    (tone, wire(&lifecycle))
}

pub(crate) fn health(health: Lenient<Health>) -> (Style, String) {
    let tone = match health {
        Lenient::Known(Health::Healthy) => Style::Good,
        Lenient::Known(Health::Starting) => Style::Warn,
        Lenient::Known(Health::Unhealthy) => Style::Bad,
        Lenient::Known(Health::Unchecked) => Style::Dim,
        Lenient::Other(word) => return other(&word),
    };
    (tone, wire(&health))
}

/// `idle`, `busy (loadavg, cpu)`, or `idle (held: session)`.
pub(crate) fn worker(worker: &Worker) -> String {
    let state = wire(&worker.state);
    if !worker.held_by.is_empty() && worker.state == WorkerState::Idle {
        let held_by: Vec<_> = worker.held_by.iter().map(wire).collect();
        return format!("{state} (held: {})", cut(&held_by.join(", "), 60));
    }
    if worker.state == WorkerState::Idle || worker.because.is_empty() {
        return state;
    }
    let because: Vec<_> = worker.because.iter().map(wire).collect();
    format!("{state} ({})", cut(&because.join(", "), 60))
}

/// What stands for what is not known: never a value that it could have.
pub(crate) fn unknown() -> (Style, String) {
    (Style::Dim, "unknown".into())
}

/// How a check ended: `ok after 11ms`, `exit 1 after 2.1s`, `signal KILL …`, `timed out …`.
pub(crate) fn last_check(check: Option<&LastCheck>) -> (Style, String) {
    let Some(check) = check else {
        return (Style::Dim, "not yet".into());
    };
    let how = match (check.timed_out, check.exit_code, &check.signal) {
        (true, ..) => "timed out".into(),
        (false, Some(0), _) => "ok".into(),
        (false, Some(code), _) => format!("exit {code}"),
        (false, None, Some(signal)) => format!("signal {signal}"),
        (false, None, None) => "not run".into(),
    };
    let tone = if succeeded(check) {
        Style::Plain
    } else {
        Style::Bad
    };
    let took = duration(Duration::from_millis(check.duration_ms));
    (tone, format!("{how} after {took}"))
}

/// Whether a check's run was a success.
pub(crate) fn succeeded(check: &LastCheck) -> bool {
    !check.timed_out && check.exit_code == Some(0)
}

/// What a check printed: its last line that is not empty, cut to fit into a table.
pub(crate) fn last_line(check: Option<&LastCheck>) -> String {
    let output = check.map_or("", |check| check.output.as_str());
    let line = output.lines().rev().find(|line| !line.trim().is_empty());
    cut(line.unwrap_or_default().trim(), 60).into_owned()
}

/// How many verdicts are shown that we do not know.
const MOST_WORDS: usize = 8;

/// How many integrations there are of each health, the worst first, and the names of the unhealthy:
/// `1 unhealthy (db), 2 healthy, 1 unchecked`.
pub(crate) fn integrations(all: &[IntegrationStatus], omitted: usize) -> (Style, String) {
    if all.is_empty() {
        return (Style::Dim, "none".into());
    }
    let mut parts = Vec::new();
    let mut tone = Style::Plain;
    // How bad a verdict is that we do not know cannot be told: it stands before those that need no
    // looking after.
    let mut verdicts = vec![Health::Unhealthy.into()];
    for one in all.iter().filter(|one| one.health.known().is_none()) {
        tone = Style::Warn;
        if !verdicts.contains(&one.health) && verdicts.len() <= MOST_WORDS {
            verdicts.push(one.health);
        }
    }
    verdicts.extend([Health::Starting, Health::Healthy, Health::Unchecked].map(Lenient::Known));
    for &health in &verdicts {
        let names: Vec<_> = all
            .iter()
            .filter(|one| one.health == health)
            .map(|one| one.name.as_str())
            .collect();
        if names.is_empty() {
            continue;
        }
        let mut part = format!("{} {}", names.len(), wire(&health));
        if health == Health::Unhealthy {
            tone = Style::Bad;
            part = format!("{part} ({})", cut(&names.join(", "), 60));
        }
        parts.push(part);
    }
    let shown = all.iter().filter(|one| verdicts.contains(&one.health));
    let omitted = omitted.saturating_add(all.len() - shown.count());
    if omitted > 0 {
        parts.push(format!("{omitted} not shown"));
    }
    (tone, parts.join(", "))
}

/// How long ago a time of the guest's was when its clock showed `now`. An agent that does not tell is
/// an older one: then it is by this host's clock, and `-` if the two disagree so much that it lies
/// ahead.
pub(crate) fn age(since: Timestamp, now: Option<Timestamp>) -> String {
    let now = now.unwrap_or_else(clock::now);
    // A second or so ahead is no more than two clocks that are kept by NTP.
    match now.0.saturating_sub(since.0) {
        ms if ms < -2000 => "-".into(),
        ms => duration(Duration::from_secs(ms.max(0).unsigned_abs() / 1000)),
    }
}

/// `3m20s behind`, if a guest's clock is so much off that it is to be told.
pub(crate) fn skew(skew: Option<Skew>) -> Option<String> {
    let (off, direction) = skew?.told()?;
    // Nearer than that it is not known.
    let tenths = off.saturating_add(Duration::from_millis(50)).as_millis() / 100;
    let off = Duration::from_millis(
        u64::try_from(tenths)
            .unwrap_or(u64::MAX)
            .saturating_mul(100),
    );
    Some(format!("{} {direction}", duration(off)))
}

/// `11ms`, `2.1s`, `42s`, `3m20s`, `2h5m`, `3d4h`: two units at most.
pub(crate) fn duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match secs {
        0 if duration.is_zero() => "0s".into(),
        0 => format!("{}ms", duration.as_millis()),
        1..10 if duration.subsec_millis() >= 100 => {
            format!("{secs}.{}s", duration.subsec_millis() / 100)
        }
        1..60 => format!("{secs}s"),
        60..3600 => format!("{minutes}m{}s", secs % 60),
        3600..86_400 => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// A command as a shell would take it: words that have more than plain characters in quotes.
pub(crate) fn command_line(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./,:@%^".contains(c);
    let quoted = argv.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Milliseconds with as many digits as mean something: `0.43 ms`, `12.3 ms`, `1034 ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    if ms < 10.0 {
        format!("{ms:.2} ms")
    } else if ms < 100.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// `17 B`, `1.2 MiB`, `241 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 10.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        for (ms, text) in [
            (0, "0s"),
            (11, "11ms"),
            (999, "999ms"),
            (1000, "1s"),
            (2150, "2.1s"),
            (42_900, "42s"),
            (200_000, "3m20s"),
            (7_500_000, "2h5m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn sizes() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_261_568, "1.2 MiB"),
            (252_706_816, "241 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn commands_can_be_copied_into_a_shell() {
        let line = |words: &[&str]| {
            command_line(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(line(&["ls", "-l", "/srv"]), "ls -l /srv");
        assert_eq!(
            line(&["sh", "-c", "echo \"$it's\"", ""]),
            r#"sh -c 'echo "$it'\''s"' ''"#
        );
    }

    #[test]
    fn a_check_that_did_not_exit_is_no_success() {
        let check = LastCheck {
            at: Timestamp(0),
            duration_ms: 10_000,
            exit_code: None,
            signal: Some("KILL".into()),
            timed_out: true,
            output: "a\n\nb\n \n".into(),
            truncated: false,
        };
        assert_eq!(
            last_check(Some(&check)),
            (Style::Bad, "timed out after 10s".into())
        );
        assert_eq!(last_line(Some(&check)), "b");
        assert_eq!(last_check(None).1, "not yet");
    }
}
