//! `forward`: a TCP port on the guest's loopback.

use super::{Received, Receiving, Sending};
use crate::{Awaited, Error, Session};
use mvm_protocol::dev::forward::{Forward, ForwardDone};
use mvm_protocol::dev::{Control, DevAnswer, DevRequest, channel};
use std::io;
use std::num::NonZeroU16;

/// A connection to a port of the guest's.
#[derive(Debug)]
pub struct Port<'a> {
    /// The address in the guest that took the connection.
    pub address: String,
    input: PortInput<'a>,
    output: PortOutput<'a>,
}

/// What goes to the port. Its futures may be dropped: a frame that was begun is finished before the
/// next.
#[derive(Debug)]
pub struct PortInput<'a> {
    sending: Sending<'a>,
}

/// What comes from the port.
#[derive(Debug)]
pub struct PortOutput<'a> {
    receiving: Receiving<'a>,
}

/// What came from a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromPort {
    /// It sent this.
    Bytes(Vec<u8>),
    /// It has nothing more to send.
    End,
    /// Both sides have ended, or the port broke off. This is the last.
    Done(ForwardDone),
}

impl Session {
    /// Connects to a TCP port on the guest's loopback.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with `not-found` if nobody listens there.
    pub async fn forward(&mut self, port: NonZeroU16) -> Result<Port<'_>, Error> {
        let request = DevRequest::Forward(Forward { port });
        let (answer, sending, receiving) = self.begin(request).await?;
        match answer {
            DevAnswer::ForwardStarted(started) => Ok(Port {
                address: started.address,
                input: PortInput { sending },
                output: PortOutput { receiving },
            }),
            other => Err(receiving.astray(&other)),
        }
    }
}

impl<'a> Port<'a> {
    /// The two halves, which can be used at once.
    pub fn split(self) -> (PortInput<'a>, PortOutput<'a>) {
        (self.input, self.output)
    }
}

impl PortInput<'_> {
    /// Sends bytes to the port.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sending.data(channel::STDIN, bytes).await
    }

    /// Says that there is nothing more to send.
    pub async fn end(&mut self) -> io::Result<()> {
        self.sending.control(Control::ForwardEnd).await
    }
}

impl PortOutput<'_> {
    /// What comes next. The future may be dropped without losing anything.
    pub async fn next(&mut self) -> Result<FromPort, Error> {
        match self.receiving.next(Awaited::Port).await? {
            Received::Data { channel, bytes } if channel == channel::STDOUT => {
                Ok(FromPort::Bytes(bytes))
            }
            Received::Data { channel, .. } => Err(self.receiving.stray_data(channel)),
            Received::Answer(DevAnswer::ForwardEnd) => Ok(FromPort::End),
            Received::Answer(DevAnswer::ForwardDone(done)) => {
                self.receiving.is_over();
                Ok(FromPort::Done(done))
            }
            Received::Answer(other) => Err(self.receiving.astray(&other)),
        }
    }
}
