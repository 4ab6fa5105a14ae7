//! A command whose guest stands still.

use super::*;
use crate::core::RunId;
use crate::dev::start::Commands;
use crate::ports::flow::Discard;
use mvm_protocol::dev::exec::{Argv, Exec};
use mvm_protocol::drop_in::Secs;
use tokio::time::{advance, pause, resume};

const TIMEOUT: Duration = Duration::from_mins(10);
const JUMP: Duration = Duration::from_hours(1);

/// A job that would run for an hour, with a timeout of ten minutes; from here on time stands still
/// but for what it is made to do.
async fn job(dir: &tempfile::TempDir) -> Running {
    let words = ["sleep", "3600"].map(str::to_owned);
    let exec = Exec {
        timeout_secs: Some(Secs::new(TIMEOUT).unwrap()),
        ..Exec::new(Argv::new(words.to_vec()).unwrap())
    };
    let launcher = Rc::new(Launcher::new(dir.path(), false));
    let started = Commands::new(launcher).start(RunId(1), &exec).await;
    pause();
    started.unwrap().running
}

async fn next(running: &mut Running) {
    let event = running.next_event(true).await;
    assert!(matches!(event, CommandEvent::DeadlinePassed));
    running.act(event, &mut Discard).await;
}

async fn end(mut running: Running) {
    resume();
    running.kill();
    while running.outcome().is_none() {
        let event = running.next_event(true).await;
        running.act(event, &mut Discard).await;
    }
}

#[tokio::test]
async fn a_timeout_does_not_count_the_time_in_which_the_guest_stood_still() {
    // A jump within the timeout, and one beyond it, which its timer sees first.
    for (jump, overdue) in [(TIMEOUT / 2, false), (JUMP, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut running = job(&dir).await;
        let began = Instant::now();
        advance(Duration::from_mins(1)).await;
        advance(jump).await;
        if overdue {
            next(&mut running).await;
            assert!(!running.timed_out);
        }
        running.stood_still(jump);
        next(&mut running).await;
        assert!(running.timed_out);
        let ran = began.elapsed().saturating_sub(jump);
        assert!((TIMEOUT..TIMEOUT + TOLD_WITHIN).contains(&ran), "{ran:?}");
        end(running).await;
    }
}

#[tokio::test]
async fn a_job_whose_timer_is_late_and_of_which_nobody_says_why_has_had_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = job(&dir).await;
    let began = Instant::now();
    advance(JUMP).await;
    next(&mut running).await;
    assert!(!running.timed_out);
    next(&mut running).await;
    assert!(running.timed_out && began.elapsed() < JUMP + 2 * TOLD_WITHIN);
    end(running).await;
}
