//! The host's side of a request under way: what it sends, and what is sent to it.

use super::flow::PIECE;
use super::outbox::Outbox;
use super::reply::encode;
use crate::machine::turns::between_pieces;
use crate::serve::connection::{Connection, Ending};
use mvm_protocol::answer::{Answer, ErrorAnswer, ErrorCode};
use mvm_protocol::request::{FromObject, Parsed};
use mvm_protocol::{Frame, FrameError};
use serde::Serialize;
use std::marker::PhantomData;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// While so many bytes of answers wait in memory, nothing is taken that could add to them.
pub(crate) const FULL: usize = 2 * PIECE;

/// A connection while one request has it. `C` is what the host may send for it, besides data.
pub(crate) struct Host<'a, C> {
    pub(crate) connection: &'a mut Connection,
    id: Option<u64>,
    pub(crate) out: Outbox,
    buffer: Vec<u8>,
    /// Whether the request goes on only if the host sends more.
    pub(crate) awaits_input: bool,
    /// Whether its last answer has been given.
    pub(crate) over: bool,
    /// Whether frames have come that were not looked at, for want of room for answers.
    has_unread_frames: bool,
    stalls: StallTimers,
    controls: PhantomData<C>,
}

/// What the host sent for the request.
pub(crate) enum Sent<C> {
    Data(u8, Vec<u8>),
    Control(C, Option<u64>),
}

/// Since when a host has kept the agent waiting.
#[derive(Default)]
struct StallTimers {
    /// Since when nothing of the awaited input has arrived.
    silent: Option<Instant>,
    /// Since when a frame has begun and not come to its end.
    within_frame: Option<Instant>,
    /// Since when it has taken nothing of what waits for it.
    unread: Option<Instant>,
}

impl<'a, C: FromObject> Host<'a, C> {
    /// `sends` is whether it will send more than a word now and then.
    pub(crate) fn new(connection: &'a mut Connection, id: Option<u64>, sends: bool) -> Self {
        Self {
            connection,
            id,
            out: Outbox::default(),
            buffer: vec![0; if sends { PIECE } else { 4096 }],
            awaits_input: false,
            over: false,
            has_unread_frames: false,
            stalls: StallTimers::default(),
            controls: PhantomData,
        }
    }

    /// Adds an answer to what is to be sent.
    pub(crate) fn answer(&mut self, answer: impl Serialize) {
        self.out.push(encode(answer, self.id));
    }

    /// Refuses something that was sent for the request, which goes on.
    pub(crate) fn refuse(&mut self, message: &str, id: Option<u64>) {
        // Nothing comes after the last answer.
        if !self.over {
            let error = ErrorAnswer::new(ErrorCode::BadRequest, message);
            self.out.push(encode(Answer::Error(error), id.or(self.id)));
        }
    }

    /// Refuses a control that belongs to another kind of request.
    pub(crate) fn refuse_control(&mut self, id: Option<u64>) {
        self.refuse("that does not belong to the request under way", id);
    }

    /// Sends what there is room for.
    pub(crate) async fn send(&mut self) -> Result<(), Ending> {
        between_pieces().await;
        self.send_now()?;
        Ok(())
    }

    /// Sends what there is room for, and gives how many bytes that was.
    fn send_now(&mut self) -> Result<usize, Ending> {
        let sent = self.out.send(&self.connection.stream)?;
        if self.out.is_empty() {
            self.stalls.unread = None;
        } else if sent > 0 || self.stalls.unread.is_none() {
            self.stalls.unread = Some(Instant::now());
        }
        Ok(sent)
    }

