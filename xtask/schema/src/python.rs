//! The shapes of answers as Python's dataclasses, from the schemas: `clients/python`.
//!
//! An enum becomes a class of its known words, and a field of that type a `str`: another word comes
//! from a newer agent, and is kept as it is.

use serde_json::{Map, Value};
use std::fmt::Write as _;

const HEAD: &str = r#""""The shapes of answers, as docs/schema has them. Written by `cargo xtask schema`: do not edit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Mapping, Optional, Tuple

from . import _read as read
"#;

/// Types that Python has.
const BUILT_IN: [&str; 1] = ["Timestamp"];

/// The module's text, from the schemas of answers.
pub(crate) fn module(schemas: &[&Value]) -> Result<String, String> {
    let mut defs = Map::new();
    for schema in schemas {
        let more = schema.get("$defs").and_then(Value::as_object);
        defs.extend(more.ok_or("a schema without `$defs`")?.clone());
    }
    let mut text = HEAD.to_owned();
    for (name, def) in &defs {
        if !BUILT_IN.contains(&&**name) {
            text += &class(name, def, &defs)?;
        }
    }
    Ok(text)
}

fn class(name: &str, def: &Value, defs: &Map<String, Value>) -> Result<String, String> {
    match words(def) {
        Some(words) => Ok(word_class(name, def, &words)),
        None => shape_class(name, def, defs),
    }
}

/// The words of an enum.
fn words(def: &Value) -> Option<Vec<(&str, &str)>> {
    let variants = def.get("oneOf")?.as_array()?;
    variants
        .iter()
        .map(|variant| Some((variant.get("const")?.as_str()?, doc(variant))))
        .collect()
}

fn word_class(name: &str, def: &Value, words: &[(&str, &str)]) -> String {
    let mut text = format!(
        "\n\nclass {name}:\n    \"\"\"{}\"\"\"\n",
        one_line(doc(def))
    );
    for (word, doc) in words {
        let constant = word.to_uppercase().replace('-', "_");
        let _ = write!(
            text,
            "\n    #: {}\n    {constant}: Final = \"{word}\"\n",
            one_line(doc)
        );
    }
    text
}

fn shape_class(name: &str, def: &Value, defs: &Map<String, Value>) -> Result<String, String> {
    let required: Vec<&str> = def
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut fields: Vec<(&str, &Value, bool)> = Vec::new();
    let properties = |from: &'_ Value| from.get("properties").and_then(Value::as_object).cloned();
    let own = properties(def).unwrap_or_default();
    // A change has one field of several: each is optional.
    let variants = def.get("anyOf").and_then(Value::as_array);
    let of_variants: Map<String, Value> = variants
        .into_iter()
        .flatten()
        .filter_map(properties)
        .flatten()
        .collect();
    for &key in &required {
        let field = own.get(key).ok_or(format!("{name}.{key} has no type"))?;
        fields.push((key, field, true));
    }
    let optional = own.iter().filter(|(key, _)| !required.contains(&&***key));
    fields.extend(
        optional
            .chain(&of_variants)
            .map(|(key, field)| (&**key, field, false)),
    );

    let mut text = format!(
        "\n\n@dataclass(frozen=True)\nclass {name}:\n    \"\"\"{}\"\"\"\n",
        one_line(doc(def))
    );
    let mut reads = String::new();
    for (key, field, is_required) in fields {
        let at = || format!("{name}.{key}");
        let field_type = Type::of(field, defs).ok_or_else(|| format!("{}: what type?", at()))?;
        let (annotation, default, read) = field_type.field(key, is_required);
        let _ = write!(
            text,
            "\n    #: {}\n    {key}: {annotation}{default}\n",
            one_line(doc(field))
        );
        let _ = writeln!(reads, "            {key}={read},");
    }
    let _ = write!(
        text,
        "\n    @staticmethod\n    def read(value: object) -> {name}:\n        \
         shape: Mapping[str, Any] = read.shape(value, \"{name}\")\n        \
         return {name}(\n{reads}        )\n"
    );
    Ok(text)
}

/// What a field has, as Python says it.
struct Type {
    annotation: String,
    /// The function that reads it.
    reader: String,
    /// What it is where it is left out; none for what then is null.
    default: Option<&'static str>,
    is_nullable: bool,
}

impl Type {
    fn plain(annotation: &str, reader: &str, default: Option<&'static str>) -> Self {
        Self {
            annotation: annotation.into(),
            reader: reader.into(),
            default,
            is_nullable: false,
        }
    }

    fn of(field: &Value, defs: &Map<String, Value>) -> Option<Self> {
        if let Some(reference) = field.get("$ref").and_then(Value::as_str) {
            let name = reference.strip_prefix("#/$defs/")?;
            return Some(if name == "Timestamp" {
                Self::plain("datetime", "read.timestamp", None)
            } else if words(defs.get(name)?).is_some() {
                Self::plain("str", "read.text", None)
            } else {
                Self::plain(name, &format!("{name}.read"), None)
            });
        }
        if let Some(either) = field.get("anyOf").and_then(Value::as_array) {
            let one = either
                .iter()
                .find(|it| it.get("type") != Some(&Value::from("null")))?;
            let is_nullable = true;
            return Some(Self {
                is_nullable,
                ..Self::of(one, defs)?
            });
        }
        let (word, is_nullable) = match field.get("type") {
            Some(Value::String(word)) => (&**word, false),
            Some(Value::Array(either)) => {
                let one = either
                    .iter()
                    .filter_map(Value::as_str)
                    .find(|it| *it != "null")?;
                (one, true)
            }
            None => return Some(Self::plain("Any", "read.anything", Some("None"))),
            Some(_) => return None,
        };
        let plain = match word {
            "string" => Self::plain("str", "read.text", None),
            "integer" => Self::plain("int", "read.integer", Some("0")),
            "number" => Self::plain("float", "read.number", None),
            "boolean" => Self::plain("bool", "read.boolean", Some("False")),
            "array" => {
                let item = Self::of(field.get("items")?, defs)?;
                Self::plain(
                    &format!("Tuple[{}, ...]", item.annotation),
                    &format!("read.items({})", item.reader),
                    Some("()"),
                )
            }
            _ => return None,
        };
        Some(Self {
            is_nullable,
            ..plain
        })
    }

    /// Its annotation, its default with the sign before it, and how it is read.
    fn field(&self, key: &str, is_required: bool) -> (String, String, String) {
        let Self {
            annotation, reader, ..
        } = self;
        match (is_required, self.is_nullable, self.default) {
            (true, false, _) if annotation != "Any" => (
                annotation.clone(),
                String::new(),
                format!("read.required(shape, \"{key}\", {reader})"),
            ),
            (_, false, Some(default)) => (
                annotation.clone(),
                if is_required {
                    String::new()
                } else {
                    format!(" = {default}")
                },
                format!("read.default(shape, \"{key}\", {reader}, {default})"),
            ),
            _ => (
                format!("Optional[{annotation}]"),
                if is_required {
                    String::new()
                } else {
                    " = None".into()
                },
                format!("read.optional(shape, \"{key}\", {reader})"),
            ),
        }
    }
}

fn doc(value: &Value) -> &str {
    value
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or("Told by its name.")
}

/// The first paragraph, without the links of Rust's documentation.
fn one_line(doc: &str) -> String {
    let paragraph = doc.split("\n\n").next().unwrap_or_default();
    paragraph
        .replace('\n', " ")
        .replace("[`", "`")
        .replace("`]", "`")
}
