//! Freezes the guest's work, so that nothing of it runs between a snapshot and the end of the wake,
//! and thaws it again.
//!
//! By cgroup v2 (Documentation/admin-guide/cgroup-v2.rst on `cgroup.freeze`; Linux 5.2). The work is
//! whatever is in a cgroup beside those of PID 1, of the agent and of what is exempt:
//!
//! ```text
//!     /                        PID 1 of a guest without systemd, kernel threads
//!     ├── agent                the agent, and below it its commands: spared
//!     ├── services             frozen
//!     │   └── web              frozen as well
//!     └── system.slice         not frozen, since what is exempt is in it …
//!         ├── ssh.service      exempt
//!         └── db.service       … but each of its siblings is
//! ```
//!
//! Each cgroup of the work is frozen by itself, although those below one that is frozen stand still
//! with it: systemd thaws a slice when it stops a unit in it, and a unit's cgroup when it starts it
//! again. A list of those that were frozen here is written first, so that just these are thawed, also
//! by the next agent.

use super::cgroup::{below, mount_point};
use super::journal::Files;
use super::mounts;
use super::outcome::{NotDone, StepResult};
use super::polled::Polled;
use super::proc::{read, read_small};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::time::timeout;

/// How long all together may take to stand still. Each process does at its next way out of the
/// kernel.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);

/// The first of the kernel's threads, if the processes of the machine are seen; it is a program's number
/// elsewhere, as in a container.
const KTHREADD: u32 = 2;

/// How many of those that are not frozen are named.
const MOST_NAMES: usize = 8;

/// What the configuration says of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FreezePolicy {
    /// Nothing is ever frozen.
    pub(crate) off: bool,
    /// Cgroups, by their path from the root, that go on with all below them.
    pub(crate) exempt: Vec<String>,
}

/// What freezing works with.
#[derive(Clone, Copy)]
pub(crate) struct Workload<'a> {
    pub(crate) policy: &'a FreezePolicy,
    pub(crate) files: &'a Files,
    /// The cgroup that the agent's commands are below.
    pub(crate) commands: Option<&'a Path>,
    /// Who was in no cgroup that can be frozen at the last look, in order.
    pub(crate) outside: &'a RefCell<Vec<u32>>,
}

/// The folder of a cgroup. Of one whose name is no text its parent takes care, which is frozen too.
type Group = String;

/// Which cgroups are the work, and where else processes may be that are not to run.
struct Tree {
    mount: Group,
    /// What is exempt, the agent's commands, and at last the cgroups of PID 1 and of the agent.
    spared: Vec<Group>,
    /// The work: each before those below it.
    work: Vec<Group>,
    /// Those of the work that are below none of it.
    tops: Vec<Group>,
    /// Cgroups that cannot be frozen, but by their siblings.
    outside: Vec<Group>,
}

