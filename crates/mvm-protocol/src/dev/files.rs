//! `put` and `get`: files and folders, whole or not at all.

use super::exec::Path;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// How deep an entry of an archive may lie: the names that its path has. Deeper ones are refused by
/// whoever packs and by whoever unpacks.
pub const MAX_ARCHIVE_DEPTH: usize = 256;

/// Fields of `put`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Put {
    /// Where it goes.
    pub path: Path,
    /// The file's permission bits; if not given, those of the file that it replaces, else 0o644. An
    /// archive has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// If `path` is a folder that is there, it goes into it by this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<FileName>,
    /// If given, the content is an archive of a folder's entries, and `path` becomes that folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
}

/// Fields of `get`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// What is read.
    pub path: Path,
    /// If given, a folder comes as such an archive of its entries. Otherwise a folder is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
}

/// How a folder becomes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Archive {
    /// A POSIX tar stream (pax and GNU long names), entries relative to the folder.
    Tar,
}

/// Permission bits, 0 to 0o7777.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Mode(#[cfg_attr(feature = "schema", schemars(range(max = 4095)))] u32);

impl Mode {
    /// What a file gets if nothing is said.
    pub const DEFAULT: Self = Self(0o644);

    /// The permission bits of a file's mode; its type is left out.
    pub fn of(mode: u32) -> Self {
        Self(mode & 0o7777)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bits = u32::deserialize(deserializer)?;
        if bits > 0o7777 {
            return Err(D::Error::custom(format!(
                "{bits} is not from 0 to 4095 (0o7777)"
            )));
        }
        Ok(Self(bits))
    }
}

/// The name of one entry of a folder: no slash, no NUL, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct FileName(#[cfg_attr(feature = "schema", schemars(regex(pattern = "^[^/]+$")))] String);

impl FileName {
    /// The name, if it is one.
    pub fn new(name: String) -> Option<Self> {
        let is_name =
            !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
        is_name.then_some(Self(name))
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).ok_or_else(|| {
            D::Error::custom("not a name of one file: it has a slash, or is empty, `.` or `..`")
        })
    }
}

/// The content is waited for: data frames on channel 3, then `put-end`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PutReady {
    /// Where it goes.
    pub path: String,
}

/// It is there, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PutDone {
    /// How many bytes came on channel 3.
    pub bytes: u64,
}

/// The content follows: data frames on channel 3, then `get-done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GetStarted {
    /// The file's size now; null for an archive, whose size shows at its end, and where a file's size
    /// says nothing, as in `/sys`. No fewer bytes follow.
    pub bytes: Option<u64>,
    /// The file's or folder's permission bits.
    pub mode: u32,
    /// Whether an archive of a folder follows, and not a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
}

/// That was all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GetDone {
    /// How many bytes were sent on channel 3.
    pub bytes: u64,
}
