//! Strict reading of one JSON object that comes from outside.
//!
//! A request body and a drop-in file are the same kind of thing: one object whose every field must
//! be known, given once and of the right type, and whose error has to name the field (and, in a
//! file, the line). `serde`'s own errors name a field only when it is unknown, missing or repeated;
//! this module adds the name where a value is wrong, and keeps `type` and `id` apart from the rest.

use crate::{MAX_DEPTH, MAX_FIELDS};
use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// What is wrong with an object, in one sentence that names the field where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct Problem {
    /// Line in the source, from 1.
    pub line: usize,
    /// The field at fault, if one is.
    pub field: Option<String>,
    /// The sentence.
    pub message: String,
}

/// The fields of an object in the order in which they stand, their values not yet read.
#[derive(Debug)]
pub struct Object<'a> {
    source: &'a str,
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads the outermost object. A repeated field is an error even if nobody would read it:
    /// parsers disagree on which of the two counts.
    pub fn parse(source: &'a [u8]) -> Result<Self, Problem> {
        let text = std::str::from_utf8(source).map_err(|error| Problem {
            line: line_of(source, error.valid_up_to()),
            field: None,
            message: format!("not UTF-8 at byte {}", error.valid_up_to()),
        })?;
        if let Some(at) = too_deep(source) {
            return Err(Problem {
                line: line_of(source, at),
                field: None,
                message: format!("nested more than {MAX_DEPTH} levels deep"),
            });
        }
        let fields: Fields = serde_json::from_str(text).map_err(|error| Problem {
            line: error.line().max(1),
            field: None,
            message: match without_position(&error) {
                wrong if error.is_data() => wrong,
                wrong => format!("no valid JSON: {wrong}"),
            },
        })?;
        let mut seen: Vec<&str> = Vec::with_capacity(fields.0.len());
        for (name, value) in &fields.0 {
            if seen.contains(&name.as_ref()) {
                return Err(Problem {
                    line: line_of_value(text, value),
                    field: Some(printable(name)),
                    message: format!("field `{}` is given twice", printable(name)),
                });
            }
            seen.push(name);
        }
        Ok(Self {
            source: text,
            fields: fields.0,
        })
    }

    /// Whether it has a field of that name which is not null.
    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| value.get() != "null")
    }

    /// That a field is wrong, for a reason that is not in its value alone.
    pub fn wrong(&self, name: &str, reason: &str) -> Problem {
        match self.value(name) {
            Some(value) => self.wrong_value(name, value, reason),
            None => Problem {
                line: 1,
                field: Some(printable(name)),
                message: reason.to_owned(),
            },
        }
    }

    fn value(&self, name: &str) -> Option<&'a RawValue> {
        let mut fields = self.fields.iter();
        fields.find_map(|(field, value)| (field == name).then_some(*value))
    }

    /// Takes a field out and reads it; `None` if it is not there.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(at) = self.fields.iter().position(|(field, _)| field == name) else {
            return Ok(None);
        };
        let (_, value) = self.fields.remove(at);
        match serde_json::from_str(value.get()) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(self.wrong_value(name, value, &without_position(&error))),
        }
    }

    /// Reads all that is left into a shape, which has to know every field.
    pub fn into_shape<T: DeserializeOwned>(self) -> Result<T, Problem> {
        let mut walk = Walk {
            rest: self.fields.iter(),
            value: None,
            failed: None,
        };
        match T::deserialize(serde::de::value::MapAccessDeserializer::new(&mut walk)) {
            Ok(shape) => Ok(shape),
            Err(error) => {
                let failed = walk.failed;
                let reason = without_position(&error);
                Err(match failed {
                    Some((name, value, Fault::Value)) => self.wrong_value(name, value, &reason),
                    Some((name, value, Fault::Name)) => Problem {
                        line: line_of_value(self.source, value),
                        field: Some(printable(name)),
                        message: reason,
                    },
                    None => Problem {
                        line: 1,
                        field: quoted(&reason),
                        message: reason,
                    },
                })
            }
        }
    }

    /// Reads an object that has no further field.
    pub fn into_empty(self) -> Result<(), Problem> {
        self.into_shape().map(|Empty {}| ())
    }

    fn wrong_value(&self, name: &str, value: &RawValue, reason: &str) -> Problem {
        let name = printable(name);
        Problem {
            line: line_of_value(self.source, value),
            message: format!("field `{name}`: {reason}"),
            field: Some(name),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// A field's name from outside, made fit for a message: short, and without control characters.
pub fn printable(text: &str) -> String {
    in_one_line(&first(text, 64))
}

/// A text without control characters: whatever it quotes, it makes no line of its own in a log, and
/// nothing in it is obeyed by a terminal.
pub fn in_one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// The first so many characters, and whether there are more.
fn first(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// The name between the first pair of backticks in one of serde's messages.
fn quoted(message: &str) -> Option<String> {
    message.split('`').nth(1).map(str::to_owned)
}

fn line_of(source: &[u8], offset: usize) -> usize {
    1 + source
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
}

/// A raw value borrows from the source, so its address tells where it stands.
fn line_of_value(source: &str, value: &RawValue) -> usize {
    let offset = (value.get().as_ptr() as usize).saturating_sub(source.as_ptr() as usize);
    line_of(source.as_bytes(), offset)
}

/// `serde_json` appends a position that counts from the start of the value, not of the source.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let short = text
        .rfind(" at line ")
        .and_then(|at| text.get(..at))
        .unwrap_or(&text);
    // serde quotes what it found, and what it found may be 256 KiB of terminal escapes.
    in_one_line(&first(short, 300))
}

/// A number made fit for a message: what would have many digits is written with an exponent.
pub fn printable_number(number: f64) -> String {
    if number == 0.0 || (1e-6..1e15).contains(&number.abs()) {
        number.to_string()
    } else {
        format!("{number:e}")
    }
}

/// Where the nesting exceeds the cap, if it does. Brackets in strings do not count.
fn too_deep(source: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in source.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(at);
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// Whether JSON text nests deeper than [`MAX_DEPTH`].
pub fn is_too_deep(source: &str) -> bool {
    too_deep(source.as_bytes()).is_some()
}

struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<Key>()? {
                    if fields.len() == MAX_FIELDS {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_FIELDS} fields"
                        )));
                    }
                    fields.push((name.0, map.next_value()?));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// A key, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl<'de> Visitor<'de> for Name {
            type Value = Key<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a field's name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Name,
    Value,
}

