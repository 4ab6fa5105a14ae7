//! Signals by name, as they stand on the wire: without `SIG` (signal(7)).

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// From 1 up, as Linux numbers them on x86-64, ARM64 and RISC-V.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The largest signal number, that of the last real-time signal.
const LAST: i32 = 64;

/// The name of a signal; its number if it has none, as real-time signals do not.
pub fn name(signal: i32) -> String {
    usize::try_from(signal)
        .ok()
        .and_then(|signal| NAMES.get(signal.checked_sub(1)?))
        .map_or_else(|| signal.to_string(), |name| (*name).to_owned())
}

/// The number of a signal that is given by its name without `SIG`, or as a number from 1 to 64.
pub fn number(name: &str) -> Option<i32> {
    let by_name = NAMES.iter().position(|known| *known == name);
    match by_name {
        Some(at) => i32::try_from(at + 1).ok(),
        None => name
            .parse()
            .ok()
            .filter(|number| (1..=LAST).contains(number)),
    }
}

/// A signal that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

impl Signal {
    /// Ask to end.
    pub const TERM: Self = Self(15);

    /// The signal of that name or number: see [`number`].
    pub fn new(name: &str) -> Option<Self> {
        number(name).map(Self)
    }

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&name(self.0))
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).ok_or_else(|| {
            serde::de::Error::custom("no such signal: a name without SIG, such as TERM, or 1 to 64")
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Signal {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Signal".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^([A-Z][A-Z0-9]*|[1-9][0-9]?)$",
            "description": "A signal's name without SIG, or its number from 1 to 64"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_belong_together() {
        for signal in 1..=LAST {
            assert_eq!(number(&name(signal)), Some(signal));
        }
        assert_eq!(
            (number("TERM"), number("SYS"), number("34")),
            (Some(15), Some(31), Some(34))
        );
        assert_eq!(
            (name(15), name(0), name(34), name(-1)),
            ("TERM".into(), "0".into(), "34".into(), "-1".into())
        );
        for bad in ["SIGTERM", "term", "", "0", "65", "-9"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
