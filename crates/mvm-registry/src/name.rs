//! Names of VMs.

use crate::Error;
use mvm_protocol::drop_in::Name;
use std::fmt;

/// A VM's name: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`, which would be other folders.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

impl VmName {
    /// The name, if it is of the allowed form.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn new(name: &str) -> Result<Self, Error> {
        match Name::new(name) {
            Some(_) if !matches!(name, "." | "..") => Ok(Self(name.to_owned())),
            _ => Err(Error::BadName {
                name: name.to_owned(),
            }),
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name that was probably meant: at most a third of it mistyped.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= (typed.len().max(name.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_other_folders_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(65)] {
            let name = VmName::new(bad);
            assert!(matches!(name, Err(Error::BadName { .. })), "{bad}");
        }
        for good in ["web-1_a.b", "...", "-", &"x".repeat(64)] {
            assert_eq!(VmName::new(good).unwrap().as_str(), good);
        }
    }
}
