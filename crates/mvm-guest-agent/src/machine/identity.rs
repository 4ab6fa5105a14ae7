//! What tells two clones of one snapshot apart: machine-id, host name, boot id.

use super::journal::Files;
use super::outcome::{NotDone, StepResult};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MACHINE_ID: &str = "machine-id";

/// Where a machine-id is, and what is put over it. D-Bus's is a link to the other in most systems.
const MACHINE_IDS: [(&str, &str, &str); 2] = [
    (MACHINE_ID, "/etc/machine-id", "machine-id"),
    (
        "D-Bus's machine-id",
        "/var/lib/dbus/machine-id",
        "dbus-machine-id",
    ),
];

/// More than each of these files has, in bytes.
const MOST: u64 = 128;

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
///
/// Each is tried whatever became of the others. What the guest does not see as new is told, and is
/// never a success: an agent with a namespace of its own could change what it alone sees.
pub(crate) fn renew(files: &Files) -> StepResult {
    let guest = Guest::of_init();
    let mut parts = Parts::default();
    for (what, path, cover) in MACHINE_IDS {
        // What is a link leads to the other, which has been written by then.
        let is_there = match what {
            MACHINE_ID => Path::new(path).exists(),
            _ => std::fs::symlink_metadata(path).is_ok_and(|it| it.is_file()),
        };
        if is_there {
            let id = parts.machine_id.get_or_insert(hex(&random::<16>()?));
            let id = format!("{id}\n");
            let done = replace(Path::new(path), id.as_bytes(), (files, cover), &guest);
            parts.add(what, what.to_owned(), done);
        }
    }
    let id = uuid(random::<16>()?);
    let cover = (files, "boot-id");
    let done = replace(Path::new(BOOT_ID), id.as_bytes(), cover, &guest);
    parts.add("boot id", "boot id".to_owned(), done);
    let name = rename(
        &rustix::system::uname().nodename().to_string_lossy(),
        random::<4>()?,
    );
    let done = guest.set_hostname(&name);
    parts.add("host name", format!("host name {name}"), done);
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
                parts.not_done("seed", NotDone::from_error(seed, &error));
            }
            _ => {}
        }
    }
    parts.outcome()
}

/// What came of the parts of an identity.
#[derive(Default)]
struct Parts {
    machine_id: Option<String>,
    new: Vec<String>,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Parts {
    fn add(&mut self, what: &str, told: String, done: Result<(), NotDone>) {
        match done {
            Ok(()) => self.new.push(told),
            Err(why) => self.not_done(what, why),
        }
    }

    fn not_done(&mut self, what: &str, why: NotDone) {
        match why {
            NotDone::Skipped(why) => self.skipped.push(format!("{what}: {why}")),
            NotDone::Failed(why) | NotDone::TimedOut(why) => {
                self.failed.push(format!("{what}: {why}"));
            }
        }
    }

    /// One that failed is the step's failure, and who may not do one part has not done the step.
    fn outcome(self) -> StepResult {
        let new = (!self.new.is_empty()).then(|| format!("new {}", self.new.join(", ")));
        let told: Vec<String> = (self.failed.iter())
            .chain(&self.skipped)
            .chain(&new)
            .cloned()
            .collect();
        let told = told.join("; ");
        if !self.failed.is_empty() {
            Err(NotDone::Failed(told))
        } else if !self.skipped.is_empty() {
            Err(NotDone::Skipped(told))
        } else {
            Ok(Some(told))
        }
    }
}

/// The guest as others see it: all but the agent are in PID 1's namespaces, unless they have asked
/// for others.
struct Guest {
    /// PID 1's root folder, in its mount namespace.
    root: PathBuf,
    /// Whether what the agent mounts is seen there.
    shares_mounts: bool,
    /// Whether the host name that the agent sets is seen there.
    shares_hostname: bool,
}

/// What to do about a namespace of the agent's own.
const ALONE: &str =
    "it is PID 1's that counts: take out of the agent's unit what gives it one, such as";

impl Guest {
    /// Who may not see which namespaces PID 1 has is not apart by that: what is read as PID 1 reads
    /// it decides.
    fn of_init() -> Self {
        let shares = |kind: &str| {
            let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{kind}"));
            !matches!((of("self"), of("1")), (Ok(own), Ok(init)) if own != init)
        };
        Self {
            root: "/proc/1/root".into(),
            shares_mounts: shares("mnt"),
            shares_hostname: shares("uts"),
        }
    }

    fn set_hostname(&self, name: &str) -> Result<(), NotDone> {
        if !self.shares_hostname {
            return Err(NotDone::Failed(format!(
                "the agent has a UTS namespace of its own, and {ALONE} ProtectHostname"
            )));
        }
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| NotDone::from_error("sethostname", &error.into()))
    }

    /// Asks that the guest reads that content there.
    fn has_to_read(&self, path: &Path, content: &[u8]) -> Result<(), NotDone> {
        let read = self.read(path).map_err(|error| {
            NotDone::from_error(&format!("{} as PID 1 reads it", path.display()), &error)
        })?;
        if read == content {
            Ok(())
        } else {
            Err(NotDone::Failed(self.keeps_the_old()))
        }
    }

    fn keeps_the_old(&self) -> String {
        if self.shares_mounts {
            "the guest still reads the old one".to_owned()
        } else {
            format!(
                "the guest still reads the old one: the agent has a mount namespace of its own, and \
                 {ALONE} PrivateTmp, ProtectSystem, ReadOnlyPaths"
            )
        }
    }

