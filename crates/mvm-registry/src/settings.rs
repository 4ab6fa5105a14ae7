//! `mvmctl.toml`: where else VMs are to be looked for.

use crate::Error;
use crate::files::read_bounded;
use serde::Deserialize;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The largest `mvmctl.toml` that is read, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

/// What `mvmctl.toml` can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Sockets of VMs that others start: paths with one `*`, whose part is the VM's name.
    #[serde(default)]
    pub(crate) discover: Vec<Pattern>,
}

/// A path with one `*` in one of its parts, such as `/srv/jailer/firecracker/*/root/run/v.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Pattern {
    /// The folder whose entries are looked at.
    folder: PathBuf,
    /// What precedes and follows the name in an entry.
    prefix: String,
    suffix: String,
    /// From the entry on to the socket.
    rest: PathBuf,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some((before, after)) = text.split_once('*') else {
            return Err(format!("`{text}` has no `*` for the VM's name"));
        };
        if after.contains('*') {
            return Err(format!(
                "`{text}` has more than one `*`: which is the VM's name?"
            ));
        }
        if !text.starts_with('/') {
            return Err(format!("`{text}` does not begin with `/`"));
        }
        let (folder, prefix) = before.rsplit_once('/').unwrap_or(("", before));
        let (suffix, rest) = after.split_once('/').unwrap_or((after, ""));
        Ok(Self {
            folder: Path::new("/").join(folder),
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            rest: rest.into(),
        })
    }
}

impl Pattern {
    /// The socket's path for a VM of that name.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        let entry = self.entry_of(name);
        if self.rest.as_os_str().is_empty() {
            entry
        } else {
            entry.join(&self.rest)
        }
    }

    /// The path of what stands in the folder for a VM of that name.
    fn entry_of(&self, name: &str) -> PathBuf {
        self.folder
            .join(format!("{}{name}{}", self.prefix, self.suffix))
    }

    /// The folder whose entries are looked at.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is something at the socket's path for that name; also if that cannot be told of
    /// an entry that is there, since dialling it will say why. An error if the entry itself cannot be
    /// looked for.
    pub(crate) fn has(&self, name: &str) -> io::Result<bool> {
        match self.path_of(name).try_exists() {
            Ok(exists) => Ok(exists),
            Err(error) => match self.entry_of(name).symlink_metadata() {
                // A file where a VM's folder would be.
                Ok(_) => Ok(error.kind() != io::ErrorKind::NotADirectory),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Adds the names for which there is something at the socket's path, as far as that can be told.
    /// A folder that is not there holds none. After an error there may be more than were added.
    pub(crate) fn names(&self, names: &mut Vec<String>) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?.file_name();
            let name = entry
                .to_str()
                .and_then(|entry| entry.strip_prefix(&self.prefix)?.strip_suffix(&self.suffix));
            if let Some(name) = name
                && self.has(name).unwrap_or(true)
            {
                names.push(name.to_owned());
            }
        }
        Ok(())
    }
}

impl Settings {
    /// Reads the file that is named, or that `$MVM_CONFIG` names, which must be there; else the
    /// first that is there of `$XDG_CONFIG_HOME/mvm/mvmctl.toml` and `/etc/mvm/mvmctl.toml`.
    pub(crate) fn load(
        named: Option<&Path>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        let named = named.map(Path::to_owned).or_else(|| {
            env("MVM_CONFIG")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        });
        if let Some(path) = named {
            return Self::read(&path);
        }
        let own = xdg(&env, "XDG_CONFIG_HOME", ".config").map(|folder| folder.join("mvm"));
        for folder in own.into_iter().chain([PathBuf::from("/etc/mvm")]) {
            let path = folder.join("mvmctl.toml");
            if path.exists() {
                return Self::read(&path);
            }
        }
        Ok(Self::default())
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let bad = |problem: String| Error::BadSettings {
            path: path.to_owned(),
            problem,
        };
        let text = read_bounded(path, MAX_SETTINGS).map_err(|error| bad(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|error| bad(error.to_string()))?;
        toml::from_str(&text).map_err(|error| bad(on_one_line(&text, &error)))
    }
}

/// TOML's errors are drawings of several lines; this has the line's number and the reason.
fn on_one_line(text: &str, error: &toml::de::Error) -> String {
    let reason = error.message().trim().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {reason}", before.matches('\n').count() + 1),
        None => reason,
    }
}

