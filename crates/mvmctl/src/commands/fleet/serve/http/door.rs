//! By whom connections are served.

use super::answers::Answers;
use super::listen::{Listeners, token};
use super::listener::Listener;
use super::server::{Room, serve};
use super::tls::Tls;
use crate::commands::fleet::serve::inputs::Inputs;
use crate::report::Failure;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The pause after a connection that could not be taken: descriptors may be free again then.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How long a client may take to agree on keys.
const TLS_WITHIN: Duration = Duration::from_secs(10);

/// What serves, until it is told to end.
#[derive(Debug)]
pub(crate) struct Server {
    ending: watch::Sender<bool>,
    rooms: [Room; 2],
    answers: Arc<Answers>,
    token_file: Option<PathBuf>,
    tls: Option<Arc<Tls>>,
}

impl Server {
    pub(crate) fn start(listeners: Listeners, inputs: &Inputs) -> Self {
        let (ending, _) = watch::channel(false);
        let address = listeners.doors.iter().find_map(Listener::address);
        let make = |token| {
            Arc::new(Answers {
                inputs: inputs.clone(),
                advertise: listeners.advertise.clone(),
                address,
                host: host_name(),
                labels: listeners.labels.iter().cloned().collect(),
                token: RwLock::new(token),
                expositions: Answers::expositions(),
            })
        };
        let answers = make(listeners.token.clone());
        let own = make(None);
        let tls = listeners.tls.map(Arc::new);
        // This user's own commands find room, whoever else asks; their socket is theirs alone.
        let rooms = [Room::new(), Room::new()];
        for listener in listeners.doors {
            let door = Door {
                listener,
                tls: tls.clone(),
                room: rooms[0].clone(),
                answers: Arc::clone(&answers),
                ending: ending.subscribe(),
            };
            tokio::spawn(door.serve());
        }
        let door = Door {
            listener: Listener::Unix(listeners.own),
            tls: None,
            room: rooms[1].clone(),
            answers: own,
            ending: ending.subscribe(),
        };
        tokio::spawn(door.serve());
        Self {
            ending,
            rooms,
            answers,
            token_file: listeners.token_file,
            tls,
        }
    }

    /// Reads the token and the certificate again. What cannot be read stays as it was before.
    pub(crate) fn reload(&self) -> Result<(), Failure> {
        let tls = self.tls.as_ref().map_or(Ok(()), |tls| tls.reload());
        if let Some(path) = &self.token_file {
            let token = token(path)?;
            let known = &self.answers.token;
            *known.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
        }
        tls
    }

    /// Takes no more connections, and waits until those that are open have been answered.
    pub(crate) async fn end(&self) {
        let _ = self.ending.send(true);
        for room in &self.rooms {
            room.empty().await;
        }
    }
}

/// One socket, who may come in by it, and what they are told.
#[derive(Debug)]
struct Door {
    listener: Listener,
    tls: Option<Arc<Tls>>,
    room: Room,
    answers: Arc<Answers>,
    ending: watch::Receiver<bool>,
}

impl Door {
    /// Takes connections until the program is to end.
    async fn serve(self) {
        let mut has_ended = self.ending.clone();
        tokio::select! {
            () = self.take() => {}
            _ = has_ended.wait_for(|ended| *ended) => {}
        }
    }

    async fn take(&self) {
        while let Some(permit) = self.room.enter().await {
            let Ok(stream) = self.listener.accept().await else {
                sleep(AFTER_FAILURE).await;
                continue;
            };
            let (answers, ending) = (Arc::clone(&self.answers), self.ending.clone());
            let tls = self.tls.as_ref().map(|tls| tls.acceptor());
            tokio::spawn(async move {
                let _permit = permit;
                let Some(tls) = tls else {
                    return serve(stream, answers, ending).await;
                };
                // Who does not agree is none of ours.
                if let Ok(Ok(stream)) = timeout(TLS_WITHIN, tls.accept(stream)).await {
                    serve(Box::new(stream), answers, ending).await;
                }
            });
        }
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
