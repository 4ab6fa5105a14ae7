//! The steps of sleeping and waking that change the guest. Each says what it did, or why not: a step
//! that was not taken is never a success.

use super::calls::Calls;
use super::clock;
use super::hypervisor_clock::HypervisorClock;
use super::identity;
use super::journal::{Files, PAYLOAD};
use super::mounts::{self, Mount};
use super::outcome::{NotDone, StepResult};
use super::process::Launcher;
use super::workload::{self, FreezePolicy, Workload};
use crate::core::RunId;
use crate::core::ended::End;
use crate::core::lifecycle::Done;
use crate::core::sleeping::{PayloadWork, Work};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::{Entropy, Outcome};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

/// A clock that is off by less is left alone: setting it would disturb more than it mends.
const CLOCK_TOLERANCE_MS: i64 = 500;

/// So much before the sleep's own deadline a sync is given up, so that the host learns of which
/// filesystem: longer than a copy is waited for that does not even end when it is killed.
const TO_END: Duration = Duration::from_secs(3);

/// How long dropping the caches may take, without which a snapshot is larger and not wrong: that a
/// filesystem hangs must not use up the time that the sleep has.
const DROP_WITHIN: Duration = Duration::from_secs(10);

/// What the steps work with.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) files: &'a Files,
    /// Whether the guest may be changed.
    pub(crate) effects: bool,
    pub(crate) freeze: &'a FreezePolicy,
    /// Who was in no cgroup that can be frozen.
    pub(crate) outside: &'a RefCell<Vec<u32>>,
    pub(crate) hypervisor_clock: &'a HypervisorClock,
}

impl<'a> StepContext<'a> {
    fn workload(&self) -> Workload<'a> {
        Workload {
            policy: self.freeze,
            files: self.files,
            commands: self.launcher.cgroup(),
            outside: self.outside,
        }
    }
}

/// Takes a step, unless the agent is to leave the machine as it is.
pub(crate) async fn run(work: Work, limit: Duration, context: StepContext<'_>) -> Done {
    let began = Instant::now();
    let outcome = match work {
        Work::Generation(generation) => write_generation(generation, context),
        Work::Payload(payload) => write_payload(payload, context),
        // Whatever this agent may do: an earlier one has frozen that.
        Work::Thaw => workload::thaw(context.files),
        Work::Identity { clone: false } => Err(NotDone::Skipped("not a clone".to_owned())),
        _ if !context.effects => Err(NotDone::Skipped("--no-system-effects".to_owned())),
        Work::Sync(run) => sync(run, mounts::writable_local(), limit, context).await,
        Work::DropCaches(run) => drop_caches(run, limit, context).await,
        Work::Reseed(entropy) => reseed(entropy.as_ref()),
        Work::Clock(told) => set_clock(told, context),
        Work::Identity { clone: true } => identity::renew(context.files),
        Work::Freeze { required } => context.workload().freeze(false, required, limit).await,
        Work::CheckFrozen { required } => context.workload().freeze(true, required, limit).await,
        Work::Command(..) => Err(NotDone::Failed("not a step of the system".to_owned())),
    };
    let (outcome, detail) = match outcome {
        Ok(detail) => (Outcome::Ok, detail),
        Err(NotDone::Skipped(why)) => (Outcome::Skipped, Some(why)),
        Err(NotDone::Failed(why)) => (Outcome::Failed, Some(why)),
        Err(NotDone::TimedOut(why)) => (Outcome::TimedOut, Some(why)),
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Done {
        outcome,
        duration_ms,
        detail,
    }
}

/// Writes the dirty pages of each filesystem: syncfs(2).
async fn sync(
    run: RunId,
    mounts: Vec<Mount>,
    limit: Duration,
    context: StepContext<'_>,
) -> StepResult {
    // An end that is told needs some of the time that there is.
    let deadline = Instant::now() + limit.saturating_sub(TO_END.min(limit / 2));
    let mut synced = Vec::new();
    for mount in mounts {
        let point = mount.point.to_string_lossy().into_owned();
        let what = format!("syncfs of {point}");
        let path = CString::new(mount.point.into_os_string().into_vec());
        let path = path.map_err(|error| NotDone::Failed(format!("{what}: {error}")))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let calls = Calls {
            about: path,
            device: mount.device,
            function: sync_filesystem,
        };
        let ended = apart(run, left, context, &what, &calls).await?;
        ended.map_err(|error| NotDone::Failed(format!("{what}: {error}")))?;
        synced.push(point);
    }
    Ok((!synced.is_empty()).then(|| synced.join(", ")))
}

/// Makes system calls that a disk that hangs, or a filesystem that a frozen process serves, can hold in
/// the kernel, where nothing reaches them: in a process of its own, which can be killed or left behind.
/// Gives the error that they ended with.
async fn apart(
    run: RunId,
    limit: Duration,
    context: StepContext<'_>,
    what: &str,
    calls: &Calls,
) -> Result<io::Result<()>, NotDone> {
    match context.launcher.run_calls(run, limit, calls).await.end {
        End::Exited(0) => Ok(Ok(())),
        End::Exited(errno) => Ok(Err(io::Error::from_raw_os_error(errno))),
        End::TimedOut { .. } | End::Unkillable => {
            Err(NotDone::TimedOut(format!("{what} does not return")))
        }
        End::NotStarted { reason, .. } => Err(NotDone::Failed(format!("{what}: {reason}"))),
        End::Signaled(_) => Err(NotDone::Failed(format!("{what}: it was killed"))),
    }
}

/// Bare system calls, on memory that is there already.
fn sync_filesystem(path: &CStr, device: Option<u64>) -> u8 {
    exit_status(match open_root(path, device) {
        Ok(Some(root)) => rustix::fs::syncfs(root),
        // No path may lead to it: all are synced.
        Ok(None) => {
            rustix::fs::sync();
            Ok(())
        }
        Err(error) => Err(error),
    })
}

/// The filesystem that is mounted there; nothing if something else is mounted over it. Bare system calls as
/// well.
fn open_root(path: &CStr, device: Option<u64>) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // A mount point may be a file.
    let opened = rustix::fs::open(path, flags, Mode::empty())
        .or_else(|_| rustix::fs::open(path, flags - OFlags::DIRECTORY, Mode::empty()));
    let root = match opened {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        opened => opened?,
    };
    let is_it = match device {
        Some(device) => rustix::fs::fstat(&root)?.st_dev == device,
        None => true,
    };
    Ok(is_it.then_some(root))
}

