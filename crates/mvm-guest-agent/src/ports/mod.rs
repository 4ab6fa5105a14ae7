//! Ports of the guest's loopback that hosts reach: `forward`.
//!
//! A prod build serves those that `expose` in its configuration lists, and no others: it is a port, not
//! a command, and what listens there was put there by whoever made the guest. A dev build reaches any.
//! What is carried, and how, is the same in both, and [`dev`](crate) carries the input and output of
//! its commands by it, too: what is read from the guest waits while the host does not read, and what
//! the host sends waits while the guest does not take it. So memory stays bounded both ways.

pub(crate) mod audit;
pub(crate) mod flow;
pub(crate) mod forward;
pub(crate) mod host;
pub(crate) mod outbox;
pub(crate) mod reply;

use crate::serve::connection::{Connection, Ending};
use crate::serve::extension::{Extension, Late, Sorted};
use mvm_protocol::Frame;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode, Profile};
use mvm_protocol::dev::forward::{Forward, PortAnswer, PortControl, PortRequest};
use std::cell::Cell;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;

/// How many connections to exposed ports there are at once. Each takes up to five descriptors, of the 8,192
/// that the agent takes, or of fewer where it may not have as many: the others are for those who ask how the
/// guest is and put it to sleep, and for its checks.
const AT_ONCE: usize = 128;

/// How long a connection to an exposed port may carry nothing either way. Longer than what talks over
/// it would wait for by itself, short enough that those of hosts which have gone do not add up.
const QUIET: Duration = Duration::from_secs(3600);

/// What a connection to a port is held to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// How long it may carry nothing either way.
    pub(crate) quiet: Option<Duration>,
}

/// The ports that the configuration exposes.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    exposed: Rc<[NonZeroU16]>,
    open: Rc<Cell<usize>>,
}

impl Ports {
    pub(crate) fn new(exposed: &[NonZeroU16]) -> Self {
        Self {
            exposed: exposed.into(),
            open: Rc::default(),
        }
    }

    /// Lets a connection in that counts until what is given is dropped, or says why not.
    fn admit(&self, asked: Forward) -> Result<Counted, ErrorAnswer> {
        if !self.exposed.contains(&asked.port) {
            let message = format!(
                "`forward`: port {} is not exposed: `expose` in the agent's configuration lists those \
                 that are",
                asked.port
            );
            return Err(ErrorAnswer::new(ErrorCode::NotAllowed, message));
        }
        if self.open.get() >= AT_ONCE {
            let message = format!("{AT_ONCE} connections to exposed ports are open: close some");
            return Err(ErrorAnswer::new(ErrorCode::TooManyConnections, message));
        }
        self.open.set(self.open.get() + 1);
        Ok(Counted(Rc::clone(&self.open)))
    }
}

/// One of the connections to exposed ports.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Extension for Ports {
    const PROFILE: Profile = Profile::Prod;

    type Session = Late;

    async fn serve(
        &self,
        connection: &mut Connection,
        session: &mut Late,
        frame: Frame,
    ) -> Result<Option<Frame>, Ending> {
        if self.exposed.is_empty() {
            return Ok(Some(frame));
        }
        let parsed = match session.sort::<PortRequest, PortControl>(frame) {
            Sorted::Request(parsed) => parsed,
            Sorted::Late => return Ok(None),
            Sorted::Other(frame) => return Ok(Some(frame)),
        };
        let admitted = parsed.request.and_then(|PortRequest::Forward(asked)| {
            self.admit(asked).map(|counted| (asked, counted))
        });
        match admitted {
            Ok((asked, _counted)) => {
                let limits = Limits { quiet: Some(QUIET) };
                forward::serve(connection, asked, parsed.id, limits).await?;
            }
            Err(error) => reply::send(connection, PortAnswer::Error(error), parsed.id).await?,
        }
        Ok(None)
    }

    fn freeze(&self) {}

    fn thaw(&self) {}

    fn stood_still(&self, _: Duration) {}

    async fn shut_down(&self) {}
}
