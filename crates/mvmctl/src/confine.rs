//! What a process of this command's may still do once it takes in what a guest sends: Landlock
//! (landlock(7)), as far as the kernel has it.
//!
//! It is not what keeps a guest's archive in its folder: how that is unpacked does
//! (`mvm_client::dev::archive`). It holds where that is wrong. What has been opened before stays open, and to
//! connect to a Unix socket is no matter of these rules before Linux 7.1.
//!
//! ```text
//!   vm cp, out of a guest    the process writes below the folder that the copy goes into
//!     its thread `tar`       sees and writes the new folder, and nothing else
//!   fleet serve              the process writes nothing; with a policy it is not confined
//! ```
//!
//! A domain is handed on to what is started. That is why a fleet with a policy has none: its VMs would
//! have it for as long as they live, and a later `vm snapshot --to` somewhere would fail.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, RestrictSelfAttr as _, RestrictionStatus, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope, make_bitflags,
};
use mvm_vmm::doctor::{Finding, Level};
use std::io;
use std::path::Path;

/// The newest that is asked for; of what the kernel does not know the rest is done.
const NEWEST: ABI = ABI::V6;

/// From here on this thread sees and writes what is below the folder, and nothing else. It opens no TCP
/// connection, and neither a socket without a path nor a process outside hears from it.
///
/// # Errors
///
/// The folder cannot be opened, or the kernel refuses what it says it knows.
pub(crate) fn to_folder(folder: &Path) -> io::Result<()> {
    let fill = make_bitflags!(AccessFs::{
        ReadDir | WriteFile | Truncate | MakeDir | MakeReg | MakeSym
    });
    let rules = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()
    };
    let rules = rules().map_err(io::Error::other)?;
    allow(rules, folder, fill)?
        .restrict_self()
        .map_err(io::Error::other)?;
    Ok(())
}

/// From here on this process writes below the folder, and nowhere else. It reads what it could.
///
/// # Errors
///
/// Those of [`to_folder`].
pub(crate) fn to_writing_below(folder: &Path) -> io::Result<()> {
    let fill = make_bitflags!(AccessFs::{
        WriteFile | Truncate | MakeDir | MakeReg | MakeSym | RemoveDir | RemoveFile | Refer
    });
    all_threads(allow(writing_nothing()?, folder, fill)?)?;
    Ok(())
}

/// From here on this process writes no file, and listens on no further TCP port. It reads what it could.
///
/// # Errors
///
/// Those of [`to_folder`].
pub(crate) fn to_reading() -> io::Result<()> {
    all_threads(writing_nothing()?)?;
    Ok(())
}

/// But for `/dev/null`, with which a program is started. A kernel that forbids any move between folders
/// (before Linux 5.19) is asked for nothing: what is too deep is moved to be removed.
fn writing_nothing() -> io::Result<RulesetCreated> {
    let rules = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::SoftRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_write(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .create()
    };
    let rules = rules().map_err(io::Error::other)?;
    allow(rules, Path::new("/dev/null"), AccessFs::WriteFile)
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: impl Into<BitFlags<AccessFs>>,
) -> io::Result<RulesetCreated> {
    let path = PathFd::new(path).map_err(io::Error::other)?;
    let rule = PathBeneath::new(path, access);
    rules.add_rule(rule).map_err(io::Error::other)
}

/// Threads that there are already are taken along where the kernel can (Linux 7.0): elsewhere that is
/// the one that waits for signals. Those that this one starts always are.
fn all_threads(rules: RulesetCreated) -> io::Result<RestrictionStatus> {
    let restricted = rules
        .all_threads(true)
        .and_then(RulesetCreated::restrict_self);
    restricted.map_err(io::Error::other)
}

/// What this kernel has of it.
fn kernel() -> io::Result<RestrictionStatus> {
    // It tells whoever confines itself.
    let told = std::thread::spawn(|| {
        let restricted = writing_nothing()?.restrict_self();
        restricted.map_err(io::Error::other)
    });
    let told = told.join();
    told.unwrap_or_else(|_| Err(io::Error::other("the thread that was to try it has ended")))
}

