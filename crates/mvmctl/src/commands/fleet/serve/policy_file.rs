//! `fleet.toml`, from its file.

use crate::report::Failure;
use mvm_fleet::Policy;
use mvm_registry::read_bounded;
use std::path::PathBuf;

/// The largest policy that is read, in bytes.
const MAX_POLICY: u64 = 1 << 20;

/// Where the policy is.
#[derive(Debug)]
pub(crate) struct PolicyFile {
    path: PathBuf,
}

impl PolicyFile {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// What it says now.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, each with file, line and field.
    pub(crate) fn read(&self) -> Result<Policy, Failure> {
        let name = self.path.display().to_string();
        let bytes = read_bounded(&self.path, MAX_POLICY).map_err(|error| {
            Failure::usage(format!("cannot read the policy {name}: {error}"))
                .hint("--policy names a fleet.toml; docs/fleet.md shows one")
        })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::usage(format!("the policy {name} is no text in UTF-8")))?;
        Policy::parse(&text, &name).map_err(|error| {
            let failure = Failure {
                is_list: true,
                ..Failure::usage(error.to_string())
            };
            failure
                .hint("mend what is named there; docs/policy.md has each field and what it may be")
        })
    }
}
