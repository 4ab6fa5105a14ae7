//! `--payload POINTER`: one value of the payload, for scripts in guests without a JSON tool.

use crate::machine::journal::PAYLOAD;
use mvm_protocol::lifecycle::MAX_PAYLOAD;
use serde_json::Value;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Where the payload is: where a command around a snapshot is told that it is, or where the agent
/// puts it unless it is told otherwise.
pub(crate) fn path() -> PathBuf {
    std::env::var_os("MVM_PAYLOAD")
        .map_or_else(|| Path::new("/run/mvm").join(PAYLOAD), PathBuf::from)
}

/// What a shell can use of the value at a JSON pointer (RFC 6901; the empty one is the whole
/// payload), with an end of line: text as it is, the items of a list of texts and numbers on a line
/// each, anything else as JSON. `None` where there is no such value, or it is null, or there is no
/// payload.
///
/// An error is a sentence for whoever asks.
pub(crate) fn value(file: &Path, pointer: &str) -> Result<Option<String>, String> {
    if !(pointer.is_empty() || pointer.starts_with('/')) {
        return Err(format!(
            "--payload: `{pointer}` is no JSON pointer, such as /network/addresses"
        ));
    }
    let unreadable = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let mut text = String::new();
    match std::fs::File::open(file) {
        Ok(open) => open
            .take(MAX_PAYLOAD as u64)
            .read_to_string(&mut text)
            .map_err(|error| unreadable(&error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let payload: Value = serde_json::from_str(&text).map_err(|error| unreadable(&error))?;
    Ok(payload.pointer(pointer).and_then(lines))
}

fn lines(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Array(items) if items.iter().all(is_line) => {
            Some(items.iter().map(|item| line(item) + "\n").collect())
        }
        other => Some(line(other) + "\n"),
    }
}

/// Whether it makes one line, so that as many lines as there are items come out.
fn is_line(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('\n'),
        Value::Number(_) => true,
        _ => false,
    }
}

fn line(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &str = r#"{
        "name": "web-7", "port": 8080, "tls": true, "none": null, "a/b": "slash",
        "addresses": ["10.0.0.7/24", "fd00::7/64"], "empty": [],
        "routes": [{"to": "default"}], "odd": ["two\nlines"]
    }"#;

    fn at(pointer: &str) -> Result<Option<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("payload.json");
        std::fs::write(&file, PAYLOAD).unwrap();
        value(&file, pointer)
    }

    #[test]
    fn values_are_what_a_shell_can_use() {
        for (pointer, expected) in [
            ("/name", Some("web-7\n")),
            ("/port", Some("8080\n")),
            ("/tls", Some("true\n")),
            ("/a~1b", Some("slash\n")),
            ("/addresses", Some("10.0.0.7/24\nfd00::7/64\n")),
            ("/addresses/1", Some("fd00::7/64\n")),
            ("/empty", Some("")),
            ("/routes", Some("[{\"to\":\"default\"}]\n")),
            ("/odd", Some("[\"two\\nlines\"]\n")),
            ("/none", None),
            ("/nothing", None),
        ] {
            assert_eq!(at(pointer).unwrap().as_deref(), expected, "{pointer}");
        }
        assert!(at("").unwrap().unwrap().starts_with("{\"a/b\":"));
    }

    #[test]
    fn what_cannot_be_read_is_no_missing_value() {
        assert!(at("name").unwrap_err().contains("no JSON pointer"));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("payload.json");
        assert_eq!(value(&file, "/name"), Ok(None));
        std::fs::write(&file, "{").unwrap();
        assert!(value(&file, "/name").unwrap_err().contains("payload.json"));
    }
}
