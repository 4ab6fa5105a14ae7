//! The connections that come by a pool's `wake`: listened for, held until a VM can take them, joined.

use super::super::inputs::{Given, Inputs};
use super::join::{self, Target, Unjoined};
use crate::commands::Context;
use crate::report::Failure;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mvm_fleet::Policy;
use mvm_fleet::policy::{Port, WakeListener};
use mvm_protocol::Timestamp;
use mvm_registry::VmName;
use mvm_registry::notes::Touched;
use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl,
};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long a connection waits for a VM, and for the port in it.
const HELD: Duration = Duration::from_secs(60);

/// How many connections of one listener are held or joined at once: what an ordinary server takes. Each
/// costs two descriptors, and some 128 KiB while bytes flow.
pub(super) const MOST: usize = 1024;

/// How long to wait when a connection cannot be taken, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// Between two tries to reach a port on which nobody listens yet, or a guest that does not answer yet.
const AGAIN: Duration = Duration::from_millis(200);

/// One place to listen.
struct Listening {
    pool: String,
    port: Port,
    listener: TcpListener,
    /// How many of its connections there are.
    open: usize,
    /// When it is tried again, after an error.
    paused_until: Option<Instant>,
}

/// The listeners of a policy, and their connections.
pub(super) struct Connections<'a> {
    context: &'a Context,
    inputs: Inputs,
    listening: BTreeMap<SocketAddr, Listening>,
    open: FuturesUnordered<LocalBoxFuture<'a, SocketAddr>>,
}

impl<'a> Connections<'a> {
    pub(super) fn new(context: &'a Context, inputs: Inputs) -> Self {
        Self {
            context,
            inputs,
            listening: BTreeMap::new(),
            open: FuturesUnordered::new(),
        }
    }

    /// Listens where the policy says, and nowhere else. Where it has listened before it goes on;
    /// connections that there are stay, whatever the policy says.
    pub(super) fn listen(&mut self, policy: &Policy) -> Result<(), Failure> {
        let wanted: Vec<(&str, &WakeListener)> = policy
            .pools()
            .flat_map(|(name, pool)| pool.wake.iter().map(move |wake| (name, wake)))
            .collect();
        let mut new = Vec::new();
        for (pool, wake) in &wanted {
            if self.listening.contains_key(&wake.listen) {
                continue;
            }
            let listener = bind(wake.listen).map_err(|error| {
                let listen = wake.listen;
                let begun = new.iter().map(|(address, _)| address);
                let mut own = self.listening.keys().chain(begun);
                let hint = match own.find(|address| address.port() == listen.port()) {
                    Some(own) => format!(
                        "this program itself listens on {own}: give another port; where the one is to \
                         replace the other, restart it"
                    ),
                    None => "give another `listen` in its `wake`, or end what listens there".into(),
                };
                Failure::failed(format!("pool `{pool}`: cannot listen on {listen}: {error}"))
                    .hint(hint)
            })?;
            let listening = Listening {
                pool: (*pool).to_owned(),
                port: wake.port,
                listener,
                open: 0,
                paused_until: None,
            };
            new.push((wake.listen, listening));
        }
        self.listening
            .retain(|listen, _| wanted.iter().any(|(_, wake)| wake.listen == *listen));
        self.listening.extend(new);
        for (pool, wake) in wanted {
            if let Some(listening) = self.listening.get_mut(&wake.listen) {
                pool.clone_into(&mut listening.pool);
                listening.port = wake.port;
            }
        }
        Ok(())
    }

    /// Waits until a connection has come, or has ended.
    pub(super) async fn next(&mut self) {
        let listening = self.listening.iter();
        let mut accepting: FuturesUnordered<_> = listening
            .filter(|(_, it)| it.open < MOST)
            .map(|(listen, it)| async {
                if let Some(until) = it.paused_until {
                    sleep_until(until).await;
                }
                (*listen, it.listener.accept().await)
            })
            .collect();
        tokio::select! {
            Some((listen, accepted)) = accepting.next() => {
                drop(accepting);
                self.accepted(listen, accepted);
            }
            Some(listen) = self.open.next() => {
                drop(accepting);
                if let Some(listening) = self.listening.get_mut(&listen) {
                    listening.open = listening.open.saturating_sub(1);
                }
            }
            else => {
                drop(accepting);
                std::future::pending::<()>().await;
            }
        }
    }

