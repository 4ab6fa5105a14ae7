//! The filesystems that a snapshot of the guest's disks would catch in mid-write.

use super::proc::read;
use std::io;
use std::path::PathBuf;

/// A mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted first. Something else may be mounted over that.
    pub(crate) point: PathBuf,
    /// Its `st_dev`, where that is told: of btrfs and overlays each part has one of its own.
    pub(crate) device: Option<u64>,
}

/// Each writable filesystem on a local disk, once, however often it is mounted.
pub(crate) fn writable_local() -> Vec<Mount> {
    parse(&mountinfo().unwrap_or_default())
}

/// What is mounted, as proc_pid_mountinfo(5) has it.
pub(super) fn mountinfo() -> io::Result<String> {
    read("/proc/self/mountinfo", 4 * 1024 * 1024)
}

/// proc_pid_mountinfo(5): `36 35 98:0 /root /point options [optional…] - type source super-options`.
fn parse(mountinfo: &str) -> Vec<Mount> {
    let mut seen = Vec::new();
    let mut mounts = Vec::new();
    for line in mountinfo.lines() {
        let Some((fields, rest)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = fields.split(' ').skip(2);
        let (Some(device), _, Some(point), Some(options)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let mut rest = rest.split(' ');
        let (Some(kind), _, Some(super_options)) = (rest.next(), rest.next(), rest.next()) else {
            continue;
        };
        let writable = |options: &str| options.split(',').any(|option| option == "rw");
        // A disk's device has a major number; these have none although they are on disks.
        let local =
            !device.starts_with("0:") || matches!(kind, "btrfs" | "bcachefs" | "zfs" | "overlay");
        if local && writable(options) && writable(super_options) && !seen.contains(&device) {
            seen.push(device);
            mounts.push(Mount {
                point: unescape(point).into(),
                device: number(device),
            });
        }
    }
    mounts
}

/// `major:minor` as `st_dev` has it; nothing if the major number is 0.
fn number(device: &str) -> Option<u64> {
    let (major, minor) = device.split_once(':')?;
    let major = major.parse().ok().filter(|major| *major != 0)?;
    Some(rustix::fs::makedev(major, minor.parse().ok()?))
}

/// White space and backslashes are written as `\040` and the like.
fn unescape(point: &str) -> String {
    let mut bytes = Vec::with_capacity(point.len());
    let mut rest = point.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(escaped) if *byte == b'\\' => {
                bytes.push(escaped);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_disks_are_found_once() {
        let text = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 254:0 /srv /bound rw,relatime - ext4 /dev/vda rw
24 22 254:16 / /ro ro,relatime - ext4 /dev/vdb rw
25 22 254:32 / /frozen rw,relatime - erofs /dev/vdc ro
26 22 0:5 / /proc rw,nosuid - proc proc rw
27 22 0:40 / /nfs rw - nfs4 host:/x rw
28 22 0:41 / /my\\040data rw - btrfs /dev/vdd rw,ssd
29 22 0:42 / /run rw - tmpfs tmpfs rw
";
        let mounts = parse(text).into_iter();
        let mounts: Vec<_> = mounts.map(|mount| (mount.point, mount.device)).collect();
        let disk = Some(rustix::fs::makedev(254, 0));
        assert_eq!(mounts, [("/".into(), disk), ("/my data".into(), None)]);
    }
}
