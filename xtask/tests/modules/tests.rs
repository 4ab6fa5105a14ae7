//! The check itself, on made-up crates.

use super::graph::Graph;
use std::path::Path;

/// Reads a crate that is given as file names and their texts.
fn crate_of(files: &[(&str, &str)]) -> Graph {
    let read = |path: &Path| {
        let path = path.to_str()?;
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| (*text).to_owned())
    };
    Graph::read(Path::new("lib.rs"), &read)
}

fn circle(files: &[(&str, &str)]) -> Vec<String> {
    crate_of(files).circle().unwrap_or_default()
}

#[test]
fn a_circle_of_two_is_named_with_what_closes_it() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; pub(crate) struct A(B);"),
        ("b.rs", "pub(crate) struct B; fn f() { super::a::f(); }"),
    ];
    let expected = [
        "crate::a uses crate::b (crate::b::B)",
        "crate::b uses crate::a (super::a::f)",
    ];
    assert_eq!(circle(&files), expected);
}

#[test]
fn a_longer_circle_is_named_whole() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b;"),
        ("b/mod.rs", "mod deep;"),
        ("b/deep.rs", "use crate::c::C;"),
        ("c.rs", "use crate::a::A; pub struct C;"),
    ];
    assert_eq!(circle(&files), [""; 0], "b itself uses nothing");
    let files = [
        files[0],
        ("a.rs", "use crate::b::deep;"),
        files[2],
        files[3],
        files[4],
    ];
    assert_eq!(circle(&files).len(), 3);
}

#[test]
fn a_module_and_its_parts_are_one() {
    let files = [
        (
            "lib.rs",
            "mod a; pub use a::A; use a::part::Part; type T = Part;",
        ),
        (
            "a/mod.rs",
            "pub mod part; use part::Part; pub struct A(Part);",
        ),
        (
            "a/part.rs",
            "use super::A; pub struct Part; type T = crate::T;",
        ),
    ];
    assert_eq!(circle(&files), [""; 0]);
}

#[test]
fn no_circle_hides_behind_what_a_parent_passes_on() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::A; pub use b::*;"),
        ("a.rs", "use crate::B; pub struct A(B);"),
        ("b.rs", "use super::A; pub struct B;"),
    ];
    assert_eq!(circle(&files).len(), 2);
}

#[test]
fn paths_in_macros_and_signatures_count() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "fn f() { println!(\"{}\", crate::b::text()); }"),
        ("b.rs", "pub fn text() -> crate::a::Text { todo!() }"),
    ];
    assert_eq!(circle(&files).len(), 2);
}

#[test]
fn tests_and_visibility_do_not_count() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "pub(in crate::a) struct A; #[cfg(test)] mod tests { use crate::b::B; }",
        ),
        ("b.rs", "use crate::a::A; #[cfg(test)] mod tests;"),
    ];
    assert_eq!(circle(&files), [""; 0]);
}