    fn accepted(&mut self, listen: SocketAddr, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let Some(listening) = self.listening.get_mut(&listen) else {
            return;
        };
        match accepted {
            Ok((stream, _)) => {
                listening.paused_until = None;
                listening.open += 1;
                // What is typed is to arrive as it is typed.
                let _ = stream.set_nodelay(true);
                let _ = keep_alive(&stream);
                let connection = Connection {
                    context: self.context,
                    inputs: self.inputs.clone(),
                    pool: listening.pool.clone(),
                    port: listening.port,
                };
                self.open.push(Box::pin(async move {
                    connection.serve(stream).await;
                    listen
                }));
            }
            Err(error) => {
                listening.paused_until = Some(Instant::now() + PAUSE);
                let message = format!("{listen}: cannot take a connection: {error}");
                self.context.ui.note(&message);
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// One connection, from its beginning to its end.
struct Connection<'a> {
    context: &'a Context,
    inputs: Inputs,
    pool: String,
    port: Port,
}

impl Connection<'_> {
    async fn serve(self, mut stream: TcpStream) {
        let until = Instant::now() + HELD;
        if let Err(problem) = self.join(&mut stream, until).await {
            let pool = &self.pool;
            self.context
                .ui
                .note(&format!("pool {pool}: a connection is closed: {problem}"));
        }
    }

    async fn join(&self, stream: &mut TcpStream, until: Instant) -> Result<(), String> {
        let mut last = format!("no VM could take it within {HELD:?}");
        loop {
            let given = tokio::select! {
                given = timeout_at(until, self.inputs.connection(&self.pool)) => given,
                // Whoever has gone wakes nobody.
                () = join::broken(stream) => return Ok(()),
            };
            let given = match given {
                Ok(Some(given)) => given,
                Ok(None) => return Err("this program ends".into()),
                Err(_) => return Err(last),
            };
            let target = Target {
                context: self.context,
                vm: &given.vm,
                port: self.port,
            };
            let joined = tokio::select! {
                joined = join::join(&target, stream, until) => joined,
                () = given.cut() => {
                    // It was in the middle of something: that is told apart from an end.
                    join::reset(stream);
                    Ok(())
                }
            };
            self.leave(given);
            match joined {
                Ok(()) => return Ok(()),
                Err(Unjoined::Never(problem)) => return Err(problem),
                Err(Unjoined::NotYet(problem)) if Instant::now() + AGAIN >= until => {
                    return Err(problem);
                }
                Err(Unjoined::NotYet(problem)) => last = problem,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A VM's idle time counts from the end of its last connection.
    fn leave(&self, given: Given) {
        let is_last = given.is_last();
        let name = VmName::new(&given.vm);
        if !is_last {
            return;
        }
        let (Ok(inventory), Ok(name)) = (self.context.inventory(), name) else {
            return;
        };
        let folder = inventory.home().vm(&name);
        tokio::task::spawn_blocking(move || {
            if folder.vm().is_some() {
                let touched = Touched {
                    at: Some(Timestamp(jiff::Timestamp::now().as_millisecond())),
                    ..folder.notes().touched
                };
                // Without it the guest's own idle time counts.
                let _ = folder.touch(touched);
            }
            drop(given);
        });
    }
}

/// Has the client's system asked whether the client is there, from a minute of silence on: one that is
/// gone without a word would keep its VM from sleeping for ever.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    set_tcp_keepidle(stream, Duration::from_secs(60))?;
    set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    set_tcp_keepcnt(stream, 3)?;
    Ok(set_socket_keepalive(stream, true)?)
}
