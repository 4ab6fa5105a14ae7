//! What each request asks of the core, and what it answers: one file a request.
//!
//! A new request is a file here, a line in [`apply`], and a line in the protocol's own two lists.

mod check;
mod hello;
mod inspect;
mod ping;
mod reload;
mod sleep_prep;
mod status;
mod wake;

use super::facts::Facts;
use crate::core::{Core, Event, Now, WaiterId};
use mvm_protocol::answer::{Answer, ErrorAnswer, ErrorCode, Profile};
use mvm_protocol::request::{DEV_REQUEST_TYPES, FORWARD, ParsedRequest, Request};

/// What becomes of a request.
pub(crate) enum Reply {
    /// It is answered at once.
    Now(Box<Answer>),
    /// The core answers it, by its waiter's number.
    Later(Event),
}

/// Lets a request in, or says why not.
pub(crate) fn admit(
    parsed: ParsedRequest,
    facts: &Facts,
    profile: Profile,
) -> Result<Request, ErrorAnswer> {
    parsed.request.map_err(|refusal| match parsed.kind {
        Some(kind) if refusal.code == ErrorCode::UnknownRequest => {
            dev_refusal(&kind, facts, profile).unwrap_or(refusal)
        }
        _ => refusal,
    })
}

/// Why a request of the dev builds is not served, if it is one and is not to be.
fn dev_refusal(kind: &str, facts: &Facts, profile: Profile) -> Option<ErrorAnswer> {
    let reason = match profile {
        _ if !DEV_REQUEST_TYPES.contains(&kind) => return None,
        Profile::Prod if kind == FORWARD => {
            "this is a prod build of the agent, which reaches the ports that its configuration exposes \
             (expose), and that is none"
        }
        Profile::Prod => "this is a prod build of the agent, which has no code for it",
        Profile::Dev if !facts.exec => "the agent's configuration switches it off (exec: false)",
        Profile::Dev => return None,
    };
    Some(ErrorAnswer::new(
        ErrorCode::NotAllowed,
        format!("`{kind}`: {reason}"),
    ))
}

/// The answer, if it takes nobody but the session: a ping measures the way, not the core's queue.
pub(crate) fn answer_alone(request: &Request) -> Option<Answer> {
    matches!(request, Request::Ping).then(ping::answer)
}

/// Hands a request to its file.
pub(crate) fn apply(
    request: Request,
    waiter: WaiterId,
    core: &Core,
    facts: &Facts,
    profile: Profile,
    clocks: Now,
) -> Reply {
    match request {
        Request::Ping => now(ping::answer()),
        Request::Hello => now(hello::answer(core, facts, profile)),
        // A watch begins as a status; the driver adds the watcher.
        Request::Status | Request::Watch(_) => now(status::answer(core, clocks)),
        Request::Inspect => now(inspect::answer(core, profile, clocks)),
        Request::Check(fields) => Reply::Later(check::event(waiter, fields)),
        Request::Reload => Reply::Later(reload::event(waiter)),
        Request::SleepPrep(fields) => {
            Reply::Later(sleep_prep::event(waiter, fields, facts.made_up_token()))
        }
        Request::Wake(fields) => Reply::Later(wake::event(waiter, *fields, &facts.hasher)),
    }
}

fn now(answer: Answer) -> Reply {
    Reply::Now(Box::new(answer))
}
