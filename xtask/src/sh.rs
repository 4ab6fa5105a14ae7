//! Running commands, shown as a person would type them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Why a chore ended: one text for people, with what to do next.
pub(crate) struct Failure(pub(crate) String);

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Adds what was tried to an error of the system.
pub(crate) trait Tried<T> {
    fn tried(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Tried<T> for std::result::Result<T, E> {
    fn tried(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("cannot {what}: {error}")))
    }
}

/// A command with its arguments.
pub(crate) struct Cmd(Command);

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self(Command::new(program))
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.0.current_dir(dir);
        self
    }

    /// Shows the command, runs it with our own output, and asks for success.
    pub(crate) fn run(mut self) -> Result<()> {
        eprintln!("\n$ {self}");
        let status = self.0.stdin(Stdio::null()).status();
        self.succeeded(status.tried(format!("run `{}`", self.program()))?)
    }

    /// Runs the command with our own output, without showing it, and gives its end.
    pub(crate) fn status(mut self) -> Result<ExitStatus> {
        let status = self.0.stdin(Stdio::null()).status();
        status.tried(format!("run `{}`", self.program()))
    }

    /// Runs the command silently; its standard output, trimmed, if it succeeds.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.0.stdin(Stdio::null()).output();
        let output = output.tried(format!("run `{}`", self.program()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim();
            Err(Failure(format!("`{self}`: {}: {said}", output.status)))
        }
    }

    fn succeeded(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            Ok(())
        } else {
            Err(Failure(format!("`{self}` failed: {status}")))
        }
    }

    fn program(&self) -> String {
        self.0.get_program().to_string_lossy().into_owned()
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (key, value) in self.0.get_envs() {
            let value = value.map(OsStr::to_string_lossy).unwrap_or_default();
            write!(f, "{}={} ", key.to_string_lossy(), quoted(&value))?;
        }
        f.write_str(&quoted(&self.program()))?;
        for arg in self.0.get_args() {
            write!(f, " {}", quoted(&arg.to_string_lossy()))?;
        }
        Ok(())
    }
}

/// An argument as it has to be typed into a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Where a program is on `PATH`.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A line that says what comes next.
pub(crate) fn say(text: impl fmt::Display) {
    eprintln!("\n==> {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_is_typed() {
        let cmd = Cmd::new("ls").args(["-l", "it's", "a b", ""]).env("K", "v");
        assert_eq!(cmd.to_string(), r"K=v ls -l 'it'\''s' 'a b' ''");
    }

    #[test]
    fn a_failure_tells_what_was_said() {
        let failure = Cmd::new("sh").args(["-c", "echo why >&2; exit 3"]).output();
        let text = failure.unwrap_err().0;
        assert!(text.contains("exit status: 3: why"), "{text}");
        let text = Cmd::new("/no/such/program").status().unwrap_err().0;
        assert!(text.contains("cannot run `/no/such/program`"), "{text}");
    }
}
