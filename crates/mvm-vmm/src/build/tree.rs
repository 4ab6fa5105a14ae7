//! The guest's files as they will be in the initrd, and their archive.
//!
//! The same input gives the same bytes: names are sorted, times, owners and inode numbers come from
//! nothing outside. The archive is not compressed: measured, the guest boots no faster with gzip,
//! and an initrd that differs in one file differs in one place.

use super::BuildError;
use cpio::newc::{self, Builder, ModeFileType};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// One second after the epoch: some programs take 0 for "no time".
const MTIME: u32 = 1;

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Folder { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { to: String },
    Device { mode: u32, major: u32, minor: u32 },
}

/// Paths in the guest, without their leading slash.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Puts a node there, and folders above it. What is there already stays, and is an error: the
    /// one who put it there relies on it.
    pub(super) fn add(&mut self, path: &str, node: Node) -> Result<(), BuildError> {
        let path = check_path(path)?;
        let mut above = String::new();
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                break;
            }
            above.push_str(part);
            let folder = self
                .nodes
                .entry(above.clone())
                .or_insert(Node::Folder { mode: 0o755 });
            if !matches!(folder, Node::Folder { .. }) {
                return Err(BuildError::Collision(above));
            }
            above.push('/');
        }
        if let Some(there) = self.nodes.get(path) {
            let both_folders = matches!((there, &node), (Node::Folder { .. }, Node::Folder { .. }));
            if !both_folders {
                return Err(BuildError::Collision(path.to_owned()));
            }
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// A file with that content.
    pub(super) fn add_file(
        &mut self,
        path: &str,
        mode: u32,
        content: impl Into<Vec<u8>>,
    ) -> Result<(), BuildError> {
        let content = content.into();
        self.add(path, Node::File { mode, content })
    }

    /// Whether something is there.
    pub(super) fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_start_matches('/'))
    }

    /// Writes the archive.
    pub(super) fn write<W: Write>(&self, mut out: W) -> io::Result<W> {
        for (ino, (path, node)) in (1..).zip(&self.nodes) {
            let entry = Builder::new(path).ino(ino).mtime(MTIME);
            out = match node {
                Node::Folder { mode } => {
                    let entry = entry.nlink(2).mode(*mode);
                    put(entry.set_mode_file_type(ModeFileType::Directory), out, &[])?
                }
                Node::File { mode, content } => {
                    let entry = entry.mode(*mode);
                    put(
                        entry.set_mode_file_type(ModeFileType::Regular),
                        out,
                        content,
                    )?
                }
                Node::Link { to } => {
                    let entry = entry.mode(0o777);
                    let to = to.as_bytes();
                    put(entry.set_mode_file_type(ModeFileType::Symlink), out, to)?
                }
                Node::Device { mode, major, minor } => {
                    let entry = entry.mode(*mode).rdev_major(*major).rdev_minor(*minor);
                    put(entry.set_mode_file_type(ModeFileType::Char), out, &[])?
                }
            };
        }
        newc::trailer(out)
    }
}

fn put<W: Write>(entry: Builder, out: W, content: &[u8]) -> io::Result<W> {
    let length = u32::try_from(content.len())
        .map_err(|_| io::Error::other("a file of 4 GiB or more does not fit an initrd"))?;
    let mut writer = entry.write(out, length);
    writer.write_all(content)?;
    writer.finish()
}

/// A path as it stands in the archive: no leading slash, and no part that leads elsewhere.
fn check_path(path: &str) -> Result<&str, BuildError> {
    let relative = path.trim_start_matches('/');
    let sound = !relative.is_empty()
        && !relative.contains('\0')
        && relative
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    if sound {
        Ok(relative)
    } else {
        Err(BuildError::GuestPath(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &[u8]) -> Vec<(String, u32, u32)> {
        let mut rest = archive;
        let mut names = Vec::new();
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                return names;
            }
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 1));
            names.push((entry.name().to_owned(), entry.mode(), entry.rdev_minor()));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_order_of_adding_leaves_no_trace() {
        let build = |paths: [&str; 3]| {
            let mut tree = Tree::default();
            for path in paths {
                tree.add_file(path, 0o644, path.trim_start_matches('/'))
                    .unwrap();
            }
            tree.write(Vec::new()).unwrap()
        };
        let one = build(["/etc/b", "etc/a", "/z/y/x"]);
        assert_eq!(one, build(["z/y/x", "/etc/a", "etc/b"]));
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut tree = Tree::default();
        let console = Node::Device {
            mode: 0o600,
            major: 5,
            minor: 1,
        };
        tree.add("/dev/console", console).unwrap();
        tree.add(
            "bin/sh",
            Node::Link {
                to: "busybox".into(),
            },
        )
        .unwrap();
        let archive = tree.write(Vec::new()).unwrap();
        assert_eq!(
            names(&archive),
            [
                ("bin".to_owned(), 0o040_755, 0),
                ("bin/sh".to_owned(), 0o120_777, 0),
                ("dev".to_owned(), 0o040_755, 0),
                ("dev/console".to_owned(), 0o020_600, 1),
            ]
        );
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_leads_out() {
        let mut tree = Tree::default();
        tree.add_file("/etc/inittab", 0o644, "x").unwrap();
        let again = tree.add_file("etc/inittab", 0o644, "y");
        assert!(matches!(again, Err(BuildError::Collision(path)) if path == "etc/inittab"));
        let below = tree.add_file("/etc/inittab/x", 0o644, "y");
        assert!(matches!(below, Err(BuildError::Collision(path)) if path == "etc/inittab"));
        for bad in ["", "/", "../x", "a//b", "a/./b", "a/"] {
            let refused = tree.add_file(bad, 0o644, "");
            assert!(matches!(refused, Err(BuildError::GuestPath(_))), "{bad}");
        }
    }
}
