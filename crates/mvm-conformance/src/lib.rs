//! Holds an implementation of the agent against the protocol.
//!
//! ```text
//! lib           what is to be tried, in which order, and what each check needs    run
//! vectors       the cases of docs/vectors: bytes, and what has to come back
//! behaviours    what takes more than one connection, or time
//! conversation  one connection: every wait has a deadline
//! check         one check before it is tried, and what it needs
//! report        what was found                                                    Report
//! ```
//!
//! Nothing is believed: an agent may send anything, without end, or nothing. What it sends is read
//! within the caps of the protocol, each wait has a deadline, and so has each check altogether.
//!
//! A check knows what it needs (`Need`). Those that could put the guest to sleep, or run commands in
//! it, are tried only if whoever asks says that the guest is one of their own for that
//! ([`Options::disposable`]).

#![forbid(unsafe_code)]

mod behaviours;
mod check;
mod conversation;
mod report;
mod vectors;

pub use check::Options;
pub use report::{Counts, Entry, Level, Outcome, Report, Verdict};

use check::{Agent, CHECK_WITHIN, Check, Checking, Need};
use conversation::{Conversation, Fault, read, word};
use futures_util::future::join_all;
use mvm_client::{Deadlines, Dialer, Endpoint, Error};
use mvm_protocol::answer::{Answer, Hello};
use mvm_protocol::request::{DEV_REQUEST_TYPES, FEATURES, REQUEST_TYPES};
use serde_json::json;
use std::collections::BTreeSet;
use tokio::time::timeout;

/// Further capabilities that this version knows.
const EXPOSE: &str = "expose";

/// What there is to be tried: name, level, and what is expected.
pub fn list() -> Vec<(String, Level, String)> {
    let told = |check: Check| (check.name, check.level, check.about);
    checks().into_iter().map(told).collect()
}

fn checks<'a>() -> Vec<Check<'a>> {
    let mut all = Vec::new();
    for line in vectors::handshake() {
        all.push(Check {
            name: format!("handshake/{}", line.name),
            level: Level::Required,
            about: line.about.clone(),
            needs: vec![Need::OwnSocket],
            is_slow: false,
            run: vector(line, |line, agent| {
                Box::pin(async move { line.play(agent).await })
            }),
        });
    }
    let plain = vectors::requests().into_iter().map(|case| (case, false));
    let dev = vectors::dev_requests().into_iter().map(|case| (case, true));
    for (case, is_dev) in plain.chain(dev) {
        let mut needs = case.needs();
        needs.extend(is_dev.then_some(Need::Dev));
        let folder = if is_dev { "dev-requests" } else { "requests" };
        all.push(Check {
            name: format!("{folder}/{}", case.name),
            level: case.level(),
            about: case.about.clone(),
            needs,
            is_slow: false,
            run: vector(case, |case, agent| {
                Box::pin(async move { case.play(agent).await })
            }),
        });
    }
    all.extend(behaviours::all());
    all
}

/// A case that is kept as long as its check is.
fn vector<'a, C: 'a>(
    case: C,
    play: for<'b> fn(&'b C, &'b Agent) -> Checking<'b>,
) -> Box<dyn Fn(&'a Agent) -> Checking<'a> + 'a> {
    let case = std::rc::Rc::new(case);
    Box::new(move |agent| {
        let case = std::rc::Rc::clone(&case);
        Box::pin(async move { play(&case, agent).await })
    })
}

/// Tries all that may be tried.
///
/// # Errors
///
/// If there is nobody to be looked at: no socket, nobody who listens, or no answer to `hello`.
pub async fn run(
    dialer: &Dialer,
    endpoint: &Endpoint,
    deadlines: &Deadlines,
    options: &Options,
) -> Result<Report, Error> {
    // Whoever does not get this far is no agent, and there is no report on it.
    let mut session = dialer.connect(endpoint, deadlines).await?;
    let hello = session.hello().await?;
    drop(session);
    let agent = Agent {
        dialer: dialer.clone(),
        endpoint: endpoint.clone(),
        deadlines: *deadlines,
    };
    let mut checks = checks();
    if !options.only.is_empty() {
        checks.retain(|check| options.only.contains(&check.name));
    }
    let place: Vec<String> = checks.iter().map(|check| check.name.clone()).collect();
    let slow: Vec<Check> = checks.extract_if(.., |check| check.is_slow).collect();
    let (agent, hello) = (&agent, &hello);
    let (mut entries, slow) = tokio::join!(
        async {
            let mut entries = Vec::new();
            for check in checks {
                entries.push(tried(check, agent, hello, options).await);
            }
            entries
        },
        join_all(
            slow.into_iter()
                .map(async |check| { tried(check, agent, hello, options).await })
        )
    );
    entries.extend(slow);
    entries.sort_by_key(|entry| place.iter().position(|name| *name == entry.name));
    if options.disposable {
        // Whatever went wrong: it is left awake.
        let _ = behaviours::sleeping::wake_up(agent).await;
    }
    Ok(Report::of(entries, unknown(agent, hello).await))
}

