//! Every piece of Nix in the documents is evaluated, as what it is: a flake, a NixOS module, or
//! arguments and expressions.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Nix, read, repository};

/// The blocks that are marked as Nix, with the number of the line that they begin at.
fn snippets(document: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(document.lines()) {
        match &mut open {
            None if line.trim() == "```nix" => open = Some((number, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => found.extend(open.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block that does not end");
    found
}

/// An expression that evaluates all of a snippet.
fn evaluation(text: &str) -> String {
    let repository = repository();
    let prelude = format!(
        r"let
          nixpkgs = {{
            legacyPackages = {{ x86_64-linux = pkgs; aarch64-linux = pkgs; }};
            lib = lib // {{ nixosSystem = {{ modules, ... }}: map used modules; }};
          }};
          self = (import {0}/flake.nix).outputs {{ inherit self nixpkgs; }};
          mvm = self;
          microvm.nixosModules.microvm = {{ }};
          # The values of a module for our options, checked; or nothing.
          used = given:
            let it = if builtins.isFunction given then given {{ inherit pkgs lib; config = {{ }}; }} else given;
            in if it ? services.mvm-guest-agent
               then builtins.attrNames (lib.evalService {{ inherit module pkgs; values = it.services.mvm-guest-agent; }})
               else builtins.attrNames it;
          deep = builtins.mapAttrs (_: value: if value ? drvPath then value.drvPath else value);
        in ",
        repository.display()
    );
    // Where the documents say that the repository is.
    let text = text.replace("/srv/mvm/", &format!("{}/", repository.display()));
    let text = text.trim();
    if text.contains("outputs =") {
        format!(
            "{prelude} (outputs: if outputs ? packages then deep outputs.packages.x86_64-linux
               else builtins.mapAttrs (_: it: it) outputs.nixosConfigurations)
             (({text}).outputs {{ inherit self nixpkgs mvm microvm; }})"
        )
    } else if text.starts_with("{ pkgs, ... }:") || text.starts_with("{ ... }:") {
        format!("{prelude} used ({text})")
    } else {
        format!("{prelude} (it: if it ? drvPath then it.drvPath else deep it) ({text})")
    }
}

#[test]
fn every_snippet_is_right() {
    let Some(nix) = Nix::find() else { return };
    for (document, at_least) in [("docs/mkguest.md", 8), ("README.md", 1)] {
        let snippets = snippets(&read(document));
        assert!(
            snippets.len() >= at_least,
            "{document} has {}",
            snippets.len()
        );
        for (line, text) in snippets {
            if let Err(said) = nix.eval(&evaluation(&text)) {
                panic!("{document}:{line}: {said}");
            }
        }
    }
}

/// The message that the guide shows is the message.
#[test]
fn the_shown_message_is_real() {
    let Some(nix) = Nix::find() else { return };
    let guide = read("docs/mkguest.md");
    let (_, rest) = guide.split_once("```nix-refused\n").unwrap();
    let (arguments, rest) = rest.split_once("```\n").unwrap();
    let (_, rest) = rest.split_once("```text\n").unwrap();
    let (shown, _) = rest.split_once("```\n").unwrap();
    let said = nix.eval(&format!("({arguments}).drvPath")).unwrap_err();
    assert_eq!(format!("error: {said}\n"), shown);
}
