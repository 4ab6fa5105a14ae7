//! mkGuest and the NixOS module, built, read and booted without a network.
//!
//! ```text
//! parts    files of this machine that stand for nixpkgs' packages
//! nix      Nix with a store of its own, in the folder that `cargo xtask test` names
//! files    the files of an image, read out of it
//! ```
//!
//! `stand-in/` has the Nix side: a nixpkgs and a lib as small as mkGuest and the module take them.
//! `guests/story.nix` is the guest that most tests look at. Nix builds a thing once, whichever test
//! asks for it first.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod files;
mod nix;
mod parts;

pub use files::{Entry, Files};
pub use nix::{Nix, sha256};

use std::path::{Path, PathBuf};

/// The repository.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors()
        .nth(2)
        .map(Path::to_owned)
        .expect("a repository")
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What mkGuest says of arguments with which something is wrong.
pub fn refusal(nix: &Nix, arguments: &str) -> String {
    match nix.eval(&format!("(mkGuest {arguments}).drvPath")) {
        Err(message) => message,
        Ok(value) => panic!("{arguments} is taken: {value}"),
    }
}
