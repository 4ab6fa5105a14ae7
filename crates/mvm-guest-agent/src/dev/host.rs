//! The host's side of a request under way: what it sends, and what is sent to it.

use super::encode;
use super::flow::{PIECE, Turns};
use super::outbox::Outbox;
use crate::edge::session::{Ending, Session};
use mvm_protocol::Frame;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::{Control, DevAnswer, ParsedControl};
use tokio::time::{Instant, sleep_until};

/// A connection while one request has it.
pub(super) struct Host<'a> {
    pub(super) session: &'a mut Session,
    id: Option<u64>,
    pub(super) out: Outbox,
    buffer: Vec<u8>,
    turns: Turns,
}

/// What the host sent for the request.
pub(super) enum Sent {
    Data(u8, Vec<u8>),
    Control(Control, Option<u64>),
}

impl<'a> Host<'a> {
    /// `sends` is whether it will send more than a word now and then.
    pub(super) fn new(session: &'a mut Session, id: Option<u64>, sends: bool) -> Self {
        Self {
            session,
            id,
            out: Outbox::default(),
            buffer: vec![0; if sends { PIECE } else { 4096 }],
            turns: Turns::default(),
        }
    }

    /// Adds an answer to what is to be sent.
    pub(super) fn answer(&mut self, answer: DevAnswer) {
        self.out.push(encode(answer, self.id));
    }

    /// Refuses something that was sent for the request, which goes on.
    pub(super) fn refuse(&mut self, message: &str, id: Option<u64>) {
        let error = ErrorAnswer::new(ErrorCode::BadRequest, message);
        self.out
            .push(encode(DevAnswer::Error(error), id.or(self.id)));
    }

    /// Refuses a control that belongs to another kind of request.
    pub(super) fn refuse_control(&mut self, id: Option<u64>) {
        self.refuse("that does not belong to the request under way", id);
    }

    /// Sends what there is room for.
    pub(super) async fn send(&mut self) -> Result<(), Ending> {
        self.turns.take().await;
        Ok(self.out.send(&self.session.stream)?)
    }

    /// Waits until the host has sent something, or can be sent more. `listens` is whether more can
    /// be taken from it; that it goes away is noticed in any case. To be dropped at any time.
    pub(super) async fn next(&mut self, listens: bool) -> Result<(), Ending> {
        let listens = listens && self.session.dev.held_back.is_none();
        tokio::select! {
            read = self.session.stream.read(&mut self.buffer), if listens => match read? {
                0 => return Err(Ending::Closed),
                read => {
                    let bytes = self.buffer.get(..read).unwrap_or_default();
                    self.session.decoder.push(bytes);
                }
            },
            () = self.session.stream.closed(), if !listens => return Err(Ending::Closed),
            () = self.out.has_room() => {}
        }
        Ok(())
    }

    /// The next thing that the host has sent, if it is whole. A request of its own is held back
    /// until the one under way is over, and nothing is taken after it.
    pub(super) async fn sent(&mut self) -> Result<Option<Sent>, Ending> {
        while self.session.dev.held_back.is_none() {
            let body = match self.session.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(Frame::Json(body))) => body,
                Ok(Some(Frame::Data { channel, bytes })) => {
                    return Ok(Some(Sent::Data(channel, bytes)));
                }
                Ok(Some(Frame::EmptyData)) => {
                    self.refuse("a data frame without a channel", None);
                    continue;
                }
                Err(error) => return Err(self.session.out_of_step(error).await),
            };
            let parsed = ParsedControl::read(&body);
            match parsed.request {
                Ok(control) => return Ok(Some(Sent::Control(control, parsed.id))),
                Err(error) if error.code == ErrorCode::UnknownRequest => {
                    self.session.dev.held_back = Some(body);
                }
                Err(error) => self.refuse(&error.message, parsed.id),
            }
        }
        Ok(None)
    }

    /// Sends what is left, and drops what the host still sends meanwhile: it may not read before
    /// that is taken. Who does not read at all is cut off.
    pub(super) async fn finish(mut self) -> Result<(), Ending> {
        let mut deadline = Instant::now() + self.session.patience.idle;
        loop {
            let before = self.out.len();
            self.send().await?;
            if self.out.is_empty() {
                return Ok(());
            }
            if self.out.len() < before {
                deadline = Instant::now() + self.session.patience.idle;
            }
            tokio::select! {
                next = self.next(true) => next?,
                () = sleep_until(deadline) => return Err(Ending::TooSlow),
            }
            while self.sent().await?.is_some() {}
        }
    }
}
