//! What has to be written of a guest's memory: not the pages that nobody has touched.
//!
//! A full snapshot is all of the memory, zeros too. From 1.13 on a diff snapshot of a VM whose dirty
//! pages are not tracked is what is resident, by mincore(2), in a file that is a hole elsewhere or has
//! what it had:
//!
//! ```text
//! booted     anonymous memory      resident pages ──► an empty file: the rest is zeros
//! restored   a snapshot's file,    resident pages ──► a copy of that file: the rest is as it was
//!            mapped privately
//! ```
//!
//! A page that is swapped out is not resident and would be missed, so the file counts only if nothing of
//! the process was swapped when it had been written: the VM is paused, and nobody brings such a page back
//! meanwhile. The kernel's word is taken for where the memory comes from, and not a record's: whoever
//! wrote the record may not have known.

use crate::snapshot::copy_sparse;
use rustix::fs::{major, minor};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file of which a process has less than that mapped for writing is a library of its own, in bytes.
const LIBRARY: u64 = 8 << 20;

/// A memory that could be taken for something else of the process is written whole, in bytes.
const SMALLEST: u64 = 2 * LIBRARY;

/// Where the memory of a guest comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Backing {
    /// It was all zeros.
    Anonymous,
    /// It was what this file has.
    File(MappedFile),
    /// It cannot be told.
    Unknown,
}

/// A file that is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MappedFile {
    /// As the kernel shows it: 8 digits of hexadecimal at most, a colon, and as many.
    device: String,
    inode: u64,
    path: PathBuf,
}

/// Makes ready the file into which what is resident is to be written, so that all of the memory will be
/// in it. Whether that can be done.
pub(super) fn prepare(pid: i32, bytes: u64, into: &Path) -> bool {
    let Ok(maps) = fs::read_to_string(format!("/proc/{pid}/maps")) else {
        return false;
    };
    match backing(&maps, bytes) {
        Backing::Anonymous => true,
        Backing::File(file) => {
            let copied = copy(&file, bytes, into);
            if copied.is_err() {
                // Written whole, it takes no more room than this took.
                let _ = fs::remove_file(into);
            }
            copied.is_ok()
        }
        Backing::Unknown => false,
    }
}

/// Whether nothing of a process is swapped out; not, if that cannot be told.
pub(super) fn is_all_in_memory(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| swapped(&status) == Some("0 kB"))
}

/// What of a process is swapped out, as its `/proc/PID/status` has it. A kernel without swap says nothing
/// of it, nor does a process that has ended.
fn swapped(status: &str) -> Option<&str> {
    let mut lines = status.lines();
    let swapped = lines.find_map(|line| line.strip_prefix("VmSwap:"))?;
    Some(swapped.trim())
}

fn copy(file: &MappedFile, bytes: u64, into: &Path) -> io::Result<()> {
    let from = mvm_registry::open_regular(&file.path)?;
    let metadata = from.metadata()?;
    let device = metadata.dev();
    let device = format!("{:02x}:{:02x}", major(device), minor(device));
    // Another file may have taken its place: the mapping is of the one that there was.
    if (metadata.ino(), device.as_str(), metadata.len()) != (file.inode, &file.device, bytes) {
        return Err(io::Error::other("it is another file"));
    }
    copy_sparse(&from, bytes, &File::create_new(into)?)
}

/// Where a process has a memory of that size from, by its `/proc/PID/maps`.
fn backing(maps: &str, bytes: u64) -> Backing {
    if bytes < SMALLEST {
        return Backing::Unknown;
    }
    let mut files: HashMap<MappedFile, u64> = HashMap::new();
    let mut anonymous = 0;
    for mapping in maps.lines() {
        let Some(mapping) = Mapping::parse(mapping) else {
            return Backing::Unknown;
        };
        if !mapping.is_writable {
            continue;
        }
        match mapping.file {
            // A device, a memfd, or a file whose pages are others' as well.
            Some(_) if mapping.is_shared && mapping.bytes >= LIBRARY => return Backing::Unknown,
            Some(file) => *files.entry(file).or_default() += mapping.bytes,
            None => anonymous += mapping.bytes,
        }
    }
    files.retain(|_, mapped| *mapped >= LIBRARY);
    let mut files = files.into_iter();
    match (files.next(), files.next()) {
        (Some((file, mapped)), None) if mapped == bytes => Backing::File(file),
        (None, None) if anonymous >= bytes => Backing::Anonymous,
        _ => Backing::Unknown,
    }
}

/// A line of `/proc/PID/maps`.
struct Mapping {
    bytes: u64,
    is_writable: bool,
    is_shared: bool,
    file: Option<MappedFile>,
}