    /// Waits until the host has sent something, or can be sent more. `listens` is whether more can
    /// be taken from it; that it goes away is noticed in any case, and if it keeps the agent waiting
    /// for too long it is cut off. To be dropped at any time.
    pub(crate) async fn next(&mut self, listens: bool) -> Result<(), Ending> {
        if self.has_unread_frames && !self.is_full() {
            self.has_unread_frames = false;
            return Ok(());
        }
        let listens = listens && self.connection.postponed.is_none() && !self.is_full();
        let deadline = self.deadline(listens);
        tokio::select! {
            // What has come in time counts, however late it is seen.
            biased;
            read = self.connection.stream.read(&mut self.buffer), if listens => match read? {
                0 => return Err(Ending::Closed),
                read => {
                    let bytes = self.buffer.get(..read).unwrap_or_default();
                    self.connection.decoder.push(bytes);
                    self.stalls.silent = None;
                }
            },
            () = self.connection.stream.closed(), if !listens => return Err(Ending::Closed),
            () = self.out.has_room() => {}
            // A socket tells of room when there is much of it: a slow reader has made some before.
            () = at(deadline) => if self.send_now()? == 0 {
                return Err(Ending::TooSlow);
            },
        }
        Ok(())
    }

    /// The next thing that the host has sent, if it is whole. A request of its own is held back
    /// until the one under way is over, and nothing is taken after it.
    pub(crate) async fn sent(&mut self) -> Result<Option<Sent<C>>, Ending> {
        while self.connection.postponed.is_none() {
            if self.is_full() {
                self.has_unread_frames = true;
                break;
            }
            let frame = match self.connection.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => frame,
                Err(error) => return Err(self.out_of_step(error).await),
            };
            self.stalls.within_frame = None;
            let body = match frame {
                Frame::Json(body) => body,
                Frame::Data { channel, bytes } => return Ok(Some(Sent::Data(channel, bytes))),
                Frame::EmptyData => {
                    self.refuse("a data frame without a channel", None);
                    continue;
                }
            };
            let parsed = Parsed::<C>::read(&body);
            match parsed.request {
                Ok(control) => return Ok(Some(Sent::Control(control, parsed.id))),
                Err(error) if error.code == ErrorCode::UnknownRequest => {
                    self.connection.postponed = Some(body);
                }
                Err(error) => self.refuse(&error.message, parsed.id),
            }
        }
        Ok(None)
    }

    /// Ends a connection that is out of step. What was begun is sent first: within another frame
    /// nobody would see why.
    async fn out_of_step(&mut self, error: FrameError) -> Ending {
        let deadline = Instant::now() + self.connection.timeouts.linger;
        while !self.out.is_empty() {
            if let Err(ending) = self.send().await {
                return ending;
            }
            tokio::select! {
                () = self.out.has_room(), if !self.out.is_empty() => {}
                () = sleep_until(deadline), if !self.out.is_empty() => return Ending::TooSlow,
                else => {}
            }
        }
        self.connection.out_of_step(error).await
    }

    /// Sends what is left, and drops what the host still sends meanwhile: it may not read before
    /// that is taken.
    pub(crate) async fn finish(mut self) -> Result<(), Ending> {
        (self.over, self.awaits_input, self.has_unread_frames) = (true, false, false);
        loop {
            while self.sent().await?.is_some() {}
            self.send().await?;
            if self.out.is_empty() {
                return Ok(());
            }
            self.next(true).await?;
        }
    }

    /// Whether more answers would cost too much memory. At the end there are no more.
    fn is_full(&self) -> bool {
        !self.over && self.out.in_memory() > FULL
    }

    /// When the host is to be cut off, unless it sends or takes something before. As long as nothing
    /// is read from it, no input is awaited.
    fn deadline(&mut self, listens: bool) -> Option<Instant> {
        let timeouts = self.connection.timeouts;
        let StallTimers {
            silent,
            within_frame,
            unread,
        } = &mut self.stalls;
        let mid_frame = listens && self.connection.decoder.is_mid_frame();
        let pause = match (mid_frame, listens && self.awaits_input) {
            (true, _) => Some(timeouts.within_frame),
            (false, true) => Some(timeouts.idle),
            (false, false) => None,
        };
        let whole_within = mid_frame.then_some(timeouts.idle);
        [
            counted(silent, pause),
            counted(within_frame, whole_within),
            unread.map(|since| since + timeouts.idle),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The end of a limit that counts since a moment: from now on, if it has not counted before. Without
/// a limit nothing counts.
fn counted(since: &mut Option<Instant>, limit: Option<Duration>) -> Option<Instant> {
    if limit.is_none() {
        *since = None;
    }
    limit.map(|limit| *since.get_or_insert_with(Instant::now) + limit)
}

/// At that moment, or never.
pub(super) async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
