//! What a VM is by its record, its process and its lock: see [`state`](crate::state) for why.

use crate::ending::Ending;
use crate::record::{Record, Recorded};
use crate::state::{Pause, VmState};

/// The VM's own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    /// It runs.
    Runs,
    /// It was stopped by a signal.
    Stopped,
    /// It is not there.
    Gone,
}

/// What a VM is that `mvmctl` has started. Whether its lock is held, and how it ended, are asked for
/// only where that matters.
pub(crate) fn now<E>(
    record: &Record,
    main: Main,
    is_locked: impl Fn() -> Result<bool, E>,
    ending: impl FnOnce() -> Result<Ending, E>,
) -> Result<VmState, E> {
    let runs = main != Main::Gone;
    Ok(match record.state {
        Recorded::Starting if is_locked()? => VmState::Starting,
        // A restore that was broken off, of which nothing runs: it sleeps on.
        Recorded::Starting if !runs && record.suspended_in.is_some() => VmState::Asleep {
            snapshot: record.suspended_in.clone(),
        },
        Recorded::Starting => VmState::StartBrokenOff,
        Recorded::Running | Recorded::Stopping if main == Main::Runs => VmState::Running,
        Recorded::Running | Recorded::Stopping if runs => VmState::Paused(Pause::Other),
        Recorded::Paused if runs && record.paused_by_fleet => VmState::Paused(Pause::Fleet),
        Recorded::Paused if runs => VmState::Paused(Pause::Asked),
        Recorded::Asleep if runs && is_locked()? => VmState::Paused(Pause::Snapshot),
        Recorded::Asleep if runs => VmState::Paused(Pause::BrokenSnapshot),
        Recorded::Asleep if record.processes.is_empty() => VmState::Asleep {
            snapshot: record.suspended_in.clone(),
        },
        Recorded::Asleep if is_locked()? => VmState::Paused(Pause::Snapshot),
        Recorded::Asleep if record.suspended_in.is_some() => VmState::Asleep {
            snapshot: record.suspended_in.clone(),
        },
        Recorded::Stopped if runs => VmState::StartBrokenOff,
        Recorded::Running | Recorded::Paused | Recorded::Asleep => VmState::Ended(ending()?),
        Recorded::Stopping | Recorded::Stopped => VmState::Stopped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;
    use crate::{Process, Role};
    use std::convert::Infallible;

    fn told(state: Recorded, main: Main, is_locked: bool) -> VmState {
        let record = Record {
            state,
            processes: vec![Process {
                role: Role::Vmm,
                pid: 7,
                start_ticks: 1,
            }],
            ..record()
        };
        let told = now::<Infallible>(&record, main, || Ok(is_locked), || Ok(Ending::Unknown));
        told.unwrap()
    }

    #[test]
    fn a_restore_that_was_broken_off_leaves_its_vm_asleep() {
        let record = Record {
            state: Recorded::Starting,
            suspended_in: Some("/s".into()),
            ..record()
        };
        let asleep = VmState::Asleep {
            snapshot: Some("/s".into()),
        };
        for (main, is_locked, expected) in [
            (Main::Gone, false, asleep),
            (Main::Gone, true, VmState::Starting),
            (Main::Runs, false, VmState::StartBrokenOff),
        ] {
            let told = now::<Infallible>(&record, main, || Ok(is_locked), || Ok(Ending::Unknown));
            assert_eq!(told.unwrap(), expected);
        }
    }

    #[test]
    fn each_state_by_record_process_and_lock() {
        use Main::{Gone, Runs};
        let ended = VmState::Ended(Ending::Unknown);
        for (recorded, main, is_locked, expected) in [
            (Recorded::Starting, Runs, true, VmState::Starting),
            (Recorded::Starting, Gone, true, VmState::Starting),
            (Recorded::Starting, Runs, false, VmState::StartBrokenOff),
            (Recorded::Starting, Gone, false, VmState::StartBrokenOff),
            (Recorded::Running, Runs, false, VmState::Running),
            (Recorded::Running, Runs, true, VmState::Running),
            (
                Recorded::Running,
                Main::Stopped,
                false,
                VmState::Paused(Pause::Other),
            ),
            (Recorded::Running, Gone, false, ended.clone()),
            (Recorded::Running, Gone, true, ended.clone()),
            (Recorded::Stopping, Runs, true, VmState::Running),
            (Recorded::Stopping, Runs, false, VmState::Running),
            (Recorded::Stopping, Gone, true, VmState::Stopped),
            (Recorded::Stopping, Gone, false, VmState::Stopped),
            (
                Recorded::Asleep,
                Runs,
                true,
                VmState::Paused(Pause::Snapshot),
            ),
            (
                Recorded::Asleep,
                Runs,
                false,
                VmState::Paused(Pause::BrokenSnapshot),
            ),
            (
                Recorded::Asleep,
                Gone,
                true,
                VmState::Paused(Pause::Snapshot),
            ),
            (Recorded::Asleep, Gone, false, ended.clone()),
            (Recorded::Paused, Runs, false, VmState::Paused(Pause::Asked)),
            (Recorded::Paused, Runs, true, VmState::Paused(Pause::Asked)),
            (Recorded::Paused, Gone, false, ended.clone()),
            (Recorded::Stopped, Runs, false, VmState::StartBrokenOff),
            (Recorded::Stopped, Gone, false, VmState::Stopped),
        ] {
            let told = told(recorded, main, is_locked);
            assert_eq!(told, expected, "{recorded:?}, {main:?}, {is_locked}");
        }
    }

    #[test]
    fn one_that_was_put_to_sleep_in_order_is_asleep() {
        let record = Record {
            state: Recorded::Asleep,
            suspended_in: Some("/s".into()),
            ..record()
        };
        let told = now::<Infallible>(&record, Main::Gone, || Ok(false), || Ok(Ending::Unknown));
        let snapshot = Some("/s".into());
        let asleep = VmState::Asleep { snapshot };
        assert_eq!(told.unwrap(), asleep);
        // Whoever put it to sleep was killed before it had noted the end of its process.
        let processes = vec![Process {
            role: Role::Vmm,
            pid: 7,
            start_ticks: 1,
        }];
        let record = Record {
            processes,
            ..record
        };
        let told = |main, is_locked| {
            now::<Infallible>(&record, main, || Ok(is_locked), || Ok(Ending::Unknown)).unwrap()
        };
        assert_eq!(told(Main::Gone, false), asleep);
        assert_eq!(told(Main::Gone, true), VmState::Paused(Pause::Snapshot));
        assert_eq!(
            told(Main::Runs, false),
            VmState::Paused(Pause::BrokenSnapshot)
        );
    }
}
