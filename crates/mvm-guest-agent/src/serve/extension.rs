//! What a build serves beyond the requests that all builds serve.
//!
//! Session and driver are generic over one [`Extension`]. A prod build plugs in the ports that its
//! configuration exposes, a dev build its commands, files, jobs and ports.

use super::connection::{Connection, Ending};
use mvm_protocol::Frame;
use mvm_protocol::answer::{ErrorCode, Profile};
use mvm_protocol::request::{FromObject, Parsed};
use std::time::Duration;

/// What is added to serving.
///
/// Each clone stands for the same thing: connections and driver have one each.
///
/// A request of an extension that works in the guest is to ask [`Handle::open`] first and to keep
/// what it gets until it has ended: so the core counts it, ends it when a sleep begins, and waits for
/// that.
///
/// [`Handle::open`]: super::handle::Handle::open
pub(crate) trait Extension: Clone + 'static {
    /// What a build with this extension calls itself.
    const PROFILE: Profile;

    /// What is remembered of a connection from one request to the next.
    type Session: Default;

    /// Serves a frame to its end if it is the extension's; gives back any other.
    async fn serve(
        &self,
        connection: &mut Connection,
        session: &mut Self::Session,
        frame: Frame,
    ) -> Result<Option<Frame>, Ending>;

    /// The guest goes to sleep: stops what runs without a host, at once.
    fn freeze(&self);

    /// The guest has woken: lets it go on.
    fn thaw(&self);

    /// The guest has stood still for that time, which counts for nothing that runs without a host.
    fn stood_still(&self, time: Duration);

    /// The agent stops: ends what runs without a host, and waits for that.
    async fn shut_down(&self);
}

/// What a connection keeps from one request to the next: whether the frames that arrive may belong to a
/// request whose last answer has been sent.
#[derive(Debug, Default)]
pub(crate) struct Late(bool);

/// A frame that has arrived between requests.
pub(crate) enum Sorted<R> {
    /// It came too late for the request that it belongs to.
    Late,
    /// A request of the extension, good or bad. What comes after it may belong to it.
    Request(Parsed<R>),
    /// Anything else.
    Other(Frame),
}

impl Late {
    /// Says what a frame is: `R` are the extension's requests, `C` what is sent while one is under way.
    pub(crate) fn sort<R: FromObject, C: FromObject>(&mut self, frame: Frame) -> Sorted<R> {
        let body = match frame {
            Frame::Data { .. } if self.0 => return Sorted::Late,
            Frame::Json(body) => body,
            other => return Sorted::Other(other),
        };
        if self.0 && is_known(&Parsed::<C>::read(&body)) {
            return Sorted::Late;
        }
        let parsed = Parsed::<R>::read(&body);
        self.0 = parsed.kind.is_some() && is_known(&parsed);
        if self.0 {
            Sorted::Request(parsed)
        } else {
            Sorted::Other(Frame::Json(body))
        }
    }
}

/// Whether it is one of these, if perhaps a bad one.
fn is_known<R>(parsed: &Parsed<R>) -> bool {
    let error = parsed.request.as_ref().err();
    error.is_none_or(|error| error.code != ErrorCode::UnknownRequest)
}
