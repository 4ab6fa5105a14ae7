//! Hosts as network namespaces with cables between them. Nothing of it reaches the machine's own
//! network, and whatever runs in a namespace ends with it.

use crate::conf::{CONTROLLER, HOSTS, Host};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What names begin with; the id of the process that made them follows.
const PREFIX: &str = "mvm-engines-";

/// What the names of this process's namespaces and of its folder begin with.
pub(crate) fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// The controller's namespace and the hosts', gone with all that runs in them when this is dropped.
#[derive(Debug)]
pub(crate) struct Net {
    prefix: String,
    /// What each command gets.
    env: Vec<(&'static str, String)>,
    folder: PathBuf,
}

impl Net {
    /// Lays the cables.
    pub(crate) fn lay(folder: &Path, env: Vec<(&'static str, String)>) -> Result<Self, String> {
        let net = Self {
            prefix: prefix(),
            env,
            folder: folder.to_owned(),
        };
        for name in net.names() {
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        let control = net.namespace(CONTROLLER);
        for host in HOSTS {
            let own = net.namespace(host.name);
            let link = cable(host);
            // `ip` takes a short name for an option.
            ip(&[
                "link", "add", "name", &link, "netns", &control, "type", "veth", "peer", "name",
                "eth0", "netns", &own,
            ])?;
            let (at, from) = (host.address, host.gateway);
            ip(&[
                "-n",
                &own,
                "addr",
                "add",
                &format!("{at}/30"),
                "dev",
                "eth0",
            ])?;
            let other = format!("{from}/30");
            ip(&["-n", &control, "addr", "add", &other, "dev", &link])?;
            ip(&["-n", &own, "link", "set", "eth0", "up"])?;
            net.cable(host, "up")?;
            ip(&["-n", &own, "route", "add", "default", "via", from])?;
        }
        Ok(net)
    }

    /// Cuts a host off, or joins it again: `down`, `up`.
    pub(crate) fn cable(&self, host: Host, to: &str) -> Result<(), String> {
        let control = self.namespace(CONTROLLER);
        ip(&["-n", &control, "link", "set", &cable(host), to])
    }

    /// Has a host lose its power.
    pub(crate) fn off(&self, host: Host) {
        kill(&[self.namespace(host.name)]);
    }

    /// A command on a host, which calls itself by its name there.
    pub(crate) fn on(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(host)))
            .args(["unshare", "--uts", "sh", "-c"])
            .args(["hostname \"$0\" && exec \"$@\"", host])
            .arg(program)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    fn names(&self) -> Vec<String> {
        let hosts = HOSTS.iter().map(|host| host.name);
        let all = hosts.chain([CONTROLLER]);
        all.map(|host| self.namespace(host)).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(&self.names());
    }
}

/// The controller's end of the cable to a host.
fn cable(host: Host) -> String {
    format!("to-{}", host.name)
}

/// Runs `ip` in the machine's namespaces.
fn ip(args: &[&str]) -> Result<(), String> {
    output(Command::new("ip").args(args)).map(|_| ())
}

/// What a command printed, if it succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let ran = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if ran.status.success() {
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&ran.stderr);
        Err(format!("{command:?}: {}: {}", ran.status, said.trim()))
    }
}

/// Removes what runs that were killed have left: namespaces, whatever runs in them, folders.
pub(crate) fn sweep() {
    let listed = output(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    let names: Vec<String> = names.filter(|name| left(name)).map(str::to_owned).collect();
    remove(&names);
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_str().is_some_and(left) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether that is the name of something of a process that is no more.
fn left(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX);
    let pid = rest
        .and_then(|rest| rest.split_once('-'))
        .map(|(pid, _)| pid);
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}

/// Ends whatever runs in those namespaces, and removes them.
fn remove(names: &[String]) {
    kill(names);
    for name in names {
        let _ = Command::new("ip").args(["netns", "del", name]).output();
    }
}

/// Kills whatever runs in those namespaces.
fn kill(names: &[String]) {
    let until = Instant::now() + Duration::from_secs(10);
    // What one starts while the others are being killed is killed in the next round.
    loop {
        let pids: Vec<String> = names.iter().flat_map(|name| pids(name)).collect();
        if pids.is_empty() || Instant::now() > until {
            break;
        }
        let _ = Command::new("kill").arg("-KILL").args(&pids).output();
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn pids(name: &str) -> Vec<String> {
    let listed = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    listed.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_of_a_process_that_is_no_more() {
        // Above the largest that there can be.
        assert!(left("mvm-engines-4194305-a"));
        assert!(!left(&format!("{}a", prefix())));
        assert!(!left("mvm-engines--a"));
        assert!(!left("mvm-engines-x"));
        assert!(!left("other-4194305-a"));
    }
}
