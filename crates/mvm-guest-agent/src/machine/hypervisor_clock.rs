//! The hypervisor's clock: the ptp device that asks KVM for the host's time.

use super::proc::read_small;
use rustix::time::{DynamicClockId, clock_gettime_dynamic};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

/// By which it is known (drivers/ptp/ptp_kvm_common.c), whichever number it has. Others are a network
/// card's, and tell whatever they like, or vmclock's, which may tell TAI: 37 s off.
const NAME: &str = "KVM virtual PTP";

/// How many devices are looked at.
const AT_MOST: usize = 64;

/// Where ptp devices are.
#[derive(Debug, Clone)]
pub(crate) struct HypervisorClock {
    /// Their folders, `ptp0` and so on, each with a `clock_name`.
    pub(crate) class: PathBuf,
    /// The devices of the same names.
    pub(crate) devices: PathBuf,
}

impl HypervisorClock {
    /// The guest's own.
    pub(crate) fn of_guest() -> Self {
        Self {
            class: "/sys/class/ptp".into(),
            devices: "/dev".into(),
        }
    }

    /// Its time in epoch milliseconds, and the device that told it.
    pub(crate) fn read(&self) -> Option<(i64, String)> {
        let device = self.device()?;
        let file = File::open(&device).ok()?;
        let time = clock_gettime_dynamic(DynamicClockId::Dynamic(file.as_fd())).ok()?;
        let ms = time
            .tv_sec
            .saturating_mul(1000)
            .saturating_add(time.tv_nsec / 1_000_000);
        Some((ms, device.display().to_string()))
    }

    fn device(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.class).ok()?;
        entries.take(AT_MOST).flatten().find_map(|entry| {
            let name = read_small(entry.path().join("clock_name")).ok()?;
            (name.trim() == NAME).then(|| self.devices.join(entry.file_name()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for `/sys/class/ptp` with these clocks, and for `/dev`.
    fn stand_in(clocks: &[(&str, &str)]) -> (tempfile::TempDir, HypervisorClock) {
        let dir = tempfile::tempdir().unwrap();
        let clock = HypervisorClock {
            class: dir.path().join("class"),
            devices: dir.path().join("dev"),
        };
        for (device, name) in clocks {
            let folder = clock.class.join(device);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("clock_name"), format!("{name}\n")).unwrap();
        }
        (dir, clock)
    }

    #[test]
    fn it_is_chosen_by_its_name_among_several() {
        let card = ("ptp0", "eth0 PTP clock");
        let (vmclock, kvm) = (("ptp1", "vmclock0"), ("ptp2", "KVM virtual PTP"));
        for clocks in [vec![card, vmclock, kvm], vec![kvm], vec![kvm, card]] {
            let (_dir, clock) = stand_in(&clocks);
            assert_eq!(clock.device(), Some(clock.devices.join("ptp2")));
        }
        for none in [
            vec![card, vmclock],
            vec![vmclock],
            vec![("ptp0", "")],
            vec![],
        ] {
            let (_dir, clock) = stand_in(&none);
            assert_eq!(clock.device(), None, "{none:?}");
        }
    }

    #[test]
    fn a_device_that_is_no_clock_tells_no_time() {
        let (_dir, clock) = stand_in(&[("ptp0", "KVM virtual PTP")]);
        assert_eq!(clock.read(), None, "no device");
        std::fs::create_dir_all(&clock.devices).unwrap();
        std::fs::write(clock.devices.join("ptp0"), "12:00").unwrap();
        assert_eq!(clock.read(), None, "a file");
    }
}
