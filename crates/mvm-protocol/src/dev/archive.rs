//! The archive of a folder that is put or got (tar, with GNU's long names), for whoever packs one.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// How long a name may be in a header, in bytes.
const MAX_NAME: usize = 100;

/// What the pax records of a file begin with whose content begins with a map of its holes, under another
/// path than its own: so bsdtar writes any file with holes. The library takes it for what it looks like.
pub const SPARSE: &[u8] = b"GNU.sparse.";

/// Adds an entry of a folder's archive, with its names as they are, byte for byte. The library's own ways to do it want UTF-8
/// where a name is long, and take `.` and double slashes out of where a link leads.
///
/// # Errors
///
/// Those of the content and of the stream.
pub fn append(
    archive: &mut Builder<impl Write>,
    header: &mut Header,
    path: &Path,
    link: &OsStr,
    content: impl Read,
) -> io::Result<()> {
    let (path, link) = (path.as_os_str().as_bytes(), link.as_bytes());
    long_name(archive, EntryType::GNULongLink, link)?;
    long_name(archive, EntryType::GNULongName, path)?;
    if let Some(header) = header.as_gnu_mut() {
        fill(&mut header.name, path);
        fill(&mut header.linkname, link);
    }
    header.set_cksum();
    archive.append(header, content)
}

/// Says before an entry what does not fit into its header.
fn long_name(archive: &mut Builder<impl Write>, kind: EntryType, name: &[u8]) -> io::Result<()> {
    if name.len() <= MAX_NAME {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    if let Some(header) = header.as_gnu_mut() {
        fill(&mut header.name, b"././@LongLink");
    }
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(kind);
    // A NUL is a part of it.
    header.set_size(name.len() as u64 + 1);
    header.set_cksum();
    archive.append(&header, name.chain(&b"\0"[..]))
}

fn fill(field: &mut [u8; MAX_NAME], name: &[u8]) {
    field.fill(0);
    for (byte, of_name) in field.iter_mut().zip(name) {
        *byte = *of_name;
    }
}