impl Workload<'_> {
    /// Freezes the work, and says how much that is and what is not frozen; `required` makes a failure
    /// of the latter.
    ///
    /// `again` is for a look at it later: freezes what somebody else has thawed since, and what is new;
    /// tells of those as well that have got out of what is frozen, and says nothing if there was none of
    /// it.
    pub(crate) async fn freeze(&self, again: bool, required: bool, limit: Duration) -> StepResult {
        let tree = self.tree()?;
        let mut listed = self.files.frozen()?;
        let (mut thawed, mut new, mut known) = (Vec::new(), Vec::new(), 0);
        for group in &tree.work {
            match is_frozen_by_itself(group) {
                // By us, or by somebody who will thaw it.
                Ok(true) => {}
                Ok(false) if listed.contains(group) => thawed.push(group.clone()),
                Ok(false) => new.push(group.clone()),
                Err(_) => continue,
            }
            known += 1;
        }
        if known == 0 && !tree.work.is_empty() {
            let why = "cgroups have no cgroup.freeze here: Linux before 5.2";
            return Err(NotDone::Skipped(why.to_owned()));
        }
        let (mut told, mut running, mut refused) = (String::new(), Vec::new(), 0);
        if !again || !thawed.is_empty() || !new.is_empty() {
            listed.extend_from_slice(&new);
            self.files.keep_frozen(&listed).map_err(|error| {
                NotDone::Failed(format!("the list of cgroups cannot be kept: {error}"))
            })?;
            for group in thawed.iter().chain(&new) {
                if let Err(error) = set(group, true) {
                    running.push(format!("{}: {error}", tree.name(group)));
                }
            }
            refused = running.len();
            let processes = tree.settle(FREEZE_WITHIN.min(limit), &mut running).await;
            if !again {
                let _ = write!(told, "{known} cgroups, {processes} processes");
            }
            tell(
                &mut told,
                "thawed by somebody else and frozen again",
                &tree.names(&thawed),
            );
            if again {
                tell(&mut told, "new, and frozen", &tree.names(&new));
            }
            tell(&mut told, "not frozen", &running);
        }
        let outside = self.outside(&tree, again);
        tell(&mut told, "in no cgroup that can be frozen", &outside);
        if told.is_empty() {
            return Ok(None);
        }
        if !required || (running.is_empty() && outside.is_empty()) {
            Ok(Some(told))
        } else if refused == 0 && outside.is_empty() {
            Err(NotDone::TimedOut(told))
        } else {
            Err(NotDone::Failed(told))
        }
    }

    /// Who goes on that is not to: at a later look, who did not at the one before.
    fn outside(&self, tree: &Tree, again: bool) -> Vec<String> {
        let mut members = tree.members_outside();
        members.sort_unstable();
        let before = self.outside.replace(members.clone());
        members.retain(|process| !again || before.binary_search(process).is_err());
        let kernel = !has_program(KTHREADD);
        let programs = members
            .into_iter()
            .filter(|it| !(kernel && share_memory(*it, KTHREADD)) && runs_on(*it));
        programs.map(shown).collect()
    }

    fn tree(&self) -> Result<Tree, NotDone> {
        let skipped = |why: &str| Err(NotDone::Skipped(why.to_owned()));
        if self.policy.off {
            return skipped("freeze: off");
        }
        if !rustix::process::geteuid().is_root() {
            return skipped("the agent is not root");
        }
        let (Some(mount), Some(first), Some(own)) = (mounted(), place("1"), place("self")) else {
            return skipped("there is no cgroup v2");
        };
        let at = |path: &str| {
            let path = [&mount, "/", path].concat();
            path.trim_end_matches('/').to_owned()
        };
        let (first, own) = (at(&first), at(&own));
        let mut spared: Vec<_> = self.policy.exempt.iter().map(|path| at(path)).collect();
        let commands = self.commands.and_then(Path::to_str);
        spared.extend(commands.map(str::to_owned));
        spared.extend([first.clone(), own.clone()]);
        let mut tree = Tree {
            spared,
            work: Vec::new(),
            tops: Vec::new(),
            outside: Vec::new(),
            mount,
        };
        tree.collect(tree.mount.clone());
        for group in [first, own] {
            if !tree.outside.contains(&group) {
                tree.outside.push(group);
            }
        }
        Ok(tree)
    }
}

impl Tree {
    /// Adds what is below a cgroup that something spared is in.
    fn collect(&mut self, inner: Group) {
        for group in children(&inner) {
            if self.spared.contains(&group) {
                continue;
            }
            if self.spared.iter().any(|spared| is_below(spared, &group)) {
                self.collect(group);
                continue;
            }
            self.tops.push(group.clone());
            let mut left = vec![group];
            while let Some(group) = left.pop() {
                // A folder has two links, and one of each below it: most have none, and to list what
                // is in one costs more than to look at it.
                if std::fs::metadata(&group).is_ok_and(|it| it.nlink() > 2) {
                    left.extend(children(&group));
                }
                self.work.push(group);
            }
        }
        self.outside.push(inner);
    }

    fn name(&self, group: &Group) -> String {
        name(&self.mount, group)
    }

    fn names(&self, groups: &[Group]) -> Vec<String> {
        groups.iter().map(|group| self.name(group)).collect()
    }

