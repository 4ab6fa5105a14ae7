//! A filesystem that a process serves (FUSE): one file, `disk`, in the process's memory. Who asks for a name
//! that begins with `hung` gets no answer, and waits in the kernel for as long as this process lives: from
//! then on `asked-` and that name exists, by which others know that KILL comes too late.
//!
//! By the kernel's protocol (linux/fuse.h, version 7), as far as a mount, a lookup, reads and writes
//! need it.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

unsafe extern "C" {
    fn mount(
        source: *const std::ffi::c_char,
        target: *const std::ffi::c_char,
        kind: *const std::ffi::c_char,
        flags: u64,
        data: *const std::ffi::c_char,
    ) -> i32;
}

/// The size of the file in bytes: enough for a small ext4.
const SIZE: usize = 4 * 1024 * 1024;

/// Numbers of the root and of the file.
const ROOT: u64 = 1;
const DISK: u64 = 2;

const HEADER: usize = 40;
const MAX_WRITE: u32 = 128 * 1024;

const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// Mounts it there, as a filesystem on a block device if one is named, and serves it until it is
/// unmounted.
pub(crate) fn serve(target: &str, device: Option<&str>) -> io::Result<String> {
    let mut kernel = File::options().read(true).write(true).open("/dev/fuse")?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        kernel.as_raw_fd()
    );
    if device.is_some() {
        data.push_str(",blksize=4096");
    }
    let kind = if device.is_some() { "fuseblk" } else { "fuse" };
    let [source, target, kind, data] =
        [device.unwrap_or("probe"), target, kind, &data].map(CString::new);
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    // SAFETY: four texts that end with a NUL and live until the call has returned.
    let mounted = unsafe {
        mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            data.as_ptr(),
        )
    };
    if mounted < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut disk = vec![0; SIZE];
    let mut asked = BTreeSet::new();
    let mut buffer = vec![0; MAX_WRITE as usize + 4096];
    loop {
        let length = match kernel.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // ENODEV: it was unmounted.
            Err(_) => return Ok("unmounted".to_owned()),
        };
        let request = buffer.get(..length).unwrap_or_default();
        if let Some((unique, answer)) = answer(request, &mut disk, &mut asked) {
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let total = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
            let mut reply = total.to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(unique.to_ne_bytes());
            reply.extend(body);
            // A request that was given up has no use for its answer.
            let _ = kernel.write(&reply);
        }
    }
}

/// The request's number, and what it is answered with, if it is.
fn answer(
    request: &[u8],
    disk: &mut [u8],
    asked: &mut BTreeSet<Vec<u8>>,
) -> Option<(u64, Result<Vec<u8>, i32>)> {
    let opcode = word(request, 4);
    let (unique, node) = (double(request, 8), double(request, 16));
    let arguments = request.get(HEADER..).unwrap_or_default();
    let answer = match opcode {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return None,
        // LOOKUP
        1 if arguments.starts_with(b"hung") => {
            asked.insert([b"asked-", arguments].concat());
            return None;
        }
        1 if arguments == b"disk\0" || asked.contains(arguments) => {
            Ok([&entry()[..], &attributes(DISK)].concat())
        }
        1 => Err(ENOENT),
        // GETATTR, SETATTR: to be asked for again each time.
        3 | 4 => Ok([&[0; 16][..], &attributes(node)].concat()),
        // OPEN, OPENDIR
        14 | 27 => Ok(vec![0; 16]),
        // READ
        15 => {
            let (from, to) = range(arguments, disk.len());
            Ok(disk.get(from..to).unwrap_or_default().to_vec())
        }
        // WRITE
        16 => {
            let (from, to) = range(arguments, disk.len());
            let bytes = arguments.get(40..40 + (to - from)).unwrap_or_default();
            if let Some(place) = disk.get_mut(from..from + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            let written = u32::try_from(bytes.len()).unwrap_or_default();
            Ok([written.to_ne_bytes(), [0; 4]].concat())
        }
        // STATFS
        17 => Ok(vec![0; 80]),
        // RELEASE, FSYNC, FLUSH, READDIR (empty), RELEASEDIR, FSYNCDIR, ACCESS, DESTROY
        18 | 20 | 25 | 28 | 29 | 30 | 34 | 38 => Ok(Vec::new()),
        // INIT: version 7.31, and nothing that may be left out, but that lookups do not wait for one another.
        26 => {
            const PARALLEL_DIROPS: u32 = 1 << 18;
            let words = [7, 31, 0, PARALLEL_DIROPS, 0, MAX_WRITE, 1];
            let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
            body.resize(64, 0);
            Ok(body)
        }
        _ => Err(ENOSYS),
    };
    Some((unique, answer))
}

/// `struct fuse_entry_out` before the attributes: to be looked up again each time.
fn entry() -> [u8; 40] {
    let mut entry = [0; 40];
    entry[..8].copy_from_slice(&DISK.to_ne_bytes());
    entry
}

/// `struct fuse_attr`
fn attributes(node: u64) -> [u8; 88] {
    const FOLDER: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;
    let (mode, size) = if node == ROOT {
        (FOLDER, 0)
    } else {
        (FILE, SIZE as u64)
    };
    let mut it = [0; 88];
    it[..8].copy_from_slice(&node.to_ne_bytes());
    it[8..16].copy_from_slice(&size.to_ne_bytes());
    it[16..24].copy_from_slice(&(size / 512).to_ne_bytes());
    it[60..64].copy_from_slice(&mode.to_ne_bytes());
    it[64..68].copy_from_slice(&1_u32.to_ne_bytes());
    it[80..84].copy_from_slice(&4096_u32.to_ne_bytes());
    it
}

/// What a read or a write is of: `offset` and `size` of its arguments, within the file.
fn range(arguments: &[u8], most: usize) -> (usize, usize) {
    let from = usize::try_from(double(arguments, 8)).map_or(most, |from| from.min(most));
    let to = from.saturating_add(word(arguments, 16) as usize).min(most);
    (from, to)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|it| it.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

fn double(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|it| it.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}
