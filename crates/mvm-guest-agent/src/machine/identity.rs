//! What tells two clones of one snapshot apart: machine-id, host name, boot id.

use super::journal::Files;
use super::outcome::{NotDone, StepResult};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MACHINE_ID: &str = "/etc/machine-id";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Seeds that the next boot would take from disk, the same in each clone: systemd's, Debian's and
/// seedrng's.
const SEEDS: [&str; 4] = [
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
    "/var/lib/seedrng/seed.credit",
    "/var/lib/seedrng/seed.no-credit",
];

/// Gives the guest a new machine-id, host name and boot id, and removes its saved seeds. To be
/// called once the random generator has its new seed, or the new names would be the same too.
pub(crate) fn renew(files: &Files) -> StepResult {
    let mut told = Vec::new();
    if Path::new(MACHINE_ID).exists() {
        let id = format!("{}\n", hex(&random::<16>()?));
        replace(
            Path::new(MACHINE_ID),
            id.as_bytes(),
            &files.path("machine-id"),
        )?;
        told.push("machine-id");
    }
    replace(
        Path::new(BOOT_ID),
        uuid(random::<16>()?).as_bytes(),
        &files.path("boot-id"),
    )?;
    told.push("boot id");
    let name = rename(
        &rustix::system::uname().nodename().to_string_lossy(),
        random::<4>()?,
    );
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| NotDone::from_error("sethostname", &error.into()))?;
    for seed in SEEDS {
        match std::fs::remove_file(seed) {
            // On a read-only disk it cannot have been written in this boot, nor be by the next.
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Err(NotDone::from_error(seed, &error));
            }
            _ => {}
        }
    }
    Ok(Some(format!("new {}, host name {name}", told.join(", "))))
}

/// Writes the file in place; where that cannot be (a read-only root, a file of `/proc`) puts one of
/// the run directory over it, as systemd-machine-id-setup(1) does.
fn replace(path: &Path, content: &[u8], cover: &Path) -> Result<(), NotDone> {
    let failed = |error: io::Error| NotDone::from_error(&path.display().to_string(), &error);
    let covered = cover.exists();
    if !covered && write_in_place(path, content).is_ok() {
        return Ok(());
    }
    if covered {
        // The cover is there since an earlier wake: its content is what is seen.
        return write_in_place(cover, content).map_err(failed);
    }
    std::fs::write(cover, content).map_err(failed)?;
    rustix::mount::mount_bind(cover, path).map_err(|error| {
        let _ = std::fs::remove_file(cover);
        failed(error.into())
    })
}

/// Old and new have one length, so that a reader sees no shorter file in between.
fn write_in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    file.write_all_at(content, 0)?;
    file.set_len(content.len() as u64)
}

fn random<const N: usize>() -> Result<[u8; N], NotDone> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(got) if got == N => Ok(bytes),
        Ok(_) => Err(NotDone::Failed("getrandom gave too little".to_owned())),
        Err(error) => Err(NotDone::Failed(format!(
            "getrandom: {}",
            io::Error::from(error)
        ))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A random UUID with its newline: version 4 of RFC 9562.
fn uuid(mut bytes: [u8; 16]) -> String {
    let [_, _, _, _, _, _, version, _, variant, ..] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    let text = hex(&bytes);
    let part = |from, to| text.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}\n",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// The host name with a suffix of its own, in place of the one that an earlier clone got. At most
/// 64 bytes (sethostname(2)).
fn rename(name: &str, random: [u8; 4]) -> String {
    let is_suffix = |text: &str| text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let base = match name.rsplit_once('-') {
        Some((base, suffix)) if is_suffix(suffix) => base,
        _ => name,
    };
    let base: String = base.chars().filter(char::is_ascii).take(55).collect();
    format!("{base}-{}", hex(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_their_forms() {
        assert_eq!(uuid([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
        assert_eq!(rename("web", [1, 2, 3, 0xff]), "web-010203ff");
        assert_eq!(rename("web-010203ff", [0; 4]), "web-00000000");
        assert_eq!(rename("web-server", [0; 4]), "web-server-00000000");
        assert_eq!(rename(&"x".repeat(64), [0; 4]).len(), 64);
    }

    #[test]
    fn a_file_is_replaced_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cover) = (dir.path().join("id"), dir.path().join("cover"));
        std::fs::write(&path, "old and longer").unwrap();
        replace(&path, b"new", &cover).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert!(!cover.exists());
    }
}