    /// Waits until all stand still. Adds who does not, and gives how many processes do.
    async fn settle(&self, limit: Duration, late: &mut Vec<String>) -> usize {
        let all = async {
            for top in &self.tops {
                // One that is gone has nobody in it.
                let _ = stands_still(top).await;
            }
        };
        let all = timeout(limit, all).await.is_ok();
        let mut processes = 0;
        for group in &self.work {
            let members = members(group);
            let still = all || says_frozen(&read_small(events(group)).unwrap_or_default());
            if still || members.is_empty() {
                processes += members.len();
                continue;
            }
            let before = late.len();
            for process in &members {
                match state(*process) {
                    'D' => late.push(format!("{} in the kernel", shown(*process))),
                    'R' => late.push(shown(*process)),
                    _ => processes += 1,
                }
            }
            if late.len() == before {
                late.push(self.name(group));
            }
        }
        processes
    }

    /// The processes in the root, or beside PID 1, the agent or what is exempt: kernel threads are among
    /// them, which it would take a look at each to tell.
    fn members_outside(&self) -> Vec<u32> {
        // What is exempt goes on by intent.
        let exempt = || self.spared.iter().rev().skip(2);
        let places = self
            .outside
            .iter()
            .filter(|group| !exempt().any(|it| it == *group || is_below(group, it)));
        places.flat_map(members).collect()
    }
}

/// Thaws what was frozen here, those below before those above, so that all begin to run at one time.
/// Does not wait for anybody.
pub(crate) fn thaw(files: &Files) -> StepResult {
    let mut listed = files.frozen()?;
    let mount = mounted().unwrap_or_default();
    let mut told = match listed.len() {
        0 => "nothing was frozen".to_owned(),
        count => format!("{count} cgroups"),
    };
    let (mut thawed, mut failed) = (Vec::new(), Vec::new());
    // What could not be thawed is tried again by the next thaw.
    let mut left = Vec::new();
    while let Some(group) = listed.pop() {
        if let Ok(false) = is_frozen_by_itself(&group) {
            thawed.push(name(&mount, &group));
        } else if let Err(error) = set(&group, false) {
            failed.push(format!("{}: {error}", name(&mount, &group)));
            left.insert(0, group);
        }
    }
    tell(&mut told, "thawed by somebody else before", &thawed);
    tell(&mut told, "still frozen", &failed);
    if let Err(error) = files.keep_frozen(&left) {
        failed.push(String::new());
        let _ = write!(told, "; its list: {error}");
    }
    if failed.is_empty() {
        Ok(Some(told))
    } else {
        Err(NotDone::Failed(told))
    }
}

/// Where the hierarchy is.
fn mounted() -> Option<Group> {
    let mount = mount_point(&mounts::mountinfo().ok()?)?;
    mount.to_str().map(str::to_owned)
}

/// A process's cgroup, from the root, without a slash at its beginning.
fn place(process: &str) -> Option<String> {
    let text = read_small(["/proc/", process, "/cgroup"].concat()).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path.to_owned())
}

/// The cgroups right below one.
fn children(group: &Group) -> Vec<Group> {
    let below = below(Path::new(group));
    below
        .filter_map(|path| path.into_os_string().into_string().ok())
        .collect()
}

