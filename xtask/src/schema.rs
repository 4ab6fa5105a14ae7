//! `cargo xtask schema`: writes docs/schema.
//!
//! The generator is a crate of its own, so that the other chores need not wait for what it is
//! built from. Its tests check that the committed files are current.

use crate::sh::{Cmd, Result};

pub(crate) fn run() -> Result<()> {
    Cmd::new("cargo")
        .args(["run", "--quiet", "--package", "mvm-schema"])
        .run()
}
