//! Where the demo is played: a folder of its own, cleared whatever happens.

use crate::build;
use crate::sh::{Cmd, Failure, Result, Tried, say};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The demo's folder, with its own `MVM_HOME`; the VM in it is stopped and removed at the end,
/// after a failure or Ctrl-C too.
pub(super) struct Stage {
    dir: PathBuf,
    mvmctl: PathBuf,
    interrupted: Arc<AtomicBool>,
    cleared: bool,
}

impl Stage {
    /// With the folder that has `mvmctl` and the agent.
    pub(super) fn set(programs: &Path) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).tried("catch Ctrl-C")?;
        }
        let stage = Self {
            dir: build::target_dir()?.join("demo"),
            mvmctl: programs.join("mvmctl"),
            interrupted,
            cleared: false,
        };
        // A demo that was killed for good may have left its VM.
        stage.remove()?;
        fs::create_dir_all(stage.home()).tried(format!("create {}", stage.home().display()))?;
        say("The commands below are typed with");
        eprintln!("\n$ export MVM_HOME={}", stage.home().display());
        eprintln!("$ export PATH={}:$PATH", programs.display());
        Ok(stage)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// An `mvmctl` command, which fails if Ctrl-C was pressed meanwhile.
    pub(super) fn mvmctl<const N: usize>(&self, args: [&str; N]) -> Step<'_> {
        let cmd = Cmd::new(&self.mvmctl)
            .shown_as("mvmctl")
            .env("MVM_HOME", self.home())
            .args(args);
        Step { cmd, stage: self }
    }

    /// Starts a command whose lines are shown as they come.
    pub(super) fn watch(&self, step: Step<'_>) -> Result<Watched<'_>> {
        eprintln!("\n$ {} &", step.cmd);
        let mut process = step.cmd.spawn(Stdio::piped())?;
        let (sender, lines) = channel();
        if let Some(output) = process.stdout.take() {
            // Ends with the process.
            std::thread::spawn(move || {
                for line in BufReader::new(output)
                    .lines()
                    .map_while(std::io::Result::ok)
                {
                    println!("{line}");
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Watched {
            process,
            lines,
            stage: self,
        })
    }

    fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(Failure("interrupted".into()))
        } else {
            Ok(())
        }
    }

    /// Stops and removes the VM as a person would, then the folder.
    pub(super) fn clear(mut self) -> Result<()> {
        say("Clean up.");
        let parted = if self.home().join("vms").join(super::VM).exists() {
            let run = |verb| {
                let cmd = self.mvmctl(["vm", verb, super::VM]).cmd;
                // A second Ctrl-C must not leave the VM behind.
                cmd.own_group().run()
            };
            run("stop").and_then(|()| run("rm"))
        } else {
            Ok(())
        };
        self.cleared = true;
        self.remove().and(parted)
    }

    /// The same by force and without a word, for whatever is left.
    fn remove(&self) -> Result<()> {
        if self.home().join("vms").join(super::VM).exists() {
            Cmd::new(&self.mvmctl)
                .env("MVM_HOME", self.home())
                .args(["vm", "rm", "--force", super::VM])
                .own_group()
                .output()?;
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).tried(format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.cleared
            && let Err(failure) = self.remove()
        {
            eprintln!("xtask: {failure}");
        }
    }
}

/// One command of the demo.
pub(super) struct Step<'a> {
    cmd: Cmd,
    stage: &'a Stage,
}

impl Step<'_> {
    pub(super) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.cmd = self.cmd.arg(arg);
        self
    }

    pub(super) fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.cmd = self.cmd.args(args);
        self
    }

    pub(super) fn run(self) -> Result<()> {
        self.stage.check()?;
        let ran = self.cmd.run();
        // Ctrl-C ends the command as well, and is the better reason.
        self.stage.check()?;
        ran
    }

    /// Runs a command whose exit code is part of what is shown.
    pub(super) fn run_and_expect(self, code: i32) -> Result<()> {
        self.stage.check()?;
        eprintln!("\n$ {}; echo $?", self.cmd);
        let shown = self.cmd.to_string();
        let status = self.cmd.status()?;
        self.stage.check()?;
        if status.code() == Some(code) {
            println!("{code}");
            Ok(())
        } else {
            Err(Failure(format!(
                "`{shown}` ended with {status}, not with exit code {code}"
            )))
        }
    }
}

/// A command that runs beside the others, ended when dropped.
pub(super) struct Watched<'a> {
    process: Child,
    lines: Receiver<String>,
    stage: &'a Stage,
}

impl Watched<'_> {
    /// Waits for a line.
    pub(super) fn until(
        &mut self,
        what: &str,
        is_it: impl Fn(&str) -> bool,
        at_most: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + at_most;
        loop {
            self.stage.check()?;
            // In pieces, to see Ctrl-C.
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) if is_it(&line) => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => {
                    let secs = at_most.as_secs();
                    return Err(Failure(format!("waited {secs} s for {what} in vain")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure(format!("the events ended before {what}")));
                }
            }
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
