//! What kernels and their modules are packed with, unpacked by libraries: a machine need not have
//! the program of whoever built its guests' kernel.

use std::io::{self, BufRead, Read, Write};
use thiserror::Error;

/// How many bytes at the beginning tell what something is packed with.
pub(crate) const MAGIC: usize = 6;

/// The most memory that unpacking may take, in bytes: as much as `zstd -22 --ultra`, which kernels
/// are packed with, asks for.
const MAX_WINDOW: u32 = 128 << 20;

/// What something is packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Xz,
    /// xz's predecessor, which kernels may still be packed with.
    Lzma,
    Zstd,
    /// Also in the format of before 2013, which kernels are packed with.
    Lz4,
    Bzip2,
}

/// How each begins.
const MAGICS: [(&[u8], Packing); 7] = [
    (b"\x1f\x8b\x08", Packing::Gzip),
    (b"\xfd7zXZ\x00", Packing::Xz),
    (b"\x5d\x00\x00", Packing::Lzma),
    (b"\x28\xb5\x2f\xfd", Packing::Zstd),
    (b"\x02\x21\x4c\x18", Packing::Lz4),
    (b"\x04\x22\x4d\x18", Packing::Lz4),
    (b"BZh", Packing::Bzip2),
];

/// Why something cannot be unpacked.
#[derive(Debug, Error)]
pub(crate) enum UnpackError {
    /// It is cut short or altered.
    #[error("it is damaged, or was packed by {} in a way that is not known here: {source}", packing.name())]
    Damaged { packing: Packing, source: io::Error },
    /// It goes on for longer than it may.
    #[error("there are more than {at_most} bytes in it")]
    TooLong { at_most: u64 },
    /// There is no place for what is in it.
    #[error("{0}")]
    Write(io::Error),
}

impl Packing {
    /// By how it begins.
    pub(crate) fn of(begin: &[u8]) -> Option<Self> {
        let known = MAGICS.iter().find(|(magic, _)| begin.starts_with(magic));
        known.map(|(_, packing)| *packing)
    }

    /// The name of the program that packs so.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Unpacks what is in `packed`, which begins where the packing does, and may go on behind its
    /// end. Gives the number of bytes; with more than `at_most` it ends there.
    pub(crate) fn unpack(
        self,
        packed: impl BufRead,
        at_most: u64,
        into: &mut impl Write,
    ) -> Result<u64, UnpackError> {
        let damaged = |source| UnpackError::Damaged {
            packing: self,
            source,
        };
        let window_kib = MAX_WINDOW / 1024;
        match self {
            Self::Gzip => self.copy(flate2::bufread::GzDecoder::new(packed), at_most, into),
            // The limit has the decoder's own needs in it as well.
            Self::Xz => {
                let reader = lzma_rust2::XzReader::new_mem_limit(packed, false, 2 * window_kib);
                self.copy(reader, at_most, into)
            }
            Self::Lzma => {
                let reader = lzma_rust2::LzmaReader::new_mem_limit(packed, 2 * window_kib, None);
                self.copy(reader.map_err(damaged)?, at_most, into)
            }
            Self::Zstd => {
                let mut reader = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
                    packed,
                    MAX_WINDOW.into(),
                )
                .map_err(|error| damaged(io::Error::other(error)))?;
                let count = self.copy(&mut reader, at_most, into)?;
                // Its reader leaves that to the caller.
                let decoder = &reader.decoder;
                match decoder.get_checksum_from_data() {
                    Some(told) if Some(told) != decoder.get_calculated_checksum() => {
                        Err(damaged(io::Error::other("its checksum is another one")))
                    }
                    _ => Ok(count),
                }
            }
            Self::Lz4 => self.copy(lz4_flex::frame::FrameDecoder::new(packed), at_most, into),
            Self::Bzip2 => self.copy(bzip2::bufread::BzDecoder::new(packed), at_most, into),
        }
    }

    fn copy(
        self,
        mut from: impl Read,
        at_most: u64,
        into: &mut impl Write,
    ) -> Result<u64, UnpackError> {
        let mut buffer = vec![0; 64 * 1024];
        let mut count = 0;
        loop {
            let piece = match from.read(&mut buffer) {
                Ok(0) => return Ok(count),
                Ok(length) => buffer.get(..length).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(UnpackError::Damaged {
                        packing: self,
                        source,
                    });
                }
            };
            count += piece.len() as u64;
            if count > at_most {
                return Err(UnpackError::TooLong { at_most });
            }
            into.write_all(piece).map_err(UnpackError::Write)?;
        }
    }
}

/// What the programs make of a text, for the tests of this crate.
#[cfg(test)]
pub(crate) mod samples {
    use super::Packing;

    /// What is in each of them.
    pub(crate) const TEXT: &[u8] = b"\x7fELF and all the rest of a kernel";

