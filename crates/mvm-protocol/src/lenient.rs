//! Values out of a list that a newer agent may have made longer.

use serde::de::value::StrDeserializer;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// A value of `T`, or the word for one that a newer agent knows and we do not.
///
/// Fields that describe have this type, so that a client shows what it does not know as it came: one
/// new word must not make a whole answer unreadable. The agent writes known values alone, and reads
/// none of these; whatever it takes is of type `T` itself, which knows its own words and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lenient<T> {
    /// A value of this version's list.
    Known(T),
    /// What stood in its place.
    Other(Word),
}

impl<T: Copy> Lenient<T> {
    /// The value, unless it is one that we do not know.
    pub fn known(self) -> Option<T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

impl<T> From<T> for Lenient<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for Lenient<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(value) if value == other)
    }
}

impl<T: Serialize> Serialize for Lenient<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Other(word) => serializer.serialize_str(word.as_str()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
            type Value = Lenient<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a word")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                let known = T::deserialize(StrDeserializer::<serde::de::value::Error>::new(text));
                Ok(known.map_or_else(|_| Lenient::Other(Word::new(text)), Lenient::Known))
            }
        }

        deserializer.deserialize_str(Read(PhantomData))
    }
}

#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> schemars::JsonSchema for Lenient<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}

/// The most bytes of a word that are kept.
const KEPT: usize = 39;

/// A word of the other side's: its first 39 bytes, or fewer and an ellipsis if it is longer.
///
/// It is kept in place: values stay small and free to copy, and the other side cannot make them large.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Word {
    length: u8,
    bytes: [u8; KEPT],
}

impl Word {
    /// The word, cut if it is too long.
    pub fn new(text: &str) -> Self {
        const MORE: &str = "…";
        let (kept, more) = if text.len() <= KEPT {
            (text, "")
        } else {
            let end = text.floor_char_boundary(KEPT - MORE.len());
            (text.get(..end).unwrap_or_default(), MORE)
        };
        let mut word = Self {
            length: 0,
            bytes: [0; KEPT],
        };
        for (place, byte) in word.bytes.iter_mut().zip(kept.bytes().chain(more.bytes())) {
            *place = byte;
            word.length += 1;
        }
        word
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length.into()).unwrap_or_default();
        // Made of whole characters.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Health;
    use proptest::prelude::*;

    fn read(json: &str) -> Result<Lenient<Health>, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn what_is_not_known_is_kept_as_it_came() {
        assert_eq!(read("\"healthy\"").unwrap(), Health::Healthy);
        let other = read("\"degr\\u0061ded\"").unwrap();
        assert_eq!(other, Lenient::Other(Word::new("degraded")));
        assert_eq!(other.known(), None);
        assert_eq!(serde_json::to_string(&other).unwrap(), "\"degraded\"");
        for wrong in ["7", "null", "{}", "[\"healthy\"]"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_long_word_is_cut() {
        let word = Word::new(&"x".repeat(100_000));
        assert_eq!(word.as_str(), format!("{}…", "x".repeat(36)));
        assert_eq!(Word::new(&"x".repeat(39)).as_str(), "x".repeat(39));
    }

    proptest! {
        #[test]
        fn any_word_keeps_its_beginning(text in "\\PC{0,60}") {
            let word = Word::new(&text);
            let kept = word.as_str().strip_suffix('…').unwrap_or(word.as_str());
            prop_assert!(text.starts_with(kept));
            prop_assert!(text.len() > KEPT || word.as_str() == text);
        }
    }
}