impl Mapping {
    /// `7f0000000000-7f0010000000 rw-p 00000000 fd:00 1234    /a/path`, as proc_pid_maps(5) has it.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(5, ' ');
        let mut next = || fields.next();
        let (start, end) = next()?.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        let permissions = next()?.as_bytes();
        let (_offset, device, rest) = (next()?, next()?, next()?);
        let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
        let (inode, path) = (inode.parse().ok()?, path.trim_start());
        let file = (inode != 0).then(|| MappedFile {
            device: device.to_owned(),
            inode,
            path: path.into(),
        });
        Some(Self {
            bytes: address(end)?.checked_sub(address(start)?)?,
            is_writable: permissions.get(1) == Some(&b'w'),
            is_shared: permissions.get(3) == Some(&b's'),
            file,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARIES: &str = "\
5581a2a00000-5581a2c00000 r-xp 00000000 fe:00 1201  /usr/bin/firecracker
5581a2e00000-5581a2e10000 rw-p 00200000 fe:00 1201  /usr/bin/firecracker
5581a3000000-5581a3100000 rw-p 00000000 00:00 0     [heap]
7f10a0000000-7f10a0003000 rw-s 00000000 00:0e 2068  anon_inode:kvm-vcpu:0
7f10a2000000-7f10a2004000 rw-p 001d0000 fe:00 730   /usr/lib/x86_64-linux-gnu/libc.so.6
7ffd10000000-7ffd10021000 rw-p 00000000 00:00 0     [stack]
";

    fn of(memory: &str, bytes: u64) -> Backing {
        backing(&format!("{LIBRARIES}{memory}"), bytes)
    }

    fn file(path: &str) -> Backing {
        Backing::File(MappedFile {
            device: "fe:00".into(),
            inode: 99,
            path: path.into(),
        })
    }

    #[test]
    fn a_guest_that_was_booted_has_memory_of_its_own() {
        let whole = "7f1080000000-7f1090000000 rw-p 00000000 00:00 0 \n";
        assert_eq!(of(whole, 256 << 20), Backing::Anonymous);
        // Below and above the hole for devices.
        let parts = "\
7f0f00000000-7f0fc0000000 rw-p 00000000 00:00 0
7f0fc0000000-7f1000000000 rw-p 00000000 00:00 0
";
        assert_eq!(of(parts, 4 << 30), Backing::Anonymous);
        assert_eq!(of("", 256 << 20), Backing::Unknown, "it is elsewhere");
        assert_eq!(of(whole, 8 << 20), Backing::Unknown, "it may be the heap");
    }

    #[test]
    fn a_guest_that_was_restored_has_that_of_a_file() {
        let parts = "\
7f0f00000000-7f0fc0000000 rw-p 00000000 fe:00 99    /srv/my vms/web/memory
7f0fc0000000-7f1000000000 rw-p c0000000 fe:00 99    /srv/my vms/web/memory
";
        assert_eq!(of(parts, 4 << 30), file("/srv/my vms/web/memory"));
        assert_eq!(of(parts, 8 << 30), Backing::Unknown, "there is more");
        let gone = parts.replace("memory", "memory (deleted)");
        assert_eq!(of(&gone, 4 << 30), file("/srv/my vms/web/memory (deleted)"));
    }

    #[test]
    fn what_is_not_understood_is_written_whole() {
        for memory in [
            // What other processes write to, or see.
            "7f1080000000-7f1090000000 rw-s 00000000 00:01 99    /memfd:guest (deleted)\n",
            "7f1080000000-7f1090000000 rw-s 00000000 fe:00 99    /srv/memory\n",
            // Beside memory of its own: which of the two is the guest's?
            "7f1070000000-7f1074000000 rw-p 00000000 fe:00 99    /srv/memory\n\
             7f1080000000-7f1090000000 rw-p 00000000 00:00 0\n",
            "not a mapping\n",
            "7f1090000000-7f1080000000 rw-p 00000000 00:00 0\n",
        ] {
            assert_eq!(of(memory, 256 << 20), Backing::Unknown, "{memory}");
        }
    }

    #[test]
    fn the_file_that_is_mapped_is_copied_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        fs::write(&path, vec![7; 64 << 10]).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let device = metadata.dev();
        let mapped = MappedFile {
            device: format!("{:02x}:{:02x}", major(device), minor(device)),
            inode: metadata.ino(),
            path: path.clone(),
        };
        let into = folder.path().join("copy");
        copy(&mapped, 64 << 10, &into).unwrap();
        assert_eq!(fs::read(&into).unwrap(), vec![7; 64 << 10]);
        assert!(copy(&mapped, 64 << 10, &into).is_err(), "it is there");
        for (bytes, inode) in [(32 << 10, mapped.inode), (64 << 10, mapped.inode + 1)] {
            let other = MappedFile {
                inode,
                ..mapped.clone()
            };
            let into = folder.path().join(format!("copy of {inode}, {bytes}"));
            assert!(copy(&other, bytes, &into).is_err());
            assert!(!into.exists());
        }
    }

    #[test]
    fn this_process_tells_what_of_it_is_swapped() {
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(swapped(&own).is_some());
        assert!(!is_all_in_memory(0));
        let status = "VmData:\t 301 kB\nVmSwap:\t       4 kB\nThreads:\t2\n";
        assert_eq!(swapped(status), Some("4 kB"));
        assert_eq!(swapped("Threads:\t2\n"), None);
    }
}
