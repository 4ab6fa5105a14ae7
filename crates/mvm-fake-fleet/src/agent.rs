//! One agent: its socket, and its connections.

use crate::answers::{inspect, now, status, worker};
use crate::{Behaviour, Guests};
use mvm_protocol::frame::encode_json;
use mvm_protocol::{Decoder, Frame};
use serde_json::{Value, json};
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep};

pub(crate) struct Agent {
    folder: PathBuf,
    behaviour: watch::Receiver<Behaviour>,
    guests: Guests,
}

impl Agent {
    pub(crate) fn new(
        vms: &Path,
        name: &str,
        behaviour: watch::Receiver<Behaviour>,
        guests: Guests,
    ) -> Self {
        Self {
            folder: vms.join(name),
            behaviour,
            guests,
        }
    }

    /// Behaves until its fleet is dropped. `done` is told when it has begun.
    pub(crate) async fn run(mut self, done: mpsc::Sender<()>) {
        let mut done = Some(done);
        loop {
            let behaviour = *self.behaviour.borrow_and_update();
            let listener = self.appear(behaviour);
            if let Some(done) = done.take() {
                let _ = done.send(());
            }
            let changed = loop {
                let accept = async {
                    match &listener {
                        Some(listener) => listener.accept().await,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    changed = self.behaviour.changed() => break changed,
                    accepted = accept => match accepted {
                        Ok((stream, _)) => {
                            let connection = Connection {
                                stream,
                                decoder: Decoder::default(),
                                behaviour: self.behaviour.clone(),
                                guests: self.guests.clone(),
                            };
                            tokio::spawn(connection.serve());
                        }
                        Err(_) => sleep(Duration::from_millis(50)).await,
                    },
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Makes its folder what the behaviour wants, and listens if it does.
    fn appear(&self, behaviour: Behaviour) -> Option<UnixListener> {
        let socket = self.folder.join("v.sock");
        let _ = std::fs::remove_file(&socket);
        if behaviour == Behaviour::Gone {
            let _ = std::fs::remove_dir_all(&self.folder);
            return None;
        }
        std::fs::create_dir_all(&self.folder).unwrap();
        // Bound before the record says that it runs: who reads that may dial.
        let listener = UnixListener::bind(&socket).unwrap();
        let mut record = json!({"backend": "fake"});
        if let Some(pool) = &self.guests.pool {
            record["labels"] = json!({ "pool": pool });
        }
        if behaviour == Behaviour::Asleep {
            record["state"] = "asleep".into();
        }
        let draft = self.folder.join("vm.json.new");
        std::fs::write(&draft, record.to_string()).unwrap();
        std::fs::rename(&draft, self.folder.join("vm.json")).unwrap();
        let listens = !matches!(behaviour, Behaviour::Asleep | Behaviour::Dead);
        listens.then_some(listener)
    }
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    behaviour: watch::Receiver<Behaviour>,
    guests: Guests,
}

impl Connection {
    async fn serve(mut self) {
        let behaviour = *self.behaviour.borrow_and_update();
        let talk = async {
            match behaviour {
                Behaviour::Stalled => pending().await,
                Behaviour::Garbage => {
                    self.connect().await?;
                    self.stream
                        .write_all(b"OK 1073741824\n\xff\xff\xff\xffgarbage")
                        .await?;
                    pending().await
                }
                _ => self.talk(behaviour).await,
            }
        };
        let end = async {
            match behaviour {
                Behaviour::Dying(after) => sleep(after).await,
                _ => pending().await,
            }
        };
        tokio::select! {
            _ = talk => {}
            () = end => {}
        }
    }

    /// Reads `CONNECT 52`.
    async fn connect(&mut self) -> io::Result<()> {
        while self.stream.read_u8().await? != b'\n' {}
        Ok(())
    }

    async fn talk(&mut self, behaviour: Behaviour) -> io::Result<()> {
        self.connect().await?;
        self.stream.write_all(b"OK 1073741824\n").await?;
        loop {
            let request = self.request().await?;
            if let Behaviour::Slow(after) = behaviour {
                sleep(after).await;
            }
            let id = request["id"].clone();
            let status = || status(behaviour, false, &self.guests);
            let (kind, body) = match request["type"].as_str().unwrap_or_default() {
                "ping" => ("pong", json!({})),
                "status" | "watch" => ("status", serde_json::to_value(status()).unwrap()),
                "inspect" => ("inspect", inspect(&status(), &self.guests)),
                other => panic!("a request that no test sends: {other}"),
            };
            self.answer(kind, body, &id).await?;
            if request["type"] == "watch" {
                let secs = request["heartbeat_secs"].as_f64().unwrap();
                return self
                    .watched(behaviour, Duration::from_secs_f64(secs), &id)
                    .await;
            }
        }
    }

    /// Tells changes and heartbeats until the host has gone.
    async fn watched(
        &mut self,
        mut behaviour: Behaviour,
        heartbeat: Duration,
        id: &Value,
    ) -> io::Result<()> {
        let mut beats = interval_at(Instant::now() + heartbeat, heartbeat);
        let mut flaps = match behaviour {
            Behaviour::Flapping(every) => Some(interval_at(Instant::now() + every, every)),
            _ => None,
        };
        let mut is_busy = false;
        let mut byte = [0];
        loop {
            let flap = async {
                match &mut flaps {
                    Some(flaps) => flaps.tick().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = beats.tick() => self.event(json!({"heartbeat": true}), id).await?,
                _ = flap => {
                    is_busy = !is_busy;
                    self.tell_worker(behaviour, is_busy, id).await?;
                }
                changed = self.behaviour.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    behaviour = *self.behaviour.borrow_and_update();
                    match behaviour {
                        // To this end the guest is silent.
                        Behaviour::Restored | Behaviour::Stalled => pending().await,
                        Behaviour::Dead | Behaviour::Asleep | Behaviour::Gone | Behaviour::Garbage => return Ok(()),
                        _ => self.tell_worker(behaviour, false, id).await?,
                    }
                }
                read = self.stream.read(&mut byte) => if read? == 0 {
                    return Ok(());
                },
            }
        }
    }

    async fn tell_worker(
        &mut self,
        behaviour: Behaviour,
        is_busy: bool,
        id: &Value,
    ) -> io::Result<()> {
        let worker = serde_json::to_value(worker(behaviour, is_busy)).unwrap();
        self.event(json!({ "worker": worker }), id).await
    }

    async fn event(&mut self, mut body: Value, id: &Value) -> io::Result<()> {
        body["at"] = serde_json::to_value(now()).unwrap();
        self.answer("event", body, id).await
    }

    async fn answer(&mut self, kind: &str, mut body: Value, id: &Value) -> io::Result<()> {
        body["type"] = kind.into();
        body["id"] = id.clone();
        let frame = encode_json(body.to_string().as_bytes()).unwrap();
        self.stream.write_all(&frame).await
    }

    async fn request(&mut self) -> io::Result<Value> {
        let mut buffer = [0; 1024];
        loop {
            match self.decoder.next_frame().map_err(io::Error::other)? {
                Some(Frame::Json(body)) => return Ok(serde_json::from_slice(&body)?),
                Some(_) => return Err(io::Error::other("no JSON")),
                None => {}
            }
            let count = self.stream.read(&mut buffer).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.push(&buffer[..count]);
        }
    }
}
