//! What a build serves beyond the requests that all builds serve.
//!
//! Session and driver are generic over one [`Extension`]. A prod build plugs in the ports that its
//! configuration exposes, a dev build its commands, files, jobs and ports.

use super::connection::{Connection, Ending};
use mvm_protocol::Frame;
use mvm_protocol::answer::Profile;
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
