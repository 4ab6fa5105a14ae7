//! Checks of which a run is stuck in the kernel, where not even KILL reaches it: a disk or a filesystem
//! does not answer. Each further run would be stuck as well and stay: so there is none before what is left
//! of the last one is gone.

use super::cgroup;
use super::children::Children;
use rustix::process::Pid;
use std::cell::RefCell;
use std::path::PathBuf;

/// By which it is seen that something of a run is there.
#[derive(Debug)]
pub(super) enum Remains {
    /// Its process, which is waited for no more.
    Process(Pid),
    /// Its cgroup, which cannot be removed as long as somebody is in it.
    Cgroup(PathBuf),
}

/// What is left of which check.
#[derive(Debug, Default)]
pub(super) struct StuckRuns(RefCell<Vec<(String, Remains)>>);

impl StuckRuns {
    /// Something of a run of that check is left.
    pub(super) fn add(&self, check: &str, left: Remains) {
        self.0.borrow_mut().push((check.to_owned(), left));
    }

    /// Whether that is still there.
    pub(super) fn has(&self, check: &str, children: &Children) -> bool {
        let mut runs = self.0.borrow_mut();
        if runs.iter().all(|(other, _)| other != check) {
            return false;
        }
        children.reap();
        runs.retain(|(_, left)| match left {
            Remains::Process(pid) => children.is_given_up(*pid),
            Remains::Cgroup(path) => !cgroup::remove(path),
        });
        runs.iter().any(|(other, _)| other == check)
    }
}

#[cfg(test)]
mod tests {
    use crate::core::RunId;
    use crate::core::ended::End;
    use crate::core::registry::Command;
    use crate::machine::children::Orphans;
    use crate::machine::process::Launcher;
    use crate::machine::program::{Program, no_input};
    use rustix::process::{Signal, kill_process};
    use std::time::Duration;
    use tokio::sync::oneshot;

    async fn end_of(launcher: &Launcher, check: &str) -> End {
        let command = Command {
            what: check.to_owned(),
            argv: vec!["/bin/true".to_owned()],
            user: None,
            timeout: Duration::from_secs(10),
            split: false,
            context: None,
            pays: None,
        };
        let (_keep, never) = oneshot::channel();
        launcher.run(RunId(2), command, never).await.end
    }

    /// One that sleeps stands in for one that is stuck, which no signal would end.
    #[tokio::test]
    async fn a_check_is_not_run_again_before_its_last_run_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        let stdio = [(); 3].map(|()| no_input().unwrap());
        let paths = ["/bin/sleep".to_owned()];
        let program = Program::new("/", &paths, &["sleep", "600"], Vec::new(), stdio).unwrap();
        let scope = launcher.scope(RunId(1), Orphans::ToLeader, None).unwrap();
        let process = launcher.spawn(program, scope).unwrap();
        launcher.abandon_check("integration a", &process);
        for _ in 0..3 {
            match end_of(&launcher, "integration a").await {
                End::NotStarted { reason, for_want } => {
                    assert!(
                        reason.contains("stuck in the kernel") && !for_want,
                        "{reason}"
                    );
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(end_of(&launcher, "integration b").await, End::Exited(0));
        }
        kill_process(process.pid, Signal::KILL).unwrap();
        process.exited().await;
        drop(process);
        assert_eq!(end_of(&launcher, "integration a").await, End::Exited(0));
    }
}
