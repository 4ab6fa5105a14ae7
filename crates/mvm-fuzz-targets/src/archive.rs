//! Archives by their entries, for those that unpack them: a changed byte of a tar stream is found by
//! its checksum, so that what lies behind would not be reached.
//!
//! Each line is an entry: its type as tar has it, a byte for its mode, one for what is odd about it,
//! its name, and after a tab the name that it links to, or its content. `@` in a name is the folder
//! above the one that is unpacked into.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// A block of a tar stream.
const BLOCK: usize = 512;

/// Where fields of a header are, in bytes.
const NAME: Range<usize> = 0..100;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..265;
const PREFIX: Range<usize> = 345..500;

/// The archive that is described.
pub fn build(description: &[u8], above: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    for line in description.split(|byte| *byte == b'\n') {
        let Some(([kind, mode, odd], rest)) = line.split_first_chunk::<3>() else {
            continue;
        };
        let tab = rest.iter().position(|byte| *byte == b'\t');
        let (name, payload) = tab.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
        let name = expanded(name, above);
        let payload = expanded(payload, above);
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(*kind));
        // Whoever unpacks is to be able to read it again.
        header.set_mode(0o700 | (u32::from(*mode) << 4 & 0o7077));
        header.set_mtime(u64::from(*mode));
        let content = match kind {
            b'1' | b'2' | b'5' => Vec::new(),
            _ if *odd == b'z' => vec![0; 5000],
            _ => payload.clone(),
        };
        let told = content.len() as u64;
        header.set_size(if *odd == b't' { told + 700 } else { told });
        let fields = header.as_mut_bytes();
        fill(&mut fields[NAME], &name);
        match (odd, kind) {
            // A header as it stands, but for its checksum.
            (b'r', _) => fill(fields, &payload),
            (b'p', _) => {
                fields[MAGIC].copy_from_slice(b"ustar\x0000");
                fill(&mut fields[PREFIX], &payload);
            }
            (_, b'1' | b'2') => fill(&mut fields[LINK], &payload),
            _ => {}
        }
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(&content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn fill(field: &mut [u8], with: &[u8]) {
    let count = field.len().min(with.len());
    field[..count].copy_from_slice(&with[..count]);
}

fn expanded(name: &[u8], above: &Path) -> Vec<u8> {
    let mut expanded = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'@' => expanded.extend_from_slice(above.as_os_str().as_bytes()),
            byte => expanded.push(*byte),
        }
    }
    expanded
}

/// What is in a folder: of each path its mode, and its content or where it leads.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut tree = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(inside) = waiting.pop() {
        for entry in std::fs::read_dir(folder.join(&inside)).unwrap() {
            let entry = entry.unwrap();
            let path = inside.join(entry.file_name());
            let found = entry.metadata().unwrap();
            let (mode, content) = if found.is_symlink() {
                let to = std::fs::read_link(entry.path()).unwrap();
                (0, to.as_os_str().as_bytes().to_vec())
            } else if found.is_dir() {
                waiting.push(path.clone());
                (found.permissions().mode(), Vec::new())
            } else {
                (found.mode(), std::fs::read(entry.path()).unwrap())
            };
            tree.insert(path, (mode, content));
        }
    }
    tree
}