/// Page cache, dentries and inodes (Documentation/admin-guide/sysctl/vm.rst): clean by now, read
/// again when wanted, and much of a snapshot's size. Waits for each filesystem that is just being
/// mounted or unmounted.
async fn drop_caches(run: RunId, limit: Duration, context: StepContext<'_>) -> StepResult {
    let limit = limit.min(DROP_WITHIN);
    let calls = Calls {
        about: c"/proc/sys/vm/drop_caches".to_owned(),
        device: None,
        function: write_drop_caches,
    };
    let dropped = apart(run, limit, context, "drop_caches", &calls).await?;
    dropped
        .map(|()| None)
        .map_err(|error| NotDone::from_error("/proc/sys/vm/drop_caches", &error))
}

/// Bare system calls, as in [`sync_filesystem`].
fn write_drop_caches(file: &CStr, _: Option<u64>) -> u8 {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let written =
        rustix::fs::open(file, flags, Mode::empty()).and_then(|file| rustix::io::write(file, b"3"));
    exit_status(written)
}

/// What the process ends with: an errno, all of which are small.
fn exit_status<T>(result: rustix::io::Result<T>) -> u8 {
    result.map_or_else(
        |errno| u8::try_from(errno.raw_os_error()).unwrap_or(u8::MAX),
        |_| 0,
    )
}

/// RNDADDENTROPY mixes the host's bytes into the pool; RNDRESEEDCRNG makes the generator draw from
/// the pool at once. Either alone leaves two clones with the same random numbers for a while
/// (random(4); linux/random.h).
fn reseed(entropy: Option<&Entropy>) -> StepResult {
    let device = File::options()
        .write(true)
        .open("/dev/urandom")
        .map_err(|error| NotDone::from_error("/dev/urandom", &error))?;
    if let Some(entropy) = entropy {
        add_entropy(&device, entropy.bytes())
            .map_err(|error| NotDone::from_error("RNDADDENTROPY", &error))?;
    }
    reseed_generator(&device).map_err(|error| NotDone::from_error("RNDRESEEDCRNG", &error))?;
    match entropy {
        Some(_) => Ok(None),
        None => Err(NotDone::Skipped(
            "the host gave no entropy: the generator drew anew from its own pool, which another \
             guest from the same snapshot shares"
                .to_owned(),
        )),
    }
}

/// `struct rand_pool_info` of linux/random.h, with room for what the protocol allows.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; 512],
}

impl RandPoolInfo {
    /// As many of the bytes as there is room for.
    fn new(bytes: &[u8]) -> Self {
        let mut info = Self {
            entropy_count: 0,
            buf_size: 0,
            buf: [0; 512],
        };
        for (to, from) in info.buf.iter_mut().zip(bytes) {
            *to = *from;
            info.buf_size += 1;
            info.entropy_count += 8;
        }
        info
    }
}

