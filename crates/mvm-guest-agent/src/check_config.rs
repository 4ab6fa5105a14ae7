//! `--check-config DIR`: every problem of the drop-ins that an image is about to get.

use crate::config;
use crate::core::registry::Loaded;
use crate::machine::drop_in_dir;
use crate::machine::regular_file::Trust;
use std::path::Path;

/// What was found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) integrations: usize,
    pub(crate) probes: usize,
    /// One line each: file, line, field.
    pub(crate) problems: Vec<String>,
}

/// Reads `DIR/integrations.d`, `DIR/probes.d` and `DIR/agent.json`. Who owns the files does not
/// count here: in the image they will be root's.
pub(crate) async fn check(dir: &Path) -> Report {
    if !dir.is_dir() {
        let problem = format!("{}: is not a folder", dir.display());
        return Report {
            integrations: 0,
            probes: 0,
            problems: vec![problem],
        };
    }
    let settings = dir.join("agent.json");
    let mut problems: Vec<String> = settings
        .exists()
        .then(|| config::problem_in(&settings))
        .flatten()
        .into_iter()
        .collect();
    let loaded = drop_in_dir::load(
        dir.join("integrations.d"),
        dir.join("probes.d"),
        Trust::Anybody,
    )
    .await;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            problems.push(format!("{}: cannot be read: {error}", dir.display()));
            Loaded::default()
        }
    };
    problems.extend(loaded.errors.into_iter().map(|error| {
        match error
            .message
            .strip_prefix("line ")
            .and_then(|rest| rest.split_once(": "))
        {
            Some((line, message)) => format!("{}:{line}: {message}", error.file),
            None => format!("{}: {}", error.file, error.message),
        }
    }));
    Report {
        integrations: loaded.integrations.len(),
        probes: loaded.probes.len(),
        problems,
    }
}