    /// The command that was given the text, and what it gave.
    const MADE: [(&str, Packing, &str); 7] = [
        (
            "gzip -n -9",
            Packing::Gzip,
            "1f8b0800000000000203ab77f5715348cc4b5148ccc95128c94855284a2d2e51c84f534854c84e2dca4bcd01\
             00d6eb523321000000",
        ),
        (
            "xz --check=crc32 --x86 --lzma2=dict=1MiB",
            Packing::Xz,
            "fd377a585a0000016922de3602010400210110008b216f490100207f454c4620616e6420616c6c2074686520\
             72657374206f662061206b65726e656c00000000d6eb523300013521c367dece9042990d010000000001595a",
        ),
        (
            "xz --format=lzma",
            Packing::Lzma,
            "5d00008000ffffffffffffffff003f914584694d5f649bf497e0b17d95a416b9589c6a7c9f68f471a4ff04ba\
             020b6f552103fffe5332c0",
        ),
        (
            "zstd --check",
            Packing::Zstd,
            "28b52ffd04580901007f454c4620616e6420616c6c207468652072657374206f662061206b65726e656c062a\
             4937",
        ),
        (
            "lz4 -l",
            Packing::Lz4,
            "02214c1823000000f0127f454c4620616e6420616c6c207468652072657374206f662061206b65726e656c",
        ),
        (
            "lz4",
            Packing::Lz4,
            "04224d186440a7210000807f454c4620616e6420616c6c207468652072657374206f662061206b65726e656c\
             000000008383347d",
        ),
        (
            "bzip2",
            Packing::Bzip2,
            "425a68393141592653596e652322000010158040000304274d9c00a000229a34f50f42642869a60036144f1a\
             8937874899605dd02db36ac6be2ee48a70a120dcca4644",
        ),
    ];

    /// All of them.
    pub(crate) fn all() -> impl Iterator<Item = (&'static str, Packing, Vec<u8>)> {
        MADE.into_iter().map(|(command, packing, hex)| {
            let digits: Vec<_> = hex.chars().map(|c| c.to_digit(16).unwrap()).collect();
            let bytes = digits.chunks(2).map(|pair| pair[0] * 16 + pair[1]);
            let bytes = bytes.map(|byte| u8::try_from(byte).unwrap()).collect();
            (command, packing, bytes)
        })
    }

    /// What that command made.
    pub(crate) fn by(command: &str) -> Vec<u8> {
        all().find(|(by, ..)| *by == command).unwrap().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(packed: &[u8], at_most: u64) -> Result<Vec<u8>, UnpackError> {
        let mut text = Vec::new();
        let packing = Packing::of(packed).expect("one that is known");
        let count = packing.unpack(packed, at_most, &mut text)?;
        assert_eq!(count, text.len() as u64);
        Ok(text)
    }

    #[test]
    fn what_the_programs_pack_is_unpacked() {
        for (command, packing, packed) in samples::all() {
            assert_eq!(Packing::of(&packed), Some(packing), "{command}");
            assert_eq!(unpack(&packed, 33).unwrap(), samples::TEXT, "{command}");
        }
    }

    #[test]
    fn what_is_cut_short_or_altered_is_told() {
        for (command, packing, packed) in samples::all() {
            // bzip2's last byte may be no more than a few bits that fill it up.
            let mut altered = packed.clone();
            altered[packed.len() - 2] ^= 1;
            // These two have no checksum.
            let has_checksum = command != "lz4 -l" && packing != Packing::Lzma;
            for (what, packed) in [("cut", &packed[..packed.len() - 3]), ("altered", &altered)] {
                let told = unpack(packed, 33).map_err(|error| error.to_string());
                match told {
                    Err(told) => {
                        let expected =
                            format!("it is damaged, or was packed by {}", packing.name());
                        assert!(told.starts_with(&expected), "{command}, {what}: {told}");
                    }
                    Ok(_) => assert!(!has_checksum && what == "altered", "{command}, {what}"),
                }
            }
        }
    }

    /// A few bytes can unpack to more than any disk has.
    #[test]
    fn what_is_too_long_is_not_unpacked_to_its_end() {
        for (command, _, packed) in samples::all() {
            let error = unpack(&packed, 32).unwrap_err();
            assert!(
                matches!(error, UnpackError::TooLong { at_most: 32 }),
                "{command}"
            );
        }
    }

    /// The header of an xz stream that asks for 3 GiB of memory, and one of zstd for 2 GiB.
    #[test]
    fn what_asks_for_too_much_memory_does_not_get_it() {
        let mut xz = samples::by("xz --check=crc32 --x86 --lzma2=dict=1MiB");
        // The dictionary's size, in the block's header: its checksum is mended with it.
        assert_eq!(xz[18], 0x10);
        xz[18] = 39;
        let sum = crc32(&xz[12..20]).to_le_bytes();
        xz[20..24].copy_from_slice(&sum);
        let told = unpack(&xz, 33).unwrap_err().to_string();
        assert!(told.contains("memory"), "{told}");
        let zstd = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00";
        let told = unpack(zstd, 33).unwrap_err().to_string();
        assert!(told.contains("window"), "{told}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut sum = flate2::Crc::new();
        sum.update(bytes);
        sum.sum()
    }

    #[test]
    fn a_full_disk_is_no_damage() {
        let mut full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let packed = samples::by("lz4");
        let error = Packing::Lz4.unpack(&*packed, 33, &mut full).unwrap_err();
        assert!(
            matches!(&error, UnpackError::Write(error) if error.kind() == io::ErrorKind::StorageFull),
            "{error}"
        );
    }
}
