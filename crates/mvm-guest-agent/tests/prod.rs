//! What a prod build has not: any code for commands, files and jobs. Ports it has: `tests/expose.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[cfg(not(feature = "dev"))]
mod common;

/// Texts that are in a binary with that code, and in no other: answers by name, system calls'
/// places, words of messages, and the archive's library.
const TRACES: [&str; 7] = [
    "exec-started",
    "job-started",
    "put-ready",
    "/dev/ptmx",
    "serve-file",
    ".mvm-put-",
    "ustar",
];

fn has(binary: &[u8], text: &str) -> bool {
    binary
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// The other half of this is that a dev build has them: otherwise the traces would prove nothing.
#[test]
fn the_code_is_in_dev_builds_alone() {
    let dev = cfg!(feature = "dev");
    let mut binaries = vec![(env!("CARGO_BIN_EXE_mvm-guest-agent").to_owned(), dev)];
    // The static ones, where a run of all tests has built them.
    for (variable, dev) in [("MVM_TEST_AGENT", false), ("MVM_TEST_DEV_AGENT", true)] {
        binaries.extend(std::env::var(variable).ok().map(|path| (path, dev)));
    }
    for (path, dev) in binaries {
        let binary = std::fs::read(&path).unwrap();
        for text in TRACES {
            assert_eq!(has(&binary, text), dev, "`{text}` in {path}");
        }
    }
}

#[test]
#[cfg(not(feature = "dev"))]
fn a_prod_build_serves_none_of_it_and_says_why() {
    use serde_json::json;
    let agent = common::Agent::start(&[], &[]);
    for kind in common::DEV_REQUESTS {
        let answer = agent.ask(&json!({"type": kind, "id": 3}));
        assert_eq!(
            (&answer["code"], &answer["id"]),
            (&json!("not-allowed"), &json!(3))
        );
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains("prod build"), "{message}");
    }
    let hello = agent.ask(&json!({"type": "hello"}));
    assert_eq!(hello["profile"], "prod");
    let capabilities = hello["capabilities"].to_string();
    assert!(!capabilities.contains("exec"), "{capabilities}");
}
