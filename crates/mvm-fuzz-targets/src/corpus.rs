//! The seeds of a target: `fuzz/seeds/NAME.txt`. They are what fuzzing has found that runs some code
//! that no other does. `cargo xtask fuzz` begins with them, and `cargo xtask fuzz seeds` writes them.

use crate::seeds;
use std::path::Path;

/// Runs a target with each of its seeds.
pub fn run(name: &str, mut target: impl FnMut(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let path = folder.join(format!("{name}.txt"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    assert!(!text.is_empty(), "{} has no seeds", path.display());
    for (number, line) in (1..).zip(text.lines()) {
        // What a harness shows of a test that fails: which one it was.
        println!("fuzz/seeds/{name}.txt:{number}");
        target(&seeds::read(line).expect("a seed"));
    }
}
