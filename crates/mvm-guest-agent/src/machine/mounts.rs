//! The filesystems that a snapshot of the guest's disks would catch in mid-write.

use super::proc::read;
use std::path::PathBuf;

/// A mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted: the first place that leads to it, if one does.
    pub(crate) point: PathBuf,
    /// Something else is mounted over it, wherever it is mounted, so that no path leads to it.
    pub(crate) is_hidden: bool,
}

/// How many paths are followed at most. A filesystem whose turn does not come counts as hidden.
const FOLLOWED: usize = 64;

/// Each writable filesystem on a local disk, once, however often it is mounted.
pub(crate) fn writable_local() -> Vec<Mount> {
    parse(&read("/proc/self/mountinfo", 4 * 1024 * 1024).unwrap_or_default())
}

/// A line of proc_pid_mountinfo(5):
/// `36 35 98:0 /root /point options [optional…] - type source super-options`.
struct Line<'a> {
    id: &'a str,
    parent: &'a str,
    device: &'a str,
    point: String,
    is_writable_local: bool,
}

fn line(text: &str) -> Option<Line<'_>> {
    let (fields, rest) = text.split_once(" - ")?;
    let mut fields = fields.split(' ');
    let (id, parent, device) = (fields.next()?, fields.next()?, fields.next()?);
    let (point, options) = (fields.nth(1)?, fields.next()?);
    let mut rest = rest.split(' ');
    let (kind, super_options) = (rest.next()?, rest.nth(1)?);
    let writable = |options: &str| options.split(',').any(|option| option == "rw");
    // A disk's device has a major number; these have none although they are on disks.
    let local =
        !device.starts_with("0:") || matches!(kind, "btrfs" | "bcachefs" | "zfs" | "overlay");
    Some(Line {
        id,
        parent,
        device,
        point: unescape(point),
        is_writable_local: local && writable(options) && writable(super_options),
    })
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    let lines: Vec<Line> = mountinfo.lines().filter_map(line).collect();
    let is_root = |line: &&Line| {
        let is_below = |it: &Line| it.id == line.parent && it.id != line.id;
        line.point == "/" && !lines.iter().any(is_below)
    };
    // Below a root that is no mount point, what is mounted over what cannot be told.
    let root = lines.iter().find(is_root);
    let mut left = FOLLOWED;
    let mut leads = |line: &Line| {
        let Some(root) = root else { return true };
        let may = left > 0;
        left = left.saturating_sub(1);
        may && end_of(&line.point, root, &lines).id == line.id
    };
    let mut found: Vec<(&str, Mount)> = Vec::new();
    for line in lines.iter().filter(|line| line.is_writable_local) {
        let known = found.iter_mut().find(|(device, _)| *device == line.device);
        if known.as_ref().is_some_and(|(_, mount)| !mount.is_hidden) {
            continue;
        }
        let is_hidden = !leads(line);
        let mount = Mount {
            point: line.point.clone().into(),
            is_hidden,
        };
        match known {
            Some((_, known)) if !is_hidden => *known = mount,
            Some(_) => {}
            None => found.push((line.device, mount)),
        }
    }
    found.into_iter().map(|(_, mount)| mount).collect()
}

/// The mount to which a path leads: from the root on, into what is mounted on the way.
fn end_of<'a>(path: &str, root: &'a Line<'a>, lines: &'a [Line<'a>]) -> &'a Line<'a> {
    let is_on_the_way = |point: &str| {
        let rest = path.strip_prefix(point);
        point == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut at = root;
    // Each is below the one before, so that there are no more steps than mounts.
    for _ in lines {
        let below = lines
            .iter()
            .filter(|line| line.parent == at.id && line.id != at.id && is_on_the_way(&line.point));
        match below.min_by_key(|line| line.point.len()) {
            Some(next) => at = next,
            None => break,
        }
    }
    at
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
        assert_eq!(parse(text), [reached("/"), reached("/my data")]);
    }

    #[test]
    fn a_filesystem_is_found_where_a_path_leads_to_it() {
        // /mnt/a has something over it, /srv is the same; over /gone there is all of /, and over / as well.
        let text = "\
20 1 0:2 / / rw - rootfs rootfs rw
22 20 254:0 / / rw - ext4 /dev/vda rw
23 22 7:0 / /mnt/a rw - ext2 /dev/loop0 rw
24 23 0:50 / /mnt/a rw - tmpfs tmpfs rw
25 22 7:0 / /srv rw - ext2 /dev/loop0 rw
26 22 7:1 / /gone/b rw - ext2 /dev/loop1 rw
27 22 0:51 / /gone rw - tmpfs tmpfs rw
28 27 7:2 / /gone/c rw - ext2 /dev/loop2 rw
29 22 7:3 / /gone-not rw - ext2 /dev/loop3 rw
";
        let hidden = Mount {
            is_hidden: true,
            ..reached("/gone/b")
        };
        let expected = [
            reached("/"),
            reached("/srv"),
            hidden,
            reached("/gone/c"),
            reached("/gone-not"),
        ];
        assert_eq!(parse(text), expected);
        let without_root = text.split_inclusive('\n').skip(2).collect::<String>();
        assert!(parse(&without_root).iter().all(|mount| !mount.is_hidden));
    }

    fn reached(point: &str) -> Mount {
        Mount {
            point: point.into(),
            is_hidden: false,
        }
    }
}
