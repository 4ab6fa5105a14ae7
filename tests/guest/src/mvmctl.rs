//! `mvmctl` as a user runs it.

use crate::parts::target;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// The program with a home of its own. VMs that are left in it when it is dropped are removed.
#[derive(Debug)]
pub struct Mvmctl {
    home: TempDir,
    program: PathBuf,
    /// What is to be run as QEMU, if not the one in `PATH`.
    qemu: Option<PathBuf>,
}

/// How a run of it ended.
#[derive(Debug)]
pub struct Run {
    /// The exit code.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Talk.
    pub stderr: String,
}

impl Mvmctl {
    /// The program that was built along with the tests.
    pub fn new() -> Self {
        let program = target().join("debug/mvmctl");
        assert!(
            program.exists(),
            "{} is not there: cargo build -p mvmctl",
            program.display()
        );
        Self {
            home: tempfile::tempdir().expect("make a folder"),
            program,
            qemu: None,
        }
    }

    /// From now on that program is run as QEMU.
    pub fn use_qemu(&mut self, program: PathBuf) {
        self.qemu = Some(program);
    }

    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `$MVM_HOME`
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A file of a VM.
    pub fn file(&self, vm: &str, name: &str) -> PathBuf {
        self.home().join("vms").join(vm).join(name)
    }

    /// The pids in a VM's `vm.json`.
    pub fn pids(&self, vm: &str) -> Vec<i64> {
        let processes = self.processes(vm);
        let pids = processes.iter().map(|process| process["pid"].as_i64());
        pids.flatten().collect()
    }

    /// That of its VMM, which is there.
    pub fn vmm_pid(&self, vm: &str) -> i64 {
        let processes = self.processes(vm);
        let vmm = processes.iter().find(|process| process["role"] == "vmm");
        let pid = vmm.and_then(|vmm| vmm["pid"].as_i64());
        pid.expect("a VMM in its record")
    }

    fn processes(&self, vm: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read(self.file(vm, "vm.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        record["processes"].as_array().cloned().unwrap_or_default()
    }

    /// A run that is still to begin.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("MVM_HOME", self.home())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(qemu) = &self.qemu {
            command.env("MVM_QEMU", qemu);
        }
        command
    }

    /// Begins a run.
    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("run mvmctl")
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Run {
        Run::from(self.start(arguments).wait_with_output().expect("wait"))
    }

    /// Runs it to its end, which has to be a good one.
    pub fn ok(&self, arguments: &[&str]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.code, Some(0), "mvmctl {arguments:?}\n{run:?}");
        run
    }
}

impl Default for Mvmctl {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Mvmctl {
    fn drop(&mut self) {
        let vms = std::fs::read_dir(self.home().join("vms"));
        for vm in vms.into_iter().flatten().flatten() {
            let name = vm.file_name().to_string_lossy().into_owned();
            if std::thread::panicking() {
                eprintln!("{}", crate::machine::logs(&vm.path()));
            }
            let removed = self.run(&["vm", "rm", "--force", &name]);
            if removed.code != Some(0) {
                eprintln!("cannot remove {name}: {removed:?}");
            }
        }
    }
}