async fn tried<'a>(check: Check<'a>, agent: &'a Agent, hello: &Hello, options: &Options) -> Entry {
    let missing = check
        .needs
        .iter()
        .find_map(|need| lacks(need, hello, options));
    let outcome = match missing {
        Some(outcome) => outcome,
        None => match timeout(CHECK_WITHIN, (check.run)(agent)).await {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(why)) => match why.strip_prefix(behaviours::NOT_HERE) {
                Some(why) => Outcome::NotRun { why: why.into() },
                None => Outcome::Failed { why },
            },
            Err(_) => Outcome::Failed {
                why: format!("not over within {CHECK_WITHIN:?}"),
            },
        },
    };
    Entry {
        name: check.name,
        level: check.level,
        about: check.about,
        outcome,
    }
}

/// What becomes of a check whose need is not met.
fn lacks(need: &Need, hello: &Hello, options: &Options) -> Option<Outcome> {
    let not_run =
        |is_allowed: bool, why: &str| (!is_allowed).then(|| Outcome::NotRun { why: why.into() });
    let does_not_apply =
        |applies: bool, why: String| (!applies).then_some(Outcome::DoesNotApply { why });
    let is_dev = hello.capabilities.iter().any(|one| one == "exec");
    match need {
        Need::Prod => does_not_apply(!is_dev, "it serves the requests of dev builds".into()),
        Need::Dev if !is_dev => {
            does_not_apply(false, "it does not serve the requests of dev builds".into())
        }
        Need::Dev => not_run(options.dev, "commands may not be run in the guest"),
        Need::Disposable => not_run(options.disposable, "the guest may not be put to sleep"),
        Need::OwnSocket => not_run(options.own_socket, "the socket may be a VMM's"),
        Need::Capability(name) => does_not_apply(
            hello.capabilities.contains(name),
            format!("`hello` does not list `{name}`"),
        ),
    }
}

/// What it says of itself that is not looked at here. Bounded: there is no end to what it could say.
async fn unknown(agent: &Agent, hello: &Hello) -> Vec<String> {
    const MOST: usize = 50;
    let known = REQUEST_TYPES
        .iter()
        .chain(&DEV_REQUEST_TYPES)
        .chain(&FEATURES);
    let known: BTreeSet<&str> = known.copied().chain([EXPOSE]).collect();
    let capabilities = hello.capabilities.iter();
    let capabilities = capabilities.filter(|name| !known.contains(name.as_str()));
    let mut all: Vec<String> = capabilities
        .map(|name| format!("capability `{}`", conversation::quoted(&json!(name))))
        .collect();
    if hello.profile.known().is_none() {
        all.push(format!(
            "profile {}",
            conversation::quoted(&json!(hello.profile))
        ));
    }
    all.extend(unknown_fields(agent).await.unwrap_or_default());
    all.truncate(MOST);
    all
}

/// Fields of `inspect` that this version does not read: those that are lost when it is read.
async fn unknown_fields(agent: &Agent) -> Result<Vec<String>, Fault> {
    let mut conversation = Conversation::open(agent).await?;
    let told = conversation.ask(&json!({"type": "inspect"})).await?;
    let Answer::Inspect(known) = read(&told)? else {
        return Err(format!("got {}", word(&told, "type")));
    };
    let known = serde_json::to_value(known).unwrap_or_default();
    let fields = told.as_object().into_iter().flatten();
    let fields = fields.filter(|(name, _)| *name != "type" && known.get(name.as_str()).is_none());
    Ok(fields
        .filter(|(_, value)| !value.is_null())
        .map(|(name, _)| format!("field {} of `inspect`", conversation::quoted(&json!(name))))
        .collect())
}
