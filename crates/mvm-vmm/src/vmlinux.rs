//! The kernel as an uncompressed ELF file, which is what Firecracker boots on x86.
//!
//! Distributions ship a bzImage: a small program that unpacks the kernel, and the kernel behind it.
//! Its header says where that is (Documentation/arch/x86/boot.rst, `payload_offset`).

use crate::error::Error;
use crate::unpack::{MAGIC, Packing, UnpackError};
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// The name of what was unpacked, in the VM's folder.
const UNPACKED: &str = "vmlinux";

/// How an uncompressed kernel begins.
const ELF: &[u8; 4] = b"\x7fELF";

/// Where a bzImage's header ends that has all that is read here.
const HEADER: usize = 0x250;

/// The most that a kernel may have, in bytes: that much there is for it in x86's address space
/// (`KERNEL_IMAGE_SIZE`).
const MAX_KERNEL: u64 = 1 << 30;

/// How many bytes the length of an unpacked kernel has, at the packed one's end.
const LENGTH: usize = 4;

/// What to do about a kernel that was damaged on its way.
const DAMAGED: &str =
    "the image's kernel is damaged: build the image again, from a kernel that boots";

/// What to do about a kernel of another kind.
const NEED_VMLINUX: &str = "put the uncompressed kernel (vmlinux; `extract-vmlinux` in the kernel's \
     sources makes it) into the image folder, and name it in manifest.json";

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
    if header.starts_with(ELF) {
        return Ok(kernel.to_owned());
    }
    let unusable = |reason: String, hint: &str| Error::Unsupported {
        backend,
        reason: format!(
            "it boots an uncompressed kernel, and {} {reason}",
            kernel.display()
        ),
        hint: hint.to_owned(),
    };
    let damaged = |reason: &str| unusable(format!("cannot be unpacked: {reason}"), DAMAGED);
    let Some(payload) = Payload::of(&header) else {
        let other = "is neither that nor a bzImage".to_owned();
        return Err(unusable(other, NEED_VMLINUX));
    };
    let Some(length) = payload.unpacked(&file) else {
        return Err(damaged("it ends before its kernel does"));
    };
    let mut begin = [0; MAGIC];
    let packing = file
        .read_exact_at(&mut begin, payload.offset)
        .ok()
        .and_then(|()| Packing::of(&begin));
    let Some(packing) = packing else {
        let other = "is packed in a way that is not known here".to_owned();
        return Err(unusable(other, NEED_VMLINUX));
    };
    if length > MAX_KERNEL {
        return Err(damaged(&format!("its length is given as {length} bytes")));
    }
    file.seek(SeekFrom::Start(payload.offset))
        .map_err(Error::io("read", kernel))?;
    let target = folder.join(UNPACKED);
    let mut unpacked = File::create(&target).map_err(Error::io("create", &target))?;
    let length_behind = if packing == Packing::Gzip { 0 } else { LENGTH };
    let packed = file.take(payload.length - length_behind as u64);
    let packed = BufReader::with_capacity(64 * 1024, packed);
    let count = packing
        .unpack(packed, length, &mut unpacked)
        .map_err(|error| match error {
            UnpackError::Write(error) => Error::io("write", &target)(error),
            error => damaged(&error.to_string()),
        });
    let count = count.inspect_err(|_| {
        // Of no use to anybody, and what it takes may be what is missing.
        let _ = std::fs::remove_file(&target);
    })?;
    if count != length {
        let wrong = format!("it has {count} bytes, and had {length} when it was packed");
        return Err(damaged(&wrong));
    }
    let mut magic = [0; ELF.len()];
    let begin = File::open(&target).and_then(|file| file.read_exact_at(&mut magic, 0));
    if begin.is_ok() && magic == *ELF {
        Ok(target)
    } else {
        let other = "has something else than a kernel in it".to_owned();
        Err(unusable(other, NEED_VMLINUX))
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

    /// The length of what is packed: the kernel's build adds it, and gzip has it at its end already.
    /// `None` if the file ends before.
    fn unpacked(&self, file: &File) -> Option<u64> {
        let mut length = [0; LENGTH];
        let at = self.offset + self.length.checked_sub(LENGTH as u64)?;
        file.read_exact_at(&mut length, at).ok()?;
        Some(u32::from_le_bytes(length).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::samples;

    const KERNEL: &[u8] = samples::TEXT;

    /// As the kernel's build does it: but for gzip, which has it already, the length comes behind.
    fn payload(command: &str) -> Vec<u8> {
        let mut payload = samples::by(command);
        if Packing::of(&payload) != Some(Packing::Gzip) {
            payload.extend_from_slice(&33_u32.to_le_bytes());
        }
        payload
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

    fn uncompress(image: &[u8]) -> Result<Vec<u8>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, image).unwrap();
        let path = uncompressed(&kernel, folder.path(), "firecracker")?;
        Ok(std::fs::read(path).unwrap())
    }

    fn unpacked(image: &[u8]) -> Result<Vec<u8>, String> {
        uncompress(image).map_err(|error| error.to_string())
    }

    #[test]
    fn what_distributions_ship_is_unpacked() {
        assert_eq!(unpacked(KERNEL).unwrap(), KERNEL, "as it is");
        // Debian's kernels are packed by lz4, in its old format, later ones by zstd.
        for command in [
            "gzip -n -9",
            "xz --check=crc32 --x86 --lzma2=dict=1MiB",
            "xz --format=lzma",
            "zstd --check",
            "lz4 -l",
            "bzip2",
        ] {
            let image = bz_image(&payload(command));
            assert_eq!(unpacked(&image).unwrap(), KERNEL, "{command}");
        }
    }

    #[test]
    fn what_cannot_be_unpacked_is_told() {
        let told = |image: &[u8], expected: &str, hint: &str| {
            let error = uncompress(image).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
            let hinted = error.hint();
            assert!(hinted.contains(hint), "{hinted:?} lacks {hint:?}");
        };
        let other = "extract-vmlinux";
        let damaged = "build the image again";
        told(b"MZ", "is neither that nor a bzImage", other);
        let lzop = bz_image(b"\x89LZO\x00\r\n\x1a\n\x21\0\0\0");
        told(&lzop, "packed in a way that is not known", other);
        let whole = payload("gzip -n -9");
        let mut altered = whole.clone();
        altered[whole.len() - 6] ^= 1;
        told(&bz_image(&altered), "packed by gzip", damaged);
        let mut cut = samples::by("zstd --check");
        cut.truncate(cut.len() - 12);
        cut.extend_from_slice(&33_u32.to_le_bytes());
        told(&bz_image(&cut), "packed by zstd", damaged);
        let mut old = bz_image(&whole);
        old[0x206..0x208].copy_from_slice(&0x207_u16.to_le_bytes());
        told(&old, "is neither that nor a bzImage", other);
        let image = bz_image(&payload("lz4 -l"));
        let short = &image[..image.len() - 64 - 1];
        told(short, "it ends before its kernel does", damaged);
        let mut text = samples::by("lz4 -l");
        text[10] = b'M';
        text.extend_from_slice(&33_u32.to_le_bytes());
        told(&bz_image(&text), "something else than a kernel", other);
    }

    #[test]
    fn a_kernel_of_another_length_than_it_had_is_told() {
        for (length, expected) in [
            (32_u32, "there are more than 32 bytes in it"),
            (34, "it has 33 bytes, and had 34 when it was packed"),
            (u32::MAX, "its length is given as 4294967295 bytes"),
        ] {
            let mut payload = samples::by("lz4 -l");
            payload.extend_from_slice(&length.to_le_bytes());
            let error = unpacked(&bz_image(&payload)).unwrap_err();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn what_was_unpacked_by_halves_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        let mut payload = samples::by("zstd --check");
        payload[12] ^= 1;
        payload.extend_from_slice(&33_u32.to_le_bytes());
        std::fs::write(&kernel, bz_image(&payload)).unwrap();
        uncompressed(&kernel, folder.path(), "firecracker").unwrap_err();
        assert!(!folder.path().join(UNPACKED).exists());
    }
}
