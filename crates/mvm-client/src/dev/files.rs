//! `put` and `get`: files and folders.

use super::{Received, Receiving, Sending};
use crate::{Awaited, Error, Session};
use mvm_protocol::dev::files::{Archive, Get, Put, PutDone};
use mvm_protocol::dev::{Control, DevAnswer, DevRequest, channel};
use std::time::Duration;
use tokio::time::timeout;

/// A file or folder on its way into the guest. Nothing of it is seen there until
/// [`Upload::finish`]; dropped before, it never will be, once the session is dropped as well.
#[derive(Debug)]
pub struct Upload<'a> {
    /// Where it goes, as the agent decided.
    pub path: String,
    sending: Sending<'a>,
    receiving: Receiving<'a>,
    silence: Duration,
}

/// A file or folder on its way out of the guest.
#[derive(Debug)]
pub struct Download<'a> {
    /// The file's size when it was opened; `None` of an archive.
    pub bytes: Option<u64>,
    /// The file's or folder's permission bits, as the guest says.
    pub mode: u32,
    /// Whether it is an archive of a folder, and not a file.
    pub archive: Option<Archive>,
    receiving: Receiving<'a>,
    received: u64,
    silence: Duration,
}

impl Session {
    /// Begins to write a file or folder.
    pub async fn put(&mut self, asked: Put) -> Result<Upload<'_>, Error> {
        let silence = self.deadlines.transfer;
        let (answer, sending, receiving) = self.begin(DevRequest::Put(asked)).await?;
        match answer {
            DevAnswer::PutReady(ready) => Ok(Upload {
                path: ready.path,
                sending,
                receiving,
                silence,
            }),
            other => Err(receiving.astray(&other)),
        }
    }

    /// Begins to read a file or folder.
    pub async fn get(&mut self, asked: Get) -> Result<Download<'_>, Error> {
        let silence = self.deadlines.transfer;
        let (answer, _, receiving) = self.begin(DevRequest::Get(asked)).await?;
        match answer {
            DevAnswer::GetStarted(started) => Ok(Download {
                bytes: started.bytes,
                mode: started.mode,
                archive: started.archive,
                receiving,
                received: 0,
                silence,
            }),
            other => Err(receiving.astray(&other)),
        }
    }
}

impl Upload<'_> {
    /// Sends content. It reads meanwhile, and fails as soon as the agent says that it has failed: a
    /// full disk in the guest ends the transfer in the middle.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the guest could not write it: the old file is still there, and the
    /// session can be used further.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let refused = {
            let sent = self.sending.data(channel::FILE, bytes);
            let answered = self.receiving.next(Awaited::Content);
            let both = async {
                tokio::pin!(answered);
                tokio::select! {
                    biased;
                    answer = &mut answered => Some(answer),
                    sent = sent => match sent {
                        Ok(()) => None,
                        // An agent that closed may have said why.
                        Err(_) => Some(answered.await),
                    },
                }
            };
            let over = timeout(self.silence, both).await;
            over.map_err(|_| self.receiving.late(Awaited::Content, self.silence))?
        };
        match refused {
            None => Ok(()),
            Some(answer) => Err(self.early(answer).await),
        }
    }

    /// Waits until the agent says that it has failed, which it may do at any time. The future may be
    /// dropped without losing anything.
    pub async fn failure(&mut self) -> Error {
        let answer = self.receiving.next(Awaited::Content).await;
        self.early(answer).await
    }

    /// Says that this was all of it, and waits until it is there.
    pub async fn finish(mut self) -> Result<PutDone, Error> {
        let both = async {
            // A failed write ends nothing: an agent that closed may have said why.
            let _ = self.sending.control(Control::PutEnd).await;
            self.receiving.next(Awaited::Content).await
        };
        let answer = timeout(self.silence, both)
            .await
            .map_err(|_| self.receiving.late(Awaited::Content, self.silence))?;
        match answer? {
            Received::Answer(DevAnswer::PutDone(done)) => {
                self.receiving.is_over();
                Ok(done)
            }
            Received::Answer(other) => Err(self.receiving.astray(&other)),
            Received::Data { channel, .. } => Err(self.receiving.stray_data(channel)),
        }
    }

    /// An answer that came before the end: what else would be sent is dropped by the agent, up to
    /// `put-end`.
    async fn early(&mut self, answer: Result<Received, Error>) -> Error {
        let error = match answer {
            Err(error) => error,
            Ok(Received::Answer(other)) => return self.receiving.astray(&other),
            Ok(Received::Data { channel, .. }) => return self.receiving.stray_data(channel),
        };
        if matches!(error, Error::Refused(_)) {
            let ended = timeout(self.silence, self.sending.control(Control::PutEnd)).await;
            *self.receiving.in_step = matches!(ended, Ok(Ok(())));
        }
        error
    }
}

impl Download<'_> {
    /// The next piece of it; `None` at its end, when all of it has come.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let received = timeout(self.silence, self.receiving.next(Awaited::Content)).await;
        let received = received.map_err(|_| self.receiving.late(Awaited::Content, self.silence))?;
        match received? {
            Received::Data { channel, bytes } if channel == channel::FILE => {
                self.received = self.received.saturating_add(bytes.len() as u64);
                Ok(Some(bytes))
            }
            Received::Data { channel, .. } => Err(self.receiving.stray_data(channel)),
            Received::Answer(DevAnswer::GetDone(done)) if done.bytes == self.received => {
                self.receiving.is_over();
                Ok(None)
            }
            Received::Answer(other) => Err(self.receiving.astray(&other)),
        }
    }
}
