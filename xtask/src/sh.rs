//! Running commands, shown as a person would type them.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

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
pub(crate) struct Cmd {
    command: Command,
    /// What stands for the program and its environment when it is shown.
    shown: Option<&'static str>,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            shown: None,
        }
    }

    /// Shows a short name in place of the program's path and environment.
    pub(crate) fn shown_as(mut self, name: &'static str) -> Self {
        self.shown = Some(name);
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Keeps Ctrl-C away from the command.
    pub(crate) fn own_group(mut self) -> Self {
        self.command.process_group(0);
        self
    }

    /// Starts the command and goes on.
    pub(crate) fn spawn(mut self, stdout: Stdio) -> Result<Child> {
        let child = self.command.stdin(Stdio::null()).stdout(stdout).spawn();
        child.tried(format!("run `{}`", self.program()))
    }

    /// Shows the command, runs it with our own output, and asks for success.
    pub(crate) fn run(mut self) -> Result<()> {
        eprintln!("\n$ {}", self.wrapped());
        let status = self.command.stdin(Stdio::null()).status();
        self.succeeded(status.tried(format!("run `{}`", self.program()))?)
    }

    /// Runs the command with our own output, without showing it, and gives its end.
    pub(crate) fn status(mut self) -> Result<ExitStatus> {
        let status = self.command.stdin(Stdio::null()).status();
        status.tried(format!("run `{}`", self.program()))
    }

    /// Runs the command silently; its standard output, trimmed, if it succeeds.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.command.stdin(Stdio::null()).output();
        let output = output.tried(format!("run `{}`", self.program()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim();
            Err(Failure(format!("`{self}`: {}: {said}", output.status)))
        }
    }

    /// The command on as many lines as it takes to be read, broken after variables and before
    /// options.
    fn wrapped(&self) -> String {
        let line = self.to_string();
        if line.len() <= WIDTH {
            return line;
        }
        let mut wrapped = String::new();
        let mut after_variable = false;
        for word in self.words() {
            wrapped.push_str(match wrapped.is_empty() {
                true => "",
                false if after_variable || word.starts_with("--") => " \\\n      ",
                false => " ",
            });
            after_variable = word.starts_with(|c: char| c.is_ascii_uppercase());
            wrapped.push_str(&word);
        }
        wrapped
    }

    /// The command's words as they have to be typed into a shell.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if let Some(name) = self.shown {
            words.push(name.to_owned());
        } else {
            for (key, value) in self.command.get_envs() {
                let value = value.map(OsStr::to_string_lossy).unwrap_or_default();
                words.push(format!("{}={}", key.to_string_lossy(), quoted(&value)));
            }
            words.push(quoted(&self.program()));
        }
        let args = self.command.get_args();
        words.extend(args.map(|arg| quoted(&arg.to_string_lossy())));
        words
    }

    fn succeeded(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            Ok(())
        } else {
            Err(Failure(format!("`{self}` failed: {status}")))
        }
    }

    fn program(&self) -> String {
        self.command.get_program().to_string_lossy().into_owned()
    }
}

/// Longer commands are shown on several lines.
const WIDTH: usize = 100;

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.words().join(" "))
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
        assert_eq!(cmd.wrapped(), cmd.to_string());
        let cmd = Cmd::new("ls").args(["--one", &"x".repeat(WIDTH), "--two"]);
        let expected = format!("ls \\\n      --one {} \\\n      --two", "x".repeat(WIDTH));
        assert_eq!(cmd.wrapped(), expected);
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
