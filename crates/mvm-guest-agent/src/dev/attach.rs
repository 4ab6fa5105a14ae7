//! `attach`: what a job printed, what it prints, and its end. However slowly the host reads, the job
//! is not slowed down: what it loses is the output that is not kept any more.

use super::exec::last_frame;
use super::jobs::{Job, Jobs};
use crate::core::open::Kind;
use crate::ports::flow::PIECE;
use crate::ports::host::{Host, Sent};
use crate::ports::reply;
use crate::serve::connection::{Connection, Ending};
use mvm_protocol::dev::exec::ExecStarted;
use mvm_protocol::dev::jobs::{Attach, JobStarted};
use mvm_protocol::dev::{Control, DevAnswer};
use mvm_protocol::frame::encode_data;
use std::rc::Rc;

/// Replays and follows a job's output.
pub(super) async fn serve(
    connection: &mut Connection,
    jobs: &Jobs,
    asked: Attach,
    id: Option<u64>,
) -> Result<(), Ending> {
    let found = jobs.find(asked.job);
    let found = match found {
        Ok(job) => connection
            .handle
            .open(Kind::Observer)
            .await
            .map(|open| (open, job)),
        Err(error) => Err(error),
    };
    let (_open, job) = match found {
        Ok(found) => found,
        Err(error) => return reply::send(connection, DevAnswer::Error(error), id).await,
    };
    let mut host = Host::new(connection, id, false);
    host.answer(DevAnswer::ExecStarted(ExecStarted { pid: job.pid() }));
    let mut replay = Replay {
        place: 0,
        lost: false,
        job: Rc::clone(&job),
        // Without following, the end is where it is now.
        until: (!asked.follow).then(|| job.ring().end()),
    };
    loop {
        take(&mut host, &job).await?;
        host.send().await?;
        let news = job.news.notified();
        if host.out.is_empty() && replay.next(&mut host) {
            continue;
        }
        if host.out.is_empty() && replay.is_over() {
            break;
        }
        tokio::select! {
            next = host.next(true) => next?,
            () = news, if host.out.is_empty() => {}
        }
    }
    let last = match job.outcome() {
        Some(mut outcome) => {
            outcome.truncated |= replay.lost;
            last_frame(&outcome)
        }
        None => DevAnswer::JobStarted(JobStarted {
            job: job.number(),
            pid: job.pid(),
        }),
    };
    host.answer(last);
    host.finish().await
}

/// How far the host has got.
struct Replay {
    place: u64,
    lost: bool,
    job: Rc<Job>,
    until: Option<u64>,
}

impl Replay {
    /// Adds the next piece to what is sent to the host, if there is one.
    fn next(&mut self, host: &mut Host<'_, Control>) -> bool {
        let ring = self.job.ring();
        if self.place < ring.start() {
            self.lost = true;
            self.place = ring.start();
        }
        let left = self.until.map(|until| until.saturating_sub(self.place));
        let limit = left.map_or(PIECE, |left| {
            usize::try_from(left).unwrap_or(PIECE).min(PIECE)
        });
        let piece = ring.at(self.place, limit);
        let Some((channel, bytes)) = piece.filter(|(_, bytes)| !bytes.is_empty()) else {
            return false;
        };
        self.place += bytes.len() as u64;
        host.out
            .push(encode_data(channel, &bytes).unwrap_or_default());
        true
    }

    /// Whether there will be no more.
    fn is_over(&self) -> bool {
        self.until.is_some() || self.job.outcome().is_some()
    }
}

async fn take(host: &mut Host<'_, Control>, job: &Job) -> Result<(), Ending> {
    while let Some(sent) = host.sent().await? {
        match sent {
            Sent::Control(Control::Signal(send), _) => job.signal(send.signal.number()),
            Sent::Control(Control::Resize(window), id) => match job.terminal() {
                Some(terminal) => terminal.resize(window),
                None => host.refuse("the job has no terminal", id),
            },
            Sent::Control(_, id) => host.refuse("a job has no input", id),
            Sent::Data(..) => host.refuse("a job has no input", None),
        }
    }
    Ok(())
}
