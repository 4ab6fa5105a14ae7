//! Who ran when: by what the VMs themselves have written down, and by what somebody else has seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One VM on one host, from its first sign of life to its last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) vm: String,
    pub(crate) host: String,
    /// The process that its signs of life come from.
    pub(crate) process: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// The runs in a journal whose lines are `TIME VM HOST PROCESS`. A line that is none is an error.
pub(crate) fn runs(journal: &str) -> Result<Vec<Run>, String> {
    let mut runs: BTreeMap<[&str; 3], (f64, f64)> = BTreeMap::new();
    for line in journal.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [time, vm, host, process] = words[..] else {
            return Err(format!("a line of the VMs' journal is none: {line:?}"));
        };
        let time: f64 = time.parse().map_err(|error| format!("{line:?}: {error}"))?;
        let run = runs.entry([vm, host, process]).or_insert((time, time));
        *run = (run.0.min(time), run.1.max(time));
    }
    let run = |([vm, host, process], (from, to)): ([&str; 3], _)| Run {
        vm: vm.to_owned(),
        host: host.to_owned(),
        process: process.to_owned(),
        from,
        to,
    };
    Ok(runs.into_iter().map(run).collect())
}

/// The lines of such a journal in what guests have written to their consoles: `beat TIME BOOT`.
pub(crate) fn beats(console: &str, vm: &str, host: &str) -> String {
    let mut journal = String::new();
    for (_, beat) in console.lines().filter_map(|line| line.split_once("beat ")) {
        if let Some((time, boot)) = beat.trim().split_once(' ') {
            let _ = writeln!(journal, "{time} {vm} {host} {boot}");
        }
    }
    journal
}

/// Those of one VM that ran at one time. Moments as long as their clock's precision are none.
pub(crate) fn twice(runs: &[Run]) -> Vec<(&Run, &Run)> {
    let mut found = Vec::new();
    for (number, one) in runs.iter().enumerate() {
        for other in runs.iter().skip(number + 1) {
            if one.vm == other.vm && one.from < other.to && other.from < one.to {
                found.push((one, other));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_moves_is_one_and_one_that_overlaps_is_two() {
        let moved = "1.0 web-1 a 7\n2.0 web-1 a 7\n2.5 web-1 b 8\n1.5 web-2 b 9\n";
        let moved = runs(moved).unwrap();
        assert_eq!(moved.len(), 3);
        assert_eq!((moved[0].from, moved[0].to), (1.0, 2.0));
        assert_eq!(twice(&moved), []);
        // On two hosts, and on one as two processes.
        for journal in [
            "1.0 web-1 a 7\n2.0 web-1 b 8\n3.0 web-1 a 7\n",
            "1.0 web-1 a 7\n2.0 web-1 a 8\n3.0 web-1 a 7\n",
        ] {
            assert_eq!(twice(&runs(journal).unwrap()).len(), 1, "{journal}");
        }
        assert!(runs("1.0 web-1 a\n").is_err());
        // One that ends in the second in which the next begins.
        let moved = runs("1 web-1 a 7\n2 web-1 a 7\n2 web-1 b 8\n3 web-1 b 8\n").unwrap();
        assert_eq!(twice(&moved), []);
    }

    #[test]
    fn a_console_has_beats_among_other_lines() {
        let console = "web-1: starting\n[    1.2] init\nbeat 7 x-y\r\nbeat 8 x-y\r\n";
        assert_eq!(
            beats(console, "web-1", "a"),
            "7 web-1 a x-y\n8 web-1 a x-y\n"
        );
    }
}