/// The folder that an XDG variable names, or its default below `$HOME`. A relative path does not
/// count, as the XDG base directory specification says.
pub(crate) fn xdg(
    env: impl Fn(&str) -> Option<OsString>,
    variable: &str,
    default: &str,
) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    env(variable)
        .and_then(absolute)
        .or_else(|| Some(env("HOME").and_then(absolute)?.join(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern, String> {
        Pattern::try_from(text.to_owned())
    }

    fn names(pattern: &Pattern) -> Vec<String> {
        let mut names = Vec::new();
        pattern.names(&mut names).unwrap();
        names
    }

    #[test]
    fn the_star_is_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        for entry in ["vm-a.d", "vm-b.d", "other", "vm-c.d"] {
            std::fs::create_dir_all(folder.path().join(entry).join("run")).unwrap();
        }
        for entry in ["vm-a.d", "vm-b.d", "other"] {
            std::fs::write(folder.path().join(entry).join("run/v.sock"), "").unwrap();
        }
        let pattern = pattern(&format!("{root}/vm-*.d/run/v.sock")).unwrap();
        let mut names = names(&pattern);
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            pattern.path_of("a"),
            folder.path().join("vm-a.d/run/v.sock")
        );
    }

    #[test]
    fn the_star_can_stand_in_the_last_part() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.sock"), "").unwrap();
        std::fs::write(folder.path().join("a.log"), "").unwrap();
        let pattern = pattern(&format!("{}/*.sock", folder.path().display())).unwrap();
        assert_eq!(names(&pattern), ["a"]);
        assert_eq!(pattern.path_of("a"), folder.path().join("a.sock"));
    }

    #[test]
    fn a_folder_that_is_not_there_holds_none() {
        assert_eq!(names(&pattern("/nonexistent/*/v.sock").unwrap()), [""; 0]);
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mvmctl.toml");
        for (text, expected) in [
            ("\ndiscovr = []\n", "line 2: unknown field `discovr`"),
            ("discover = [\"/a/b\"]", "has no `*`"),
            ("discover = [\"/*/*\"]", "more than one `*`"),
            ("discover = [\"a/*\"]", "does not begin with `/`"),
            ("discover = ", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Settings::load(Some(&path), |_| None).unwrap_err();
            assert!(matches!(error, Error::BadSettings { .. }));
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn the_first_file_that_is_there_counts() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("mvm");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("mvmctl.toml"), "discover = [\"/own/*\"]").unwrap();
        let named = folder.path().join("other.toml");
        std::fs::write(&named, "discover = [\"/named/*\"]").unwrap();
        let load = |named: Option<&Path>, variables: &[(&str, &Path)]| {
            Settings::load(named, |name| {
                let value = variables.iter().find(|(variable, _)| *variable == name);
                value.map(|(_, path)| path.as_os_str().to_owned())
            })
        };
        let xdg = ("XDG_CONFIG_HOME", folder.path());
        let first = |settings: Settings| settings.discover.first().unwrap().path_of("x");
        assert_eq!(first(load(None, &[xdg]).unwrap()), Path::new("/own/x"));
        assert_eq!(
            first(load(None, &[xdg, ("MVM_CONFIG", &named)]).unwrap()),
            Path::new("/named/x")
        );
        assert_eq!(
            first(load(Some(&named), &[xdg]).unwrap()),
            Path::new("/named/x")
        );
        assert!(load(Some(Path::new("/nonexistent")), &[xdg]).is_err());
        assert_eq!(load(None, &[]).unwrap(), Settings::default());
    }
}
