//! A check before it is tried: what it needs, and what it is tried on.

use crate::report::Level;
use mvm_client::{Deadlines, Dialer, Endpoint};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How long a check may take altogether, whatever comes.
pub(crate) const CHECK_WITHIN: Duration = Duration::from_secs(40);

/// What may be done with the agent, and with the guest that it is in.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// It may be put to sleep and woken.
    pub disposable: bool,
    /// Commands may be run and files written in it as well.
    pub dev: bool,
    /// The socket is the agent's own and no VMM's: lines that are no handshake may be sent to it.
    pub own_socket: bool,
    /// The names of the checks that are tried; all if there are none.
    pub only: Vec<String>,
}

/// What a check needs to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need {
    /// A prod build.
    Prod,
    /// [`Options::disposable`].
    Disposable,
    /// [`Options::dev`], and a dev build.
    Dev,
    /// [`Options::own_socket`].
    OwnSocket,
    /// That `hello` lists it.
    Capability(String),
}

/// The agent that is looked at.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) dialer: Dialer,
    pub(crate) endpoint: Endpoint,
    pub(crate) deadlines: Deadlines,
}

/// What was expected and what came, for people.
pub(crate) type Fault = String;

pub(crate) type Checking<'a> = Pin<Box<dyn Future<Output = Result<(), Fault>> + 'a>>;

/// One check, before it is tried.
pub(crate) struct Check<'a> {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) about: String,
    pub(crate) needs: Vec<Need>,
    /// It waits for seconds, and disturbs nobody meanwhile.
    pub(crate) is_slow: bool,
    pub(crate) run: Box<dyn Fn(&'a Agent) -> Checking<'a> + 'a>,
}
