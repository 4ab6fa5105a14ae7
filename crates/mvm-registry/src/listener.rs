//! Who listens on a Unix socket, as the kernel lists them.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// The inodes of the sockets that are listened on and were bound under exactly that name, as the
/// kernel lists them for the network namespace of a process: its number, or `self`.
///
/// # Errors
///
/// If there is no such process, or `/proc` is not mounted.
pub fn listed(process: &str, name: &str) -> io::Result<Vec<String>> {
    sockets(process, name, true)
}

/// How many connections a process has that were made to a socket of that name. One that it has not
/// accepted yet is none of its own.
///
/// # Errors
///
/// If this user may not look at its descriptors, or `/proc` is not mounted.
pub fn open_connections(pid: i32, name: &str) -> io::Result<usize> {
    let accepted = sockets(&pid.to_string(), name, false)?;
    let accepted: HashSet<_> = accepted.into_iter().collect();
    let is_one = |target: &Path| {
        let inode = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?;
        Some(accepted.contains(inode))
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?;
    // One that was closed meanwhile is none any more.
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(targets.filter(|to| is_one(to) == Some(true)).count())
}

/// The inodes of the sockets that have exactly that name: those that are listened on, or the others,
/// which were accepted from one.
fn sockets(process: &str, name: &str, listening: bool) -> io::Result<Vec<String>> {
    // __SO_ACCEPTCON, in proc_pid_net(5)'s /proc/net/unix.
    const LISTENS: &str = "00010000";
    let table = fs::read(format!("/proc/{process}/net/unix"))?;
    let table = String::from_utf8_lossy(&table);
    let inodes = table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        let (flags, inode) = (fields.next()?, fields.nth(2)?);
        let path = fields.next()?;
        ((flags == LISTENS) == listening && path == name).then(|| inode.to_owned())
    });
    Ok(inodes.collect())
}

/// Whether a process has one of these sockets open.
///
/// # Errors
///
/// If this user may not look at its descriptors.
pub fn has_open(pid: i32, inodes: &[String]) -> io::Result<bool> {
    let wanted: Vec<_> = inodes.iter().map(|one| format!("socket:[{one}]")).collect();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = descriptor.and_then(|entry| fs::read_link(entry.path()));
        // One that was closed meanwhile is not the one that is looked for.
        if target.is_ok_and(|to| wanted.iter().any(|one| to.as_os_str() == one.as_str())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who listens on a socket, as `firecracker (process 7)`; `None` where that cannot be told: it was
/// bound under another name, or this user may not look.
pub(crate) fn listener(socket: &Path) -> Option<String> {
    let inodes = listed("self", socket.to_str()?).ok()?;
    if inodes.is_empty() {
        return None;
    }
    let mut pids = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<i32>().ok()
    });
    let pid = pids.find(|pid| has_open(*pid, &inodes).unwrap_or(false))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
    Some(format!("{name} (process {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_listens_is_told_by_name_and_number() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        assert_eq!(listener(&socket), None);
        let listening = UnixListener::bind(&socket).unwrap();
        let own = format!(" (process {})", std::process::id());
        let told = listener(&socket).unwrap();
        assert!(told.ends_with(&own), "{told}");
        drop(listening);
        assert_eq!(listener(&socket), None, "the file alone is nobody");
    }

    #[test]
    fn connections_are_counted_once_they_are_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("v.sock");
        let name = socket.to_str().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let listening = UnixListener::bind(&socket).unwrap();
        assert_eq!(open_connections(own, name).unwrap(), 0);
        let dialled = [(); 3].map(|()| std::os::unix::net::UnixStream::connect(&socket).unwrap());
        assert_eq!(open_connections(own, name).unwrap(), 0);
        let accepted = [(); 2].map(|()| listening.accept().unwrap());
        assert_eq!(open_connections(own, name).unwrap(), 2);
        drop((accepted, dialled));
        assert_eq!(open_connections(own, name).unwrap(), 0);
    }
}
