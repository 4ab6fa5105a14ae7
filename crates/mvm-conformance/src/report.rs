//! What was found: each check, and what it came to.

use serde::Serialize;

/// Whether an implementation has to pass a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The protocol says so: one that fails it does not conform.
    Required,
    /// The protocol leaves it open; this is what `mvm-guest-agent` or `mvm-client` does.
    Recommended,
}

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It behaves as it should.
    Passed,
    /// It does not.
    Failed {
        /// What was expected, and what came.
        why: String,
    },
    /// It was not tried.
    NotRun {
        /// What it would have needed.
        why: String,
    },
    /// It is about something that this implementation does not claim to do.
    DoesNotApply {
        /// What that is.
        why: String,
    },
}

/// One check and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its name: `requests/NAME`, `dev-requests/NAME` and `handshake/NAME` are the vectors of
    /// `docs/vectors`.
    pub name: String,
    /// Whether it has to be passed.
    pub level: Level,
    /// What is expected.
    pub about: String,
    /// What it came to.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How many of one level came to what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// As it should be.
    pub passed: usize,
    /// Not.
    pub failed: usize,
    /// Not tried.
    pub not_run: usize,
    /// About what it does not claim to do.
    pub does_not_apply: usize,
}

/// What all of it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that is required was tried and passed.
    Conforms,
    /// Nothing that is required failed, but not all of it was tried.
    Incomplete,
    /// Something that is required failed.
    Fails,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What all of it comes to.
    pub verdict: Verdict,
    /// Of what is required.
    pub required: Counts,
    /// Of what is recommended.
    pub recommended: Counts,
    /// What it says of itself that this version of the checks does not know, and so did not look at.
    pub unknown: Vec<String>,
    /// Each check.
    pub checks: Vec<Entry>,
}

impl Report {
    /// Of these checks.
    pub fn of(checks: Vec<Entry>, unknown: Vec<String>) -> Self {
        let count = |level| {
            let mut counts = Counts::default();
            for check in checks.iter().filter(|check| check.level == level) {
                match check.outcome {
                    Outcome::Passed => counts.passed += 1,
                    Outcome::Failed { .. } => counts.failed += 1,
                    Outcome::NotRun { .. } => counts.not_run += 1,
                    Outcome::DoesNotApply { .. } => counts.does_not_apply += 1,
                }
            }
            counts
        };
        let required = count(Level::Required);
        Self {
            verdict: match required {
                Counts { failed: 1.., .. } => Verdict::Fails,
                Counts { not_run: 1.., .. } => Verdict::Incomplete,
                _ => Verdict::Conforms,
            },
            required,
            recommended: count(Level::Recommended),
            unknown,
            checks,
        }
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &str> {
        let failed = |check: &&Entry| matches!(check.outcome, Outcome::Failed { .. });
        self.checks
            .iter()
            .filter(failed)
            .map(|check| check.name.as_str())
    }
}