/// What this kernel has of it, for `mvmctl doctor`.
pub(crate) fn finding() -> Finding {
    const SUBJECT: &str = "landlock";
    const WITHOUT: &str = "`vm cp` and `fleet serve` are not confined";
    let status = kernel().map(|status| (status.landlock, status.ruleset));
    let why = match status {
        Ok((LandlockStatus::NotEnabled, _)) => "it is not switched on".to_owned(),
        Ok((LandlockStatus::NotImplemented, _)) => "the kernel has none".to_owned(),
        Ok((_, RulesetStatus::NotEnforced)) => "the kernel's is too old".to_owned(),
        Ok((LandlockStatus::Available { effective_abi, .. }, _)) => {
            let confined =
                "`vm cp` out of a guest, and `fleet serve` without a policy, are confined";
            return Finding::ok(SUBJECT, format!("version {effective_abi}; {confined}"));
        }
        Err(error) => error.to_string(),
    };
    let fix = "boot Linux 5.19 or later with `landlock` in its lsm= list";
    Finding::amiss(Level::Warning, SUBJECT, format!("{why}; {WITHOUT}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::symlink;

    /// Whether there is Landlock here; says so if not.
    fn is_here() -> bool {
        let here = finding().level == Level::Ok;
        if !here {
            eprintln!("SKIPPED, NOTHING WAS TESTED: this kernel has no Landlock");
        }
        here
    }

    /// In a thread of its own, which is confined for good.
    fn confined(confine: impl FnOnce() -> io::Result<()> + Send, work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                confine().unwrap();
                work();
            });
            thread.join().unwrap();
        });
    }

    fn is_refused<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn a_thread_in_a_folder_sees_nothing_else() {
        if !is_here() {
            return;
        }
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (into, out) = (inside.path(), outside.path());
        fs::write(out.join("secret"), "x").unwrap();
        symlink(out, into.join("way-out")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        confined(
            || to_folder(into),
            || {
                fs::create_dir(into.join("folder")).unwrap();
                fs::write(into.join("folder/file"), "x").unwrap();
                symlink("nowhere", into.join("link")).unwrap();
                for folder in [out, &into.join("way-out"), &into.join("..")] {
                    assert!(is_refused(fs::write(folder.join("evil"), "x")));
                    assert!(is_refused(fs::create_dir(folder.join("evil"))));
                    assert!(is_refused(symlink("x", folder.join("evil"))));
                    assert!(is_refused(fs::read_dir(folder)));
                }
                assert!(is_refused(fs::read(out.join("secret"))));
                assert!(is_refused(fs::read("/etc/passwd")));
                assert!(is_refused(fs::remove_file(out.join("secret"))));
                // Not what fills a folder either.
                assert!(is_refused(std::os::unix::net::UnixListener::bind(
                    into.join("socket")
                )));
                // Since Linux 6.7.
                if is_refused(TcpListener::bind("127.0.0.1:0")) {
                    assert!(is_refused(TcpStream::connect(address)));
                }
            },
        );
        // This one is as it was.
        fs::write(out.join("kind"), "x").unwrap();
    }

    #[test]
    fn a_copy_writes_beside_its_target_alone() {
        if !is_here() {
            return;
        }
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (into, out) = (inside.path(), outside.path());
        fs::write(out.join("other"), "x").unwrap();
        confined(
            || to_writing_below(into),
            || {
                fs::write(into.join("new"), "x").unwrap();
                fs::rename(into.join("new"), into.join("target")).unwrap();
                fs::create_dir(into.join("folder")).unwrap();
                fs::rename(into.join("folder"), into.join("renamed")).unwrap();
                fs::remove_dir(into.join("renamed")).unwrap();
                fs::read(out.join("other")).unwrap();
                assert!(is_refused(fs::write(out.join("other"), "y")));
                assert!(is_refused(fs::remove_file(out.join("other"))));
                let moved = fs::rename(into.join("target"), out.join("target"));
                assert!(moved.is_err());
                // As what is too deep is removed.
                fs::create_dir_all(into.join("a/b")).unwrap();
                fs::rename(into.join("a/b"), into.join("c")).unwrap();
            },
        );
        assert_eq!(fs::read(out.join("other")).unwrap(), b"x");
    }

    #[test]
    fn who_only_reads_writes_nowhere_and_what_it_starts_neither() {
        if !is_here() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        confined(to_reading, || {
            assert_eq!(fs::read(&file).unwrap(), b"x");
            assert!(is_refused(fs::write(&file, "y")));
            assert!(is_refused(fs::create_dir(folder.path().join("new"))));
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", "echo y >\"$0\""]).arg(&file);
            let ended = shell.stdin(std::process::Stdio::null()).output().unwrap();
            assert!(!ended.status.success(), "{ended:?}");
            let thread = std::thread::spawn({
                let file = file.clone();
                move || is_refused(fs::write(&file, "y"))
            });
            assert!(thread.join().unwrap());
        });
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