/// Hands the fields to a derived `Deserialize`, and remembers which one it stumbled over.
struct Walk<'w, 'a> {
    rest: std::slice::Iter<'w, (Cow<'a, str>, &'a RawValue)>,
    value: Option<(&'w str, &'a RawValue)>,
    failed: Option<(&'w str, &'a RawValue, Fault)>,
}

impl<'de, 'a: 'de> MapAccess<'de> for &mut Walk<'_, 'a> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Self::Error> {
        let Some((name, value)) = self.rest.next() else {
            self.failed = None;
            return Ok(None);
        };
        self.value = Some((name, value));
        self.failed = Some((name, value, Fault::Name));
        seed.deserialize(serde::de::value::StrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, Self::Error> {
        let Some((name, value)) = self.value.take() else {
            return Err(Self::Error::custom("a value without a name"));
        };
        self.failed = Some((name, value, Fault::Value));
        let read = seed.deserialize(&mut serde_json::Deserializer::from_str(value.get()));
        if read.is_ok() {
            self.failed = None;
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Shape {
        name: String,
        #[serde(default)]
        count: u8,
    }

    fn read(source: &str) -> Result<Shape, Problem> {
        Object::parse(source.as_bytes())?.into_shape()
    }

    fn check(source: &str, line: usize, field: Option<&str>, message: &str) {
        let problem = read(source).unwrap_err();
        assert!(problem.message.contains(message), "{problem:?}");
        assert_eq!(
            (problem.line, problem.field.as_deref()),
            (line, field),
            "{problem:?}"
        );
    }

    #[test]
    fn a_good_object_is_read() {
        assert_eq!(
            read(r#"{"name":"a\n","count":3}"#),
            Ok(Shape {
                name: "a\n".into(),
                count: 3
            })
        );
    }

    #[test]
    fn each_fault_names_its_field_and_line() {
        check(
            "{\"name\":\"a\",\n\"count\":256}",
            2,
            Some("count"),
            "field `count`: invalid value",
        );
        check(
            "{\"name\":\"a\",\n\"cuont\":2}",
            2,
            Some("cuont"),
            "unknown field `cuont`",
        );
        check(
            "{\"name\":\"a\",\n\n\"name\":\"b\"}",
            3,
            Some("name"),
            "given twice",
        );
        check(
            "{\"name\":\"a\",\n\"n\\u0061me\":\"b\"}",
            2,
            Some("name"),
            "given twice",
        );
        check("{\"count\":2}", 1, Some("name"), "missing field `name`");
        check(
            "{\"name\":\n7}",
            2,
            Some("name"),
            "field `name`: invalid type: integer `7`",
        );
        check(
            "{\"name\":\"a\",\"count\":99999999999999999999999}",
            1,
            Some("count"),
            "invalid",
        );
    }

    #[test]
    fn what_is_no_object_is_said() {
        check("[]", 1, None, "expected a JSON object");
        check("", 1, None, "no valid JSON: EOF");
        check("name = \"web\"", 1, None, "no valid JSON: expected ident");
        check("{\"name\":\"a\"} x", 1, None, "trailing characters");
        check("{\"name\":\"a\",}", 1, None, "trailing comma");
    }

    #[test]
    fn depth_is_capped_outside_of_strings() {
        let deep = format!(
            "{{\"name\":{}1{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        check(&deep, 1, None, "nested more than 32 levels");
        assert!(read(&format!("{{\"name\":\"{}\"}}", "[\\\"".repeat(1000))).is_ok());
    }

    #[test]
    fn invalid_utf8_is_placed() {
        let problem = Object::parse(b"{\n\"name\":\"\xff\"}").unwrap_err();
        assert_eq!(
            (problem.line, problem.message.as_str()),
            (2, "not UTF-8 at byte 10")
        );
    }

    #[test]
    fn no_number_fills_the_screen() {
        let long = "7".repeat(290);
        for number in ["1e300", "-1e300", &long, "99999999999999999999999"] {
            let problem = read(&format!("{{\"name\":\"a\",\"count\":{number}}}")).unwrap_err();
            assert!(problem.message.len() < 120, "{problem:?}");
        }
        for (number, shown) in [
            (0.0, "0"),
            (-1.5, "-1.5"),
            (86_400.25, "86400.25"),
            (1e300, "1e300"),
            (-1.25e-10, "-1.25e-10"),
        ] {
            assert_eq!(printable_number(number), shown);
        }
    }

    #[test]
    fn names_from_outside_carry_no_escapes_into_messages() {
        let problem = read("{\"\\u001b[2Jx\":1}").unwrap_err();
        assert!(!problem.message.contains('\u{1b}'), "{problem:?}");
    }
}
