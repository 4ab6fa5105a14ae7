//! The kernel as an uncompressed ELF file, which is what Firecracker boots on x86.
//!
//! Distributions ship a bzImage: a small program that unpacks the kernel, and the kernel behind it.
//! Its header says where that is (Documentation/arch/x86/boot.rst, `payload_offset`). It is unpacked
//! by the program that belongs to its format, which a machine with kernels has.

use crate::error::Error;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The name of what was unpacked, in the VM's folder.
const UNPACKED: &str = "vmlinux";

/// Where a bzImage's header ends that has all that is read here.
const HEADER: usize = 0x250;

/// How each format begins, and who unpacks it.
const FORMATS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b\x08", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
];

/// The kernel itself if it is uncompressed, else what it unpacks to, in that folder.
pub(crate) fn uncompressed(
    kernel: &Path,
    folder: &Path,
    backend: &'static str,
) -> Result<PathBuf, Error> {
    let mut file = File::open(kernel).map_err(Error::io("open", kernel))?;
    let mut header = Vec::new();
    (&file)
        .take(HEADER as u64)
        .read_to_end(&mut header)
        .map_err(Error::io("read", kernel))?;
    if header.starts_with(b"\x7fELF") {
        return Ok(kernel.to_owned());
    }
    let unusable = |reason: String| Error::Unsupported {
        backend,
        reason: format!(
            "it boots an uncompressed kernel, and {}: {reason}",
            kernel.display()
        ),
        hint:
            "put the uncompressed kernel (vmlinux; `extract-vmlinux` in the kernel's sources makes \
               it) into the image folder, and name it in manifest.json"
                .into(),
    };
    let Some(payload) = Payload::of(&header) else {
        return Err(unusable("is neither that nor a bzImage".into()));
    };
    let mut packed = Vec::new();
    file.seek(SeekFrom::Start(payload.offset))
        .and_then(|_| file.take(payload.length).read_to_end(&mut packed))
        .map_err(Error::io("read", kernel))?;
    let Some((_, program)) = FORMATS.iter().find(|(magic, _)| packed.starts_with(magic)) else {
        return Err(unusable("is packed in a way that is not known here".into()));
    };
    // The kernel's build adds the unpacked length, which gzip has at its own end already.
    if *program != "gzip" {
        packed.truncate(packed.len().saturating_sub(4));
    }
    let target = folder.join(UNPACKED);
    unpack(program, packed, &target).map_err(&unusable)?;
    let mut magic = [0; 4];
    let is_elf = File::open(&target).and_then(|mut file| file.read_exact(&mut magic));
    if is_elf.is_ok() && magic == *b"\x7fELF" {
        Ok(target)
    } else {
        Err(unusable("has something else than a kernel in it".into()))
    }
}

/// Where the packed kernel is.
#[derive(Debug, PartialEq, Eq)]
struct Payload {
    offset: u64,
    length: u64,
}

impl Payload {
    fn of(header: &[u8]) -> Option<Self> {
        if header.get(0x202..0x206)? != b"HdrS" {
            return None;
        }
        let version = u16::from_le_bytes(*header.get(0x206..)?.first_chunk()?);
        if version < 0x208 {
            return None;
        }
        // 0 means 4, for the sake of boot loaders from before there was a number.
        let sectors = match *header.get(0x1f1)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let word = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
        Some(Self {
            offset: (sectors + 1) * 512 + u64::from(word(0x248)?),
            length: word(0x24c)?.into(),
        })
    }
}

fn unpack(program: &str, packed: Vec<u8>, target: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("cannot be unpacked by {program}: {error}");
    let output = File::create(target).map_err(told)?;
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(told)?;
    // Written by another thread: one that reads nothing but says much would block both.
    let input = child.stdin.take();
    let writer = std::thread::spawn(move || input.map(|mut input| input.write_all(&packed)));
    let output = child.wait_with_output().map_err(told)?;
    // That it could not be written is told better by the program.
    let _ = writer.join();
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or("it said nothing");
    Err(format!(
        "cannot be unpacked by {program} ({}): {first}",
        output.status
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &[u8] = b"\x7fELF and all the rest of a kernel";

    fn packed(program: &str, flags: &str) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(KERNEL).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    /// A bzImage with one sector of setup, the payload 16 bytes behind it, and more behind that.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0xcc; 64]);
        image
    }

    fn unpacked(image: &[u8]) -> Result<Vec<u8>, String> {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, image).unwrap();
        match uncompressed(&kernel, folder.path(), "firecracker") {
            Ok(path) => Ok(std::fs::read(path).unwrap()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_distributions_ship_is_unpacked() {
        assert_eq!(unpacked(KERNEL).unwrap(), KERNEL, "as it is");
        assert_eq!(unpacked(&bz_image(&packed("gzip", "-c"))).unwrap(), KERNEL);
        // Debian's kernels are packed by lz4, in its old format, later ones by zstd.
        for (program, flags) in [("lz4", "-lc"), ("xz", "-c"), ("zstd", "-c")] {
            // A machine without the program cannot unpack, and has no such kernel of its own.
            if Command::new(program).arg("--version").output().is_err() {
                continue;
            }
            let mut payload = packed(program, flags);
            payload.extend_from_slice(&[34, 0, 0, 0]);
            assert_eq!(unpacked(&bz_image(&payload)).unwrap(), KERNEL, "{program}");
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_told() {
        let told = |image: &[u8], expected: &str| {
            let error = unpacked(image).unwrap_err();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        told(b"MZ", "is neither that nor a bzImage");
        told(&bz_image(b"\x89LZO"), "packed in a way that is not known");
        let whole = packed("gzip", "-c");
        told(&bz_image(&whole[..whole.len() - 12]), "unpacked by gzip");
        let mut old = bz_image(&whole);
        old[0x206..0x208].copy_from_slice(&0x207_u16.to_le_bytes());
        told(&old, "is neither that nor a bzImage");
    }
}