    /// Reads a file as PID 1 does, links included.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(&self.root, flags, Mode::empty())?;
        let path = path.strip_prefix("/").unwrap_or(path);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            // Before Linux 5.6. A link with an absolute target leads out of that root then.
            Err(Errno::NOSYS) => openat(&root, path, flags, Mode::empty()),
            other => other,
        }?;
        let mut content = Vec::new();
        std::fs::File::from(file)
            .take(MOST)
            .read_to_end(&mut content)?;
        Ok(content)
    }
}

/// Writes the file in place; where that cannot be (a read-only root, a file of `/proc`) puts one of
/// the run directory over it, as systemd-machine-id-setup(1) does. Then the guest has to read it.
///
/// A cover that is mounted is written through the path that it covers; one that is no longer mounted
/// counts for nothing.
fn replace(
    path: &Path,
    content: &[u8],
    cover: (&Files, &str),
    guest: &Guest,
) -> Result<(), NotDone> {
    if write_in_place(path, content).is_err() {
        if !guest.shares_mounts {
            return Err(NotDone::Failed(guest.keeps_the_old()));
        }
        put_over(path, content, cover)
            .map_err(|error| NotDone::from_error(&path.display().to_string(), &error))?;
    }
    guest.has_to_read(path, content)
}

/// The cover is a new file of the run directory, and not one that is mounted somewhere. If need be it gets
/// the room that was set aside there.
fn put_over(path: &Path, content: &[u8], (files, name): (&Files, &str)) -> io::Result<()> {
    files.remove(name)?;
    files.replace(name, content)?;
    rustix::mount::mount_bind(files.path(name), path).map_err(|error| {
        let _ = files.remove(name);
        error.into()
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

    fn guest(root: &Path, shares: bool) -> Guest {
        Guest {
            root: root.to_owned(),
            shares_mounts: shares,
            shares_hostname: shares,
        }
    }

    fn failure(done: Result<(), NotDone>) -> String {
        match done.unwrap_err() {
            NotDone::Failed(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_replaced_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cover) = (dir.path().join("id"), dir.path().join("cover"));
        let files = Files::new(dir.path());
        let name = (&files, "cover");
        std::fs::write(&path, "old and longer").unwrap();
        let all = guest(Path::new("/"), true);
        replace(&path, b"new", name, &all).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert!(!cover.exists());

        // A cover of another time, that is not mounted, is nobody's.
        std::fs::write(&cover, "stale").unwrap();
        replace(&path, b"newer", name, &all).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "newer");
    }

    /// The folder stands for the root of a PID 1 in another mount namespace.
    #[test]
    fn what_the_guest_does_not_read_is_not_new() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("id");
        let theirs = dir.path().join("init");
        let same = theirs.join(own.strip_prefix("/").unwrap());
        std::fs::create_dir_all(same.parent().unwrap()).unwrap();
        for path in [&own, &same] {
            std::fs::write(path, "old").unwrap();
        }
        let apart = guest(&theirs, false);
        let cover = dir.path().join("cover");
        let files = Files::new(dir.path());
        let name = (&files, "cover");
        let said = failure(replace(&own, b"new", name, &apart));
        assert!(said.contains("mount namespace of its own"), "{said}");

        // What cannot be written in place is not covered either, where nobody would see it.
        let proc = Path::new("/proc/sys/kernel/random/boot_id");
        let said = failure(replace(proc, b"new", name, &apart));
        assert!(said.contains("mount namespace of its own"), "{said}");
        assert!(!cover.exists());

        let said = failure(replace(&own, b"new", name, &guest(&theirs, true)));
        assert_eq!(said, "the guest still reads the old one");
        let said = failure(apart.set_hostname("other"));
        assert!(said.contains("ProtectHostname"), "{said}");

        // It is read as PID 1 reads it, whose links lead to its own files.
        std::fs::remove_file(&same).unwrap();
        std::os::unix::fs::symlink("/target", &same).unwrap();
        std::fs::write(theirs.join("target"), "new").unwrap();
        replace(&own, b"new", name, &apart).unwrap();
    }

    #[test]
    fn one_part_that_failed_is_the_steps_failure() {
        let mut parts = Parts::default();
        parts.add("boot id", "boot id".to_owned(), Ok(()));
        assert_eq!(parts.outcome(), Ok(Some("new boot id".to_owned())));

        let mut parts = Parts::default();
        parts.add("boot id", "boot id".to_owned(), Ok(()));
        let denied = NotDone::Skipped("not permitted".to_owned());
        parts.add("host name", "host name".to_owned(), Err(denied));
        let told = "host name: not permitted; new boot id".to_owned();
        assert_eq!(parts.outcome(), Err(NotDone::Skipped(told)));

        let mut parts = Parts::default();
        parts.add("boot id", "boot id".to_owned(), Ok(()));
        let denied = NotDone::Skipped("not permitted".to_owned());
        parts.add("host name", "host name".to_owned(), Err(denied));
        let failed = NotDone::Failed("the guest still reads the old one".to_owned());
        parts.add("machine-id", "machine-id".to_owned(), Err(failed));
        let told = "machine-id: the guest still reads the old one; host name: not permitted; new \
                    boot id";
        assert_eq!(parts.outcome(), Err(NotDone::Failed(told.to_owned())));
    }
}
