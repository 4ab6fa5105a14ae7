//! The committed schemas are those of the types, and agree with the conformance vectors.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use jsonschema::Validator;
use mvm_protocol::dev::ParsedDevRequest;
use mvm_protocol::drop_in::{self, Integration, Probe};
use mvm_protocol::request::ParsedRequest;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn schema(name: &str) -> Validator {
    let text = fs::read_to_string(docs().join("schema").join(name)).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    assert!(jsonschema::meta::is_valid(&schema), "{name}");
    let options = jsonschema::options().should_validate_formats(true);
    options.build(&schema).unwrap()
}

fn cases(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(docs().join("vectors").join(file)).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// The JSON of a case that is one frame (`header` 4) or one file (`header` 0), if it is JSON.
fn json(case: &Value, header: usize) -> Option<Value> {
    let bytes = match &case["bytes"] {
        Value::String(text) => hex(text),
        Value::Array(pieces) if pieces.len() == 1 => hex(pieces[0].as_str()?),
        _ => return None,
    };
    let body = bytes.get(header..)?;
    // Frames that are told apart by their header are not for a schema.
    if header > 0 && bytes[..header] != u32::try_from(body.len()).unwrap().to_be_bytes() {
        return None;
    }
    serde_json::from_slice(body).ok()
}

#[test]
fn the_python_clients_shapes_are_current() {
    let file = docs().join("../clients/python/src/mvm_agent/_shapes.py");
    let committed = fs::read_to_string(file).unwrap_or_default();
    assert!(
        committed == mvm_schema::python().unwrap(),
        "clients/python/src/mvm_agent/_shapes.py is not what the schemas say: run `cargo xtask schema`"
    );
}

#[test]
fn the_committed_files_are_current() {
    for (name, content) in mvm_schema::files().unwrap() {
        let committed = fs::read_to_string(docs().join("schema").join(name)).unwrap_or_default();
        assert!(
            committed == content,
            "docs/schema/{name} is not what the types say: run `cargo xtask schema`"
        );
    }
}

#[test]
fn requests_agree_with_the_vectors() {
    let schema = schema("request.json");
    let (mut good, mut bad) = (0, 0);
    for case in cases("requests.json") {
        let name = case["name"].as_str().unwrap();
        let code = case["answers"][0]["code"].as_str().unwrap_or("good");
        // JSON cannot tell a repeated field, nor a schema the length of what base64 stands for.
        let parser_alone = name.starts_with("repeated-")
            || matches!(name, "wake-entropy-too-short" | "wake-entropy-too-long");
        let Some(request) = json(&case, 4).filter(|_| !parser_alone && code != "not-allowed")
        else {
            continue;
        };
        let expected = matches!(code, "good" | "not-found");
        *(if expected { &mut good } else { &mut bad }) += 1;
        assert_eq!(schema.is_valid(&request), expected, "{name}: {request}");
    }
    assert!(good >= 12 && bad >= 25, "{good} good, {bad} bad");
}

#[test]
fn requests_of_dev_builds_agree_with_the_vectors() {
    let schema = schema("dev-request.json");
    let (mut good, mut bad) = (0, 0);
    for case in cases("dev-requests.json") {
        let name = case["name"].as_str().unwrap();
        // A schema can tell of a NUL or a `=` only by a pattern that no reader would see through, and JSON
        // cannot tell a repeated name.
        if matches!(
            name,
            "exec-nul" | "exec-empty-program" | "exec-env-name" | "exec-env-repeated"
        ) {
            continue;
        }
        let Some(request) = json(&case, 4) else {
            continue;
        };
        let code = case["answers"][0]["code"].as_str();
        let expected = !matches!(code, Some("bad-request" | "unknown-request"));
        *(if expected { &mut good } else { &mut bad }) += 1;
        assert_eq!(schema.is_valid(&request), expected, "{name}: {request}");
    }
    assert!(good >= 15 && bad >= 15, "{good} good, {bad} bad");
}

#[test]
fn answers_agree_with_the_vectors() {
    let schema = schema("answer.json");
    let mut count = 0;
    for case in cases("answers.json") {
        let name = case["name"].as_str().unwrap();
        // This version's schema does not know what the next one will add.
        if matches!(
            name,
            "newer-event" | "newer-code" | "newer-step" | "event-restored-by-a-newer-sign"
        ) {
            continue;
        }
        // What is no JSON never comes to a schema.
        let Some(answer) = json(&case, 4) else {
            assert!(case["reads"].is_null(), "{name}");
            continue;
        };
        let errors: Vec<String> = schema.iter_errors(&answer).map(|e| e.to_string()).collect();
        let expected = case["reads"].is_string();
        assert_eq!(errors.is_empty(), expected, "{name}: {errors:?}");
        count += 1;
    }
    assert!(count >= 15, "{count}");
}

#[test]
fn drop_ins_agree_with_the_vectors() {
    let (mut good, mut bad) = (0, 0);
    for case in cases("drop-ins.json") {
        let name = case["name"].as_str().unwrap();
        // JSON cannot tell a repeated field, nor this schema a NUL, or a number that rounds to 0.
        if matches!(
            name,
            "repeated-field" | "nul-in-command" | "nul-in-argv" | "interval-vanishes"
        ) {
            continue;
        }
        let schema = schema(&format!("{}.json", case["kind"].as_str().unwrap()));
        let Some(file) = json(&case, 0) else { continue };
        let expected = case.get("refused").is_none();
        *(if expected { &mut good } else { &mut bad }) += 1;
        assert_eq!(schema.is_valid(&file), expected, "{name}: {file}");
    }
    assert!(good >= 7 && bad >= 20, "{good} good, {bad} bad");
}

#[track_caller]
fn assert_stricter(name: &str, is_taken: fn(&str) -> bool, refused: &[&str]) {
    let schema = schema(name);
    for text in refused {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(schema.is_valid(&value), "{name}: {text}");
        assert!(!is_taken(text), "{name}: {text}");
    }
}

/// What docs/schema/README.md says that the schemas do not say.
#[test]
fn the_parser_is_stricter_than_the_schemas() {
    assert_stricter(
        "integration.json",
        |text| drop_in::read::<Integration>(text.as_bytes()).is_ok(),
        &[
            r#"{"name": "a", "health_cmd": "a\u0000b"}"#,
            r#"{"name": "a", "health_argv": ["/a", "\u0000"]}"#,
            r#"{"name": "a", "user": "a\u0000"}"#,
            r#"{"name": "a", "user": "a\u007f"}"#,
            r#"{"name": "a", "failure_threshold": 1.0}"#,
            r#"{"name": "a", "health_interval_secs": 1e-10}"#,
        ],
    );
    assert_stricter(
        "probe.json",
        |text| drop_in::read::<Probe>(text.as_bytes()).is_ok(),
        &[
            r#"{"name": "a", "command": "a\u0000b"}"#,
            r#"{"name": "a", "command": "a", "cmd": null}"#,
            r#"{"name": "a", "command": null, "cmd": "a"}"#,
        ],
    );
    assert_stricter(
        "request.json",
        |text| ParsedRequest::read(text.as_bytes()).request.is_ok(),
        &[
            r#"{"type": "ping", "id": 1.0}"#,
            r#"{"type": "sleep-prep", "deadline_secs": 1e-10}"#,
        ],
    );
    assert_stricter(
        "dev-request.json",
        |text| ParsedDevRequest::read(text.as_bytes()).request.is_ok(),
        &[
            r#"{"type": "exec", "argv": ["a\u0000"]}"#,
            r#"{"type": "exec", "argv": [""]}"#,
            r#"{"type": "exec", "argv": ["a"], "env": {"A=B": ""}}"#,
            r#"{"type": "exec", "argv": ["a"], "timeout_secs": 1e-10}"#,
            r#"{"type": "get", "path": "/a\u0000"}"#,
            r#"{"type": "forward", "port": 80.0}"#,
            r#"{"type": "job-signal", "job": 1, "signal": "NONE"}"#,
        ],
    );
}

/// The JSON examples of a page, in order.
fn examples(page: &str) -> Vec<Value> {
    let text = fs::read_to_string(docs().join(page)).unwrap();
    let blocks = text.split("```json\n").skip(1);
    blocks
        .map(|block| serde_json::from_str(block.split("```").next().unwrap()).unwrap())
        .collect()
}

#[track_caller]
fn assert_valid(schema: &Validator, example: &Value) {
    let errors: Vec<String> = schema.iter_errors(example).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {example}");
}

#[test]
fn documented_answers_are_valid() {
    let answer = schema("answer.json");
    let all = examples("protocol.md").try_into().unwrap();
    let [status, inspect_adds, ready, exec, error]: [Value; 5] = all;
    assert_valid(&schema("dev-request.json"), &exec);
    for example in [&status, &ready, &error] {
        assert_valid(&answer, example);
    }
    let mut inspect = status;
    inspect["type"] = "inspect".into();
    assert!(!answer.is_valid(&inspect));
    let fields = inspect_adds.as_object().unwrap().clone();
    inspect.as_object_mut().unwrap().extend(fields);
    assert_valid(&answer, &inspect);
}

#[test]
fn documented_drop_ins_are_valid() {
    let (integration, probe) = (schema("integration.json"), schema("probe.json"));
    let [an_integration, a_probe] = examples("agent.md").try_into().unwrap();
    assert_valid(&integration, &an_integration);
    assert_valid(&probe, &a_probe);
    let etc = docs().join("../examples/web/etc");
    for (folder, schema) in [("integrations.d", integration), ("probes.d", probe)] {
        for entry in fs::read_dir(etc.join(folder)).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            assert_valid(&schema, &serde_json::from_str(&text).unwrap());
        }
    }
}

#[test]
fn documented_answers_of_a_fleet_are_valid() {
    let all: [Value; 4] = examples("fleet.md").try_into().unwrap();
    let names = ["fleet-pool", "fleet", "fleet-plan", "fleet-error"];
    for (name, example) in names.iter().zip(&all) {
        let schema = schema(&format!("{name}.json"));
        assert_valid(&schema, example);
        for other in all.iter().filter(|other| *other != example) {
            // A fleet has all the numbers of a pool, and no name.
            assert!(!schema.is_valid(other), "{name}: {other}");
        }
    }
}