fn is_below(group: &Group, other: &Group) -> bool {
    group
        .strip_prefix(other)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// A cgroup's path from the root.
fn name(mount: &str, group: &str) -> String {
    group.strip_prefix(mount).unwrap_or(group).to_owned()
}

/// Adds to a text what those have in common, if there are any.
fn tell(told: &mut String, what: &str, names: &[String]) {
    if names.is_empty() {
        return;
    }
    if !told.is_empty() {
        told.push_str("; ");
    }
    told.push_str(what);
    for (count, name) in names.iter().enumerate().take(MOST_NAMES) {
        told.push_str(if count == 0 { ": " } else { ", " });
        told.push_str(name);
    }
    if names.len() > MOST_NAMES {
        let _ = write!(told, " and {} more", names.len() - MOST_NAMES);
    }
}

/// Whether a cgroup was told to freeze, itself and not one above it.
fn is_frozen_by_itself(group: &Group) -> io::Result<bool> {
    Ok(read_small(freeze_file(group))?.starts_with('1'))
}

/// Tells a cgroup to freeze or to thaw. One that is gone has nothing to freeze.
fn set(group: &Group, frozen: bool) -> io::Result<()> {
    let file = File::options().write(true).open(freeze_file(group));
    let text: &[u8] = if frozen { b"1" } else { b"0" };
    match file.and_then(|mut file| file.write_all(text)) {
        Err(error)
            if !matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NODEV)
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn freeze_file(group: &Group) -> String {
    [group, "/cgroup.freeze"].concat()
}

fn events(group: &Group) -> String {
    [group, "/cgroup.events"].concat()
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// Waits until nobody in a cgroup, or below it, runs. The kernel tells of a change by POLLPRI to whom
/// has read the file before.
async fn stands_still(group: &Group) -> io::Result<()> {
    let file: OwnedFd = File::open(events(group))?.into();
    let file = Polled::new(file, Interest::PRIORITY)?;
    loop {
        let mut text = [0; 256];
        let read = rustix::io::pread(file.get_ref(), &mut text, 0)?;
        let text = text.get(..read).unwrap_or_default();
        if says_frozen(&String::from_utf8_lossy(text)) {
            return Ok(());
        }
        file.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

/// The processes of a cgroup, those below it not among them.
fn members(group: &Group) -> Vec<u32> {
    let text = read([group, "/cgroup.procs"].concat(), 1024 * 1024).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether it is none of those that have to: PID 1, the agent and its own children, and kernel threads,
/// which have no program; nor have the dead.
fn runs_on(process: u32) -> bool {
    let own = std::process::id();
    ![1, own].contains(&process) && has_program(process) && parent(process) != Some(own)
}

fn has_program(process: u32) -> bool {
    std::fs::read_link(of_process(process, "exe")).is_ok()
}

/// Whether two processes have one memory, or both have none, as kernel threads: kcmp(2), which takes far
/// less time than a look at an `exe`. Where it is not there, or not allowed, it says no.
#[expect(unsafe_code, reason = "no safe binding knows this call")]
fn share_memory(process: u32, other: u32) -> bool {
    /// `KCMP_VM` of linux/kcmp.h
    const KCMP_VM: u32 = 1;
    let of = |number: u32| nix::libc::c_ulong::from(number);
    // SAFETY: it takes numbers alone, and changes nothing.
    let compared = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_kcmp,
            of(process),
            of(other),
            of(KCMP_VM),
            of(0),
            of(0),
        )
    };
    compared == 0
}

fn of_process(process: u32, file: &str) -> String {
    format!("/proc/{process}/{file}")
}

/// What stands behind the program's name, which may hold anything: its state is first, then its
/// parent (proc_pid_stat(5)).
fn stat(process: u32) -> String {
    let stat = read_small(of_process(process, "stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .map_or_else(String::new, |(_, rest)| rest.to_owned())
}

fn state(process: u32) -> char {
    stat(process).chars().next().unwrap_or('X')
}

fn parent(process: u32) -> Option<u32> {
    stat(process).split(' ').nth(1)?.parse().ok()
}

fn shown(process: u32) -> String {
    let name = read_small(of_process(process, "comm")).unwrap_or_default();
    format!("{} ({process})", name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken_for_a_kernel_thread_has_no_program() {
        let own = std::process::id();
        let mut child = std::process::Command::new("cat");
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(!share_memory(own, child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        if has_program(KTHREADD) || !share_memory(own, own) {
            eprintln!("SKIPPED: no kernel threads here, or no kcmp(2)");
            return;
        }
        assert!(!share_memory(own, KTHREADD));
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for process in all.filter(|it| share_memory(*it, KTHREADD)) {
            assert!(!has_program(process), "{}", shown(process));
        }
    }
}