#[expect(unsafe_code, reason = "no safe binding knows this ioctl")]
fn add_entropy(device: &File, bytes: &[u8]) -> io::Result<()> {
    /// `_IOW('R', 0x03, int [2])`
    const RNDADDENTROPY: nix::libc::Ioctl = 0x4008_5203_u32 as nix::libc::Ioctl;
    let info = RandPoolInfo::new(bytes);
    // SAFETY: the kernel reads the header and `buf_size` bytes after it, all of which `info` holds
    // however many it was made of.
    let result = unsafe { nix::libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[expect(unsafe_code, reason = "no safe binding knows this ioctl")]
fn reseed_generator(device: &File) -> io::Result<()> {
    /// `_IO('R', 0x07)`
    const RNDRESEEDCRNG: nix::libc::Ioctl = 0x5207;
    // SAFETY: this ioctl takes no argument.
    let result = unsafe { nix::libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets the wall clock from the hypervisor's, or from what the host said, if it is off.
fn set_clock(told: Option<(Timestamp, Duration)>, context: StepContext<'_>) -> StepResult {
    let now = clock::now();
    let (right, source) = match (context.hypervisor_clock.read(), told) {
        (Some(told), _) => told,
        (None, Some((time, at))) => {
            let since = now.mono.saturating_sub(at).as_millis();
            (
                time.0
                    .saturating_add(i64::try_from(since).unwrap_or(i64::MAX)),
                "the host's time".to_owned(),
            )
        }
        (None, None) => {
            let why = "no hypervisor's clock, and the host gave no wall_clock".to_owned();
            return Err(NotDone::Skipped(why));
        }
    };
    let off = right.saturating_sub(now.wall.0);
    if off.abs() <= CLOCK_TOLERANCE_MS {
        return Ok(Some(format!(
            "off by {off} ms against {source}: left as it is"
        )));
    }
    let time = Timespec {
        tv_sec: right.div_euclid(1000),
        tv_nsec: right.rem_euclid(1000).saturating_mul(1_000_000),
    };
    clock_settime(ClockId::Realtime, time)
        .map_err(|error| NotDone::from_error("clock_settime", &error.into()))?;
    Ok(Some(format!("was off by {off} ms against {source}")))
}

/// The generation is the agent's own file, and is written whatever else may be.
fn write_generation(generation: u64, context: StepContext<'_>) -> StepResult {
    let path = context.files.path("generation");
    context
        .files
        .write_generation(generation)
        .map(|()| None)
        .map_err(|error| NotDone::Failed(format!("{}: {error}", path.display())))
}

/// Its length alone is reported.
fn write_payload(payload: PayloadWork, context: StepContext<'_>) -> StepResult {
    let written = match payload {
        PayloadWork::Keep => return Ok(None),
        PayloadWork::Remove => context.files.remove_payload().map(|()| None),
        PayloadWork::Write(payload) => context
            .files
            .write_payload(payload.as_str())
            .map(|()| Some(format!("{} bytes", payload.as_str().len()))),
    };
    let path = context.files.path(PAYLOAD);
    written.map_err(|error| NotDone::Failed(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_no_more_entropy_than_there_is() {
        for (given, told) in [(0, 0), (32, 32), (512, 512), (513, 512), (100_000, 512)] {
            let info = RandPoolInfo::new(&vec![7; given]);
            assert_eq!((info.buf_size, info.entropy_count), (told, 8 * told));
            let filled: i32 = info.buf.iter().map(|byte| i32::from(*byte)).sum();
            assert_eq!(7 * told, filled);
        }
    }

    #[test]
    fn a_filesystem_that_something_is_mounted_over_is_told_from_that() {
        use std::os::unix::fs::MetadataExt as _;
        let root = std::fs::metadata("/").unwrap().dev();
        let is_there = |path, device| open_root(path, device).map(|root| root.is_some());
        assert_eq!(is_there(c"/", Some(root)), Ok(true));
        assert_eq!(is_there(c"/proc", Some(root)), Ok(false));
        assert_eq!(is_there(c"/proc", None), Ok(true));
        assert_eq!(is_there(c"/nonexistent/mount", Some(root)), Ok(false));
    }

    #[test]
    fn a_failed_sync_reports_its_errno() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loop");
        std::os::unix::fs::symlink("loop", &path).unwrap();
        let path = CString::new(path.into_os_string().into_vec()).unwrap();
        let failed = sync_filesystem(&path, None);
        assert_eq!(i32::from(failed), Errno::LOOP.raw_os_error());
    }
}
