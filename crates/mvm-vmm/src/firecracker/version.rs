//! What is known of Firecracker's versions.

use super::{BACKEND, VMM};
use crate::driver::other_version;
use crate::error::Error;
use crate::locate::FIRECRACKER;

/// What `firecracker --version` says, less its name: `Firecracker v1.16.1`, and empty lines.
pub(super) fn version_in(said: &str) -> &str {
    let mut words = said.split_whitespace();
    words.nth(1).unwrap_or_default().trim_start_matches('v')
}

/// What to do about the version of a VM that runs.
pub(super) const START_AGAIN: &str = "and start the VM again with it";

/// Whether snapshots of this version can be used.
pub(super) fn check_version(version: &str, then: &str) -> Result<(), Error> {
    if !loses_vsock(version) {
        return Ok(());
    }
    Err(Error::Unsupported {
        backend: BACKEND,
        reason: format!("Firecracker {version} loses the guest's vsock device at restore"),
        hint: format!("install Firecracker 1.16.1 or later, {then}"),
    })
}

/// Whether the one version restores what the other wrote: each reads snapshots of its own format
/// alone.
pub(super) fn check_restore(own: &str, wrote: &str) -> Result<(), Error> {
    check_version(own, "and restore the snapshot with it")?;
    match (format_of(own), format_of(wrote)) {
        (Some(reads), Some(is)) if reads != is => {
            Err(other_version(BACKEND, VMM.name, (own, wrote), &FIRECRACKER))
        }
        // One that is not understood is left to the VMM.
        _ => Ok(()),
    }
}

/// The format of a version's snapshots, by the first version that has it.
fn format_of(version: &str) -> Option<(u32, u32, u32)> {
    Some(match numbers(version)? {
        (1, 10, 0) => (1, 9, 0),
        (1, 10, _) => (1, 10, 1),
        (1, 14, _) => (1, 13, 0),
        (major, minor, _) => (major, minor, 0),
    })
}

/// Whether a guest that is restored by this version cannot be reached any more.
pub(crate) fn loses_vsock(version: &str) -> bool {
    let number = version.trim_start_matches('v');
    number == "1.16.0" || number.starts_with("1.16.0-")
}

/// Whether this version can cut a guest off at a resume, by its #6100: the device waits for the guest
/// to take notice of a transport reset, which a snapshot tells the guest of and a resume alone does
/// not. Nothing that a host sends reaches the guest then.
pub(crate) fn cuts_off(version: &str) -> bool {
    numbers(version).is_some_and(|version| matches!(version, (1, 16, 0 | 1)))
}

/// Whether this version takes diff snapshots without dirty pages being tracked, by what is resident (its
/// #5274).
pub(super) fn writes_resident(version: &str) -> bool {
    numbers(version).is_some_and(|version| version >= (1, 13, 0))
}

/// `1.16.1` of `v1.16.1-dirty`.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let number = version.trim_start_matches('v');
    let number = number.split(['-', '+']).next()?;
    let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_with_the_broken_vsock_device_is_known() {
        for broken in ["1.16.0", "v1.16.0", "1.16.0-dev"] {
            assert!(loses_vsock(broken), "{broken}");
        }
        for sound in ["1.16.1", "v1.17.0", "1.15.0", "1.16.01", ""] {
            assert!(!loses_vsock(sound), "{sound}");
        }
        let said = version_in("Firecracker v1.16.0\n\n");
        let error = check_version(said, START_AGAIN).unwrap_err();
        assert!(error.to_string().contains("loses the guest's vsock"));
        assert!(
            check_version(version_in(""), START_AGAIN).is_ok(),
            "the VMM itself is asked later"
        );
    }

    #[test]
    fn each_version_restores_what_has_its_format() {
        for (own, wrote) in [
            ("1.16.1", "1.16.0"),
            ("v1.14.4", "1.13.1"),
            ("1.10.0", "1.9.1"),
            ("1.17.0-dev", "1.17.0"),
            ("1.15.1", "1.15.0"),
            ("of my own", "1.16.1"),
        ] {
            check_restore(own, wrote).unwrap();
        }
        for (own, wrote) in [
            ("1.16.1", "1.15.1"),
            ("1.17.0-dev", "1.16.1"),
            ("1.15.1", "1.16.1"),
            ("1.10.1", "1.10.0"),
            ("1.15.0", "1.14.4"),
        ] {
            let error = check_restore(own, wrote).unwrap_err();
            let expected =
                format!("Firecracker {wrote} wrote the snapshot, and this is Firecracker {own}");
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(error.hint().contains("MVM_FIRECRACKER"), "{}", error.hint());
        }
        // It would load it, and then lose its vsock device.
        assert!(check_restore("1.16.0", "1.16.1").is_err());
    }

    #[test]
    fn the_versions_that_write_what_is_resident_are_known() {
        for able in ["1.13.0", "v1.16.1", "1.17.0-dev", "2.0.0"] {
            assert!(writes_resident(able), "{able}");
        }
        for unable in ["1.12.1", "1.9.0", "1.13", "of my own", ""] {
            assert!(!writes_resident(unable), "{unable}");
        }
    }

    #[test]
    fn the_versions_that_cut_a_guest_off_at_a_resume_are_known() {
        for faulty in ["1.16.0", "v1.16.1", "1.16.1-dirty"] {
            assert!(cuts_off(faulty), "{faulty}");
        }
        for sound in ["1.15.1", "1.16.2", "1.17.0-dev", "2.16.1", "1.16", ""] {
            assert!(!cuts_off(sound), "{sound}");
        }
    }
}
