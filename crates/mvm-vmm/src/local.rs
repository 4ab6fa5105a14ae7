//! The agent as a plain process on this machine: no guest, no VMM. For trying things, and for tests.
//!
//! It runs with `--no-system-effects`, so that it neither sets this machine's clock nor syncs its
//! disks, and listens on the Unix socket where another VM has its VMM's.

use crate::driver::{Driver, Launch};
use crate::error::Error;
use crate::launch::VmProcesses;
use crate::locate::AGENT;
use mvm_registry::Alive;
use mvm_registry::{Role, VmFolder, write_whole};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `--backend local`
#[derive(Debug)]
pub struct Local;

const ROLE: Role = Role::Agent;

impl Driver for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn runs_a_guest(&self) -> bool {
        false
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let agent = match &launch.agent {
            Some(path) => path.clone(),
            None => AGENT.find()?,
        };
        let folder = processes.folder().clone();
        let mut command = Command::new(&agent);
        command
            .arg("--no-system-effects")
            .args(["--listen", "unix:v.sock"])
            .arg("--run-dir")
            .arg(make(&folder.file("run"))?);
        if let Some(etc) = launch.etc.as_ref().filter(|etc| !etc.is_dir()) {
            return Err(Error::Unsupported {
                backend: "local",
                reason: format!("--etc {} is no folder", etc.display()),
                hint: "give a folder with integrations.d, probes.d and agent.json".into(),
            });
        }
        // Settings and drop-ins are named even if there are none: the agent's default places are
        // those of this machine's own agent.
        let given = launch.etc.as_ref().map(|etc| etc.join("agent.json"));
        let settings = if let Some(path) = given.filter(|path| path.exists()) {
            path
        } else {
            let path = folder.file("agent.json");
            write_whole(&path, b"{}\n")?;
            path
        };
        command.arg("--config").arg(settings);
        for (flag, name) in [
            ("--integrations-dir", "integrations.d"),
            ("--probes-dir", "probes.d"),
        ] {
            let given = launch.etc.as_ref().map(|etc| etc.join(name));
            let drop_ins = match given.filter(|path| path.is_dir()) {
                Some(path) => path,
                None => make(&folder.file(name))?,
            };
            command.arg(flag).arg(drop_ins);
        }
        processes.spawn_with_console(ROLE, "the agent", None, &mut command)
    }

    fn request_stop(&self, folder: &VmFolder, processes: &[Alive]) -> Result<(), Error> {
        for process in processes {
            process
                .signal(Signal::TERM)
                .map_err(Error::io("stop the agent of", folder.path()))?;
        }
        Ok(())
    }
}

fn make(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).map_err(Error::io("make the folder", path))?;
    Ok(path.to_owned())
}
