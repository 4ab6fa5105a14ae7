//! The guests' kernels with their modules, unpacked into our cache: the machine's own /boot, its boot
//! loader and its package sources stay as they are, and it takes no root.

use super::apt::{dependency, download, lists_of, unpack, unpack_into};
use super::{Scratch, cache, is_debian};
use crate::sh::{Failure, Result, say};
use std::fs;
use std::path::{Path, PathBuf};

/// Debian's cloud kernel; the package names the newest.
const META: &str = "linux-image-cloud-amd64";

/// The first of Debian's cloud kernels that knows the VM's generation id (VMGENID), and so says when
/// it was restored.
const TELLS_OF_RESTORES: (u32, u32) = (6, 12);

const DEBIAN_13: &[(&str, &str)] = &[("http://deb.debian.org/debian", "trixie")];

/// A kernel of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// `lib/modules/<release>`
    pub(crate) modules: PathBuf,
}

/// The kernel of all guests.
pub(super) fn kernel() -> Result<Kernel> {
    let home = cache()?.join("kernel");
    if let Some(kernel) = kernel_in(&home) {
        return Ok(kernel);
    }
    if !is_debian() {
        return Err(unknown(&home, "a kernel", META));
    }
    say(format!(
        "The guests' kernel is missing. Unpacking Debian's cloud kernel into {}, which takes about \
         half a minute.",
        home.display()
    ));
    unpack(META, &home, || behind_meta(&[]))?;
    kernel_in(&home).ok_or_else(|| incomplete(&home))
}

/// A kernel that tells its guest of a restore, if the one of all guests does not: Debian 13's.
pub(crate) fn newer_kernel() -> Result<Kernel> {
    let kernel = kernel()?;
    if kernel.release() >= TELLS_OF_RESTORES {
        return Ok(kernel);
    }
    let home = cache()?.join("kernel-newer");
    if let Some(kernel) = kernel_in(&home) {
        return Ok(kernel);
    }
    if !is_debian() {
        return Err(unknown(&home, "a kernel with CONFIG_VMGENID", META));
    }
    say(format!(
        "A kernel that tells of restores is missing. Unpacking Debian 13's cloud kernel into {}, which \
         takes about a minute.",
        home.display()
    ));
    let scratch = Scratch::new(&cache()?.join(format!("kernel-newer-{}", std::process::id())))?;
    let apt = lists_of(scratch.path(), DEBIAN_13, &["amd64"])?;
    download(&scratch, &[&behind_meta(&apt)?], &apt)?;
    unpack_into(&home, &scratch)?;
    kernel_in(&home).ok_or_else(|| incomplete(&home))
}

/// The package of the kernel that Debian's package stands for.
fn behind_meta(apt: &[String]) -> Result<String> {
    dependency(META, "linux-image-", apt)
}

fn unknown(home: &Path, what: &str, package: &str) -> Failure {
    Failure(format!(
        "a guest takes {what} with its modules. Unpack it into {0}: {0}/boot/vmlinuz-RELEASE and \
         {0}/lib/modules/RELEASE (Debian's package {package} is known to do)",
        home.display()
    ))
}

fn incomplete(home: &Path) -> Failure {
    Failure(format!(
        "{} holds no kernel with its modules. Remove it and try again",
        home.display()
    ))
}

impl Kernel {
    /// Its version's first two numbers, of the file's name; `(0, 0)` of one that has another.
    fn release(&self) -> (u32, u32) {
        let name = self.image.file_name().and_then(|name| name.to_str());
        let release = name.and_then(|name| name.strip_prefix("vmlinuz-"));
        let mut numbers = release.unwrap_or_default().split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
            _ => (0, 0),
        }
    }
}

/// The kernel in a folder, if its modules are there too: below `/usr` from Debian 13 on.
fn kernel_in(home: &Path) -> Option<Kernel> {
    fs::read_dir(home.join("boot")).ok()?.find_map(|entry| {
        let image = entry.ok()?.path();
        let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
        ["lib/modules", "usr/lib/modules"]
            .map(|folder| home.join(folder).join(release))
            .into_iter()
            .find(|modules| modules.is_dir())
            .map(|modules| Kernel {
                image: image.clone(),
                modules,
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_counts_only_with_its_modules() {
        for (number, folder) in ["lib/modules", "usr/lib/modules"].iter().enumerate() {
            let home = format!("xtask-kernel-{}-{number}", std::process::id());
            let home = std::env::temp_dir().join(home);
            let _scratch = Scratch::new(&home).ok().unwrap();
            assert_eq!(kernel_in(&home), None);
            fs::create_dir(home.join("boot")).unwrap();
            fs::write(home.join("boot/vmlinuz-6.1"), "").unwrap();
            assert_eq!(kernel_in(&home), None);
            let modules = home.join(folder).join("6.1");
            fs::create_dir_all(&modules).unwrap();
            let image = home.join("boot/vmlinuz-6.1");
            assert_eq!(kernel_in(&home), Some(Kernel { image, modules }));
        }
    }

    #[test]
    fn a_kernel_is_as_new_as_its_name_says() {
        let release = |name: &str| {
            let (image, modules) = (Path::new("/boot").join(name), PathBuf::new());
            Kernel { image, modules }.release()
        };
        assert_eq!(release("vmlinuz-6.12.117+deb13-cloud-amd64"), (6, 12));
        assert_eq!(release("vmlinuz-6.1.0-48-cloud-amd64"), (6, 1));
        assert_eq!(release("vmlinuz"), (0, 0));
        assert!((6, 12) >= TELLS_OF_RESTORES && (6, 1) < TELLS_OF_RESTORES);
    }
}
