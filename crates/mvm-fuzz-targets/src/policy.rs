//! `fleet.toml`: what is refused is told with lines that are there, and what is read goes together,
//! and reads the same when it is written again.

use mvm_fleet::Policy;
use mvm_fleet::policy::{PoolPolicy, Port};
use std::collections::BTreeMap;
use std::time::Duration;

/// The file's text.
pub fn policy() -> impl FnMut(&[u8]) {
    |text| {
        let Ok(text) = std::str::from_utf8(text) else {
            return;
        };
        match Policy::parse(text, "fleet.toml") {
            Err(error) => {
                assert!(!error.problems.is_empty());
                let lines = text.matches('\n').count() + 1;
                for problem in &error.problems {
                    assert!((1..=lines).contains(&problem.line), "{problem:?}");
                }
            }
            Ok(policy) => check(&policy),
        }
    }
}

fn check(policy: &Policy) {
    let seconds = Duration::from_secs(1)..=Duration::from_secs(15);
    assert!(seconds.contains(&policy.heartbeat()));
    let pools: BTreeMap<_, _> = policy.pools().collect();
    for (name, pool) in &pools {
        let bounds = policy.bounds(name);
        assert!(bounds.min <= bounds.max && bounds.spare <= bounds.max && bounds.max > 0);
        assert!(pool.golden.is_none() || bounds.max < u32::MAX);
        assert!(pool.payload.is_none() || pool.golden.is_some());
        for path in pool.golden.iter().chain(&pool.payload) {
            assert!(path.is_absolute());
        }
        if let (Some(pause), Some(sleep)) = (pool.idle_pause_after, pool.idle_sleep_after) {
            assert!(pause < sleep);
        }
    }
    let written: String = pools.iter().map(|(name, pool)| write(name, pool)).collect();
    let again = Policy::parse(&written, "fleet.toml");
    assert_eq!(again.as_ref(), Ok(policy), "{written}");
}

fn write(name: &str, pool: &PoolPolicy) -> String {
    let mut fields = vec![format!("name = {name:?}")];
    let periods = [
        ("idle_pause_after", pool.idle_pause_after),
        ("idle_sleep_after", pool.idle_sleep_after),
        ("asleep_remove_after", pool.asleep_remove_after),
        ("max_lifetime", pool.max_lifetime),
    ];
    for (field, period) in periods {
        if let Some(period) = period {
            let (seconds, nanoseconds) = (period.as_secs(), period.subsec_nanos());
            fields.push(format!("{field} = \"{seconds}s {nanoseconds}ns\""));
        }
    }
    let bounds = pool.bounds;
    fields.push(format!("min = {}\nspare = {}", bounds.min, bounds.spare));
    if bounds.max < u32::MAX {
        fields.push(format!("max = {}", bounds.max));
    }
    for (field, path) in [("golden", &pool.golden), ("payload", &pool.payload)] {
        if let Some(path) = path {
            fields.push(format!("{field} = {}", quoted(path.to_str().unwrap())));
        }
    }
    for wake in &pool.wake {
        let port = match wake.port {
            Port::Tcp(port) => format!("guest_port = {port}"),
            Port::Vsock(port) => format!("vsock_port = {port}"),
        };
        fields.push(format!(
            "[[pool.wake]]\nlisten = \"{}\"\n{port}",
            wake.listen
        ));
    }
    format!("[[pool]]\n{}\n", fields.join("\n"))
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|character| match character {
            '"' | '\\' => format!("\\{character}"),
            character if character.is_control() => format!("\\u{:04X}", u32::from(character)),
            character => character.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}
