//! Labels: what VMs are grouped and chosen by.

use crate::Error;
use mvm_protocol::drop_in::Name;
use mvm_protocol::visible::is_hidden;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The label by which the fleet groups VMs.
pub const POOL: &str = "pool";

/// The longest value in bytes.
const MAX_VALUE: usize = 128;

/// How many labels a VM can have.
const MAX_LABELS: usize = 32;

/// The labels of a VM: keys of the form `[A-Za-z0-9._-]{1,64}`, values of at most 128 bytes without
/// commas and what is obeyed rather than seen ([`is_hidden`]), and at most 32 of them. The value of
/// `pool` is of a key's form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// The value of one of them.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// The same with others on top. One that is given an empty value is taken away.
    ///
    /// # Errors
    ///
    /// [`Error::BadLabel`] if they are too many.
    pub fn with(&self, given: &[Label]) -> Result<Self, Error> {
        let mut labels = self.0.clone();
        for Label { key, value } in given {
            if value.is_empty() {
                labels.remove(key);
            } else {
                labels.insert(key.clone(), value.clone());
            }
        }
        Self::try_from(labels)
    }

    /// Those of another's making that are of the allowed form.
    pub(crate) fn lenient(given: BTreeMap<String, String>) -> Self {
        let sound = given
            .into_iter()
            .filter(|(key, value)| is_sound(key, value));
        Self(sound.take(MAX_LABELS).collect())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = Error;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, Error> {
        if let Some((key, value)) = labels.iter().find(|(key, value)| !is_sound(key, value)) {
            return Err(Error::BadLabel(format!("{key}={value}")));
        }
        if labels.len() > MAX_LABELS {
            return Err(Error::BadLabel(format!("more than {MAX_LABELS} of them")));
        }
        Ok(Self(labels))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl fmt::Display for Labels {
    /// `key=value,key=value`
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (number, (key, value)) in self.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

fn is_sound(key: &str, value: &str) -> bool {
    let fits = (1..=MAX_VALUE).contains(&value.len())
        && !value.contains(|c: char| c == ',' || is_hidden(c));
    Name::new(key).is_some() && fits && (key != POOL || Name::new(value).is_some())
}

/// One label as it is written on the command line: `KEY=VALUE`, or `KEY=` to take it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadLabel(text.to_owned());
        let (key, value) = text.split_once('=').ok_or_else(bad)?;
        if Name::new(key).is_none() || !(value.is_empty() || is_sound(key, value)) {
            return Err(bad());
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// Which VMs are meant: `KEY=VALUE`, `KEY!=VALUE`, or `KEY` for those that have such a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    key: String,
    wants: Wants,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wants {
    Any,
    Value(String),
    Not(String),
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (key, wants) = match text.split_once('=') {
            None => (text, Wants::Any),
            Some((key, value)) => match key.strip_suffix('!') {
                Some(key) => (key, Wants::Not(value.to_owned())),
                None => (key, Wants::Value(value.to_owned())),
            },
        };
        let key = Name::new(key).ok_or_else(|| Error::BadLabel(text.to_owned()))?;
        Ok(Self {
            key: key.to_string(),
            wants,
        })
    }
}

impl Selector {
    /// Whether a VM with these labels, in that pool, is meant.
    pub fn matches(&self, labels: &Labels, pool: &str) -> bool {
        let value = if self.key == POOL {
            Some(pool)
        } else {
            labels.get(&self.key)
        };
        match &self.wants {
            Wants::Any => value.is_some(),
            Wants::Value(wanted) => value == Some(wanted),
            Wants::Not(other) => value != Some(other),
        }
    }
}

/// The pool of a VM with no such label: its name up to the last `-` if only digits follow.
pub(crate) fn pool_by_name(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((pool, number))
            if !pool.is_empty()
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            pool
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(given: &[&str]) -> Labels {
        let given: Vec<Label> = given.iter().map(|text| text.parse().unwrap()).collect();
        Labels::default().with(&given).unwrap()
    }

    #[test]
    fn the_pool_is_the_name_without_its_number() {
        for (name, pool) in [
            ("web-1", "web"),
            ("web-front-12", "web-front"),
            ("web", "web"),
            ("web-", "web-"),
            ("web-1a", "web-1a"),
            ("-1", "-1"),
            ("1", "1"),
        ] {
            assert_eq!(pool_by_name(name), pool, "{name}");
        }
    }

    #[test]
    fn labels_are_added_replaced_and_taken_away() {
        let first = labels(&["pool=web", "tier=front"]);
        assert_eq!(first.to_string(), "pool=web,tier=front");
        let given = ["tier=back".parse().unwrap(), "pool=".parse().unwrap()];
        assert_eq!(first.with(&given).unwrap().to_string(), "tier=back");
    }

    #[test]
    fn what_is_no_label_is_refused() {
        let long = format!("k={}", "x".repeat(129));
        for bad in [
            "",
            "pool",
            "=x",
            "a b=c",
            "k=a,b",
            "k=a\x1b",
            "k=a\u{200b}",
            "pool=a b",
            &long,
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad:?}");
        }
        let many: Vec<Label> = (0..33)
            .map(|n| format!("k{n}=v").parse().unwrap())
            .collect();
        assert!(Labels::default().with(&many).is_err());
    }

    #[test]
    fn selectors() {
        let web = labels(&["tier=front"]);
        let meant = |text: &str| {
            let selector: Selector = text.parse().unwrap();
            selector.matches(&web, "web")
        };
        for text in ["pool=web", "tier", "tier=front", "tier!=back", "owner!=ops"] {
            assert!(meant(text), "{text}");
        }
        for text in ["pool=db", "owner", "tier=back", "tier!=front"] {
            assert!(!meant(text), "{text}");
        }
        assert!("a b=c".parse::<Selector>().is_err());
    }
}
