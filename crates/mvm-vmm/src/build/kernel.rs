//! Which kernel the guest gets, and the folder of its modules.

use super::BuildError;
use object::Endianness;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// A kernel and its modules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) file: PathBuf,
    /// `lib/modules/VERSION`
    pub(super) modules: PathBuf,
}

/// The kernel that was named, or the newest in `boot` that has its modules in `lib_modules`.
pub(super) fn choose(
    kernel: Option<&Path>,
    modules: Option<&Path>,
    boot: &Path,
    lib_modules: &Path,
) -> Result<Kernel, BuildError> {
    match (kernel, modules) {
        (Some(file), Some(modules)) => Ok(Kernel {
            file: file.to_owned(),
            modules: modules.to_owned(),
        }),
        (Some(file), None) => Ok(Kernel {
            file: file.to_owned(),
            modules: beside(file).ok_or_else(|| BuildError::NoModulesFor(file.to_owned()))?,
        }),
        (None, _) => newest(boot, lib_modules).ok_or_else(|| BuildError::NoKernel {
            boot: boot.to_owned(),
            lib_modules: lib_modules.to_owned(),
        }),
    }
}

/// `X/boot/vmlinuz-V` has its modules in `X/lib/modules/V`, as an unpacked kernel package does.
fn beside(kernel: &Path) -> Option<PathBuf> {
    let version = version_of(kernel)?;
    let root = kernel.parent()?.parent()?;
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|folder| root.join(folder).join(version))
        .find(|folder| folder.is_dir())
}

/// The newest kernel in `boot` that has its modules in `lib_modules`.
pub(super) fn newest(boot: &Path, lib_modules: &Path) -> Option<Kernel> {
    let files = std::fs::read_dir(boot).ok()?;
    let candidates = files.filter_map(|entry| {
        let file = entry.ok()?.path();
        let version = version_of(&file)?.to_owned();
        let modules = lib_modules.join(&version);
        modules.is_dir().then_some((version, file, modules))
    });
    let (_, file, modules) = candidates.max_by(|(a, ..), (b, ..)| by_version(a, b))?;
    Some(Kernel { file, modules })
}

fn version_of(kernel: &Path) -> Option<&str> {
    let name = kernel.file_name()?.to_str()?;
    name.strip_prefix("vmlinuz-")
        .or_else(|| name.strip_prefix("vmlinux-"))
}

/// Numbers by their value, so that 6.10 is newer than 6.9; all else as text.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| -> Vec<(u64, String)> {
        version
            .split(['.', '-', '+', '~'])
            .map(|part| (part.parse().unwrap_or(0), part.to_owned()))
            .collect()
    };
    parts(a).cmp(&parts(b))
}

/// The version that a kernel image says it has, where it is of the format that has one (bzImage).
pub(super) fn version_inside(image: &[u8]) -> Option<String> {
    // Documentation/arch/x86/boot.rst: "HdrS" at 0x202, and at 0x20e where, from 0x200 on, the
    // version's text begins.
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = u16::from_le_bytes(*image.get(0x20e..)?.first_chunk()?);
    let text = image.get(usize::from(offset) + 0x200..)?;
    let version = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
    Some(String::from_utf8_lossy(version).into_owned())
}

/// Whether a kernel image is uncompressed.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Whether a program runs without a loader and libraries. `None` if it is no program.
pub(super) fn is_static(program: &[u8]) -> Option<bool> {
    let header = FileHeader64::<Endianness>::parse(program).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, program).ok()?;
    Some(!segments.iter().any(|s| s.p_type(endian) == PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(versions: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("boot")).unwrap();
        for version in versions {
            let modules = root.path().join("lib/modules").join(version);
            std::fs::create_dir_all(modules).unwrap();
            let kernel = root.path().join(format!("boot/vmlinuz-{version}"));
            std::fs::write(kernel, "").unwrap();
        }
        root
    }

    #[test]
    fn the_newest_with_modules_is_taken() {
        let root = root(&["6.1.0-9-amd64", "6.1.0-56-cloud-amd64", "5.10.0-99-amd64"]);
        let (boot, lib) = (root.path().join("boot"), root.path().join("lib/modules"));
        std::fs::write(boot.join("vmlinuz-7.0.0"), "").unwrap();
        let kernel = choose(None, None, &boot, &lib).unwrap();
        assert_eq!(kernel.file, boot.join("vmlinuz-6.1.0-56-cloud-amd64"));
        assert_eq!(kernel.modules, lib.join("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn one_that_is_named_finds_its_modules_or_says_that_it_does_not() {
        let root = root(&["6.1.0"]);
        let file = root.path().join("boot/vmlinuz-6.1.0");
        let lib = root.path().join("lib/modules");
        let none = Path::new("/nonexistent");
        let kernel = choose(Some(&file), None, none, none).unwrap();
        assert_eq!(kernel.modules, lib.join("6.1.0"));
        let lone = root.path().join("boot/vmlinuz-9");
        let error = choose(Some(&lone), None, none, none).unwrap_err();
        assert!(matches!(error, BuildError::NoModulesFor(_)));
        let error = choose(None, None, none, none).unwrap_err();
        assert!(matches!(error, BuildError::NoKernel { .. }));
    }

    #[test]
    fn the_version_inside_is_read() {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x40_u16.to_le_bytes());
        image[0x240..0x250].copy_from_slice(b"6.1.0 (debian) x");
        assert_eq!(version_inside(&image).as_deref(), Some("6.1.0"));
        assert_eq!(version_inside(b"\x7fELF"), None);
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(version_inside(&image), None);
    }

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let links_statically = cfg!(target_feature = "crt-static");
        assert_eq!(is_static(&own), Some(links_statically));
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
    }
}
