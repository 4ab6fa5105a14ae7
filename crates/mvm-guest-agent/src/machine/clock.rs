//! The clocks, and the one timer of all that is periodic.

use super::polled::Polled;
use crate::core::Now;
use mvm_protocol::Timestamp;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use std::io;
use std::time::Duration;
use tokio::io::Interest;

/// Both clocks now.
pub(crate) fn now() -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    let wall = wall
        .tv_sec
        .saturating_mul(1000)
        .saturating_add(wall.tv_nsec / 1_000_000);
    Now {
        mono: read(ClockId::Monotonic),
        wall: Timestamp(wall),
    }
}

/// Time since the machine's boot, time asleep included.
pub(crate) fn uptime() -> Duration {
    read(ClockId::Boottime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let secs = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(secs, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// One timer for the core's deadlines, on `CLOCK_MONOTONIC` (timerfd_create(2)). The runtime's own
/// timer wheel would wake several times for each deadline that is seconds away.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: Polled,
}

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            fd: Polled::new(fd, Interest::READABLE)?,
        })
    }

    /// Sets the deadline, in place of the one before; `None` for never.
    pub(crate) fn set(&self, deadline: Option<Duration>) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // All zeroes would disarm the timer; a deadline at the clock's zero has passed anyway.
        let deadline = deadline.map_or(Duration::ZERO, |at| at.max(Duration::from_nanos(1)));
        let value = Timespec {
            tv_sec: i64::try_from(deadline.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(deadline.subsec_nanos()),
        };
        let spec = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &spec)?;
        Ok(())
    }

    /// Waits until the deadline has passed.
    pub(crate) async fn passed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            match rustix::io::read(self.fd.get_ref(), &mut [0_u8; 8]) {
                Err(rustix::io::Errno::WOULDBLOCK) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
                Ok(_) => {
                    guard.clear_ready();
                    return Ok(());
                }
            }
        }
    }
}
