//! The client held against every way to misbehave that clients are held against.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mvm_client::{Deadlines, Dialer, Endpoint, Error, Watcher};
use mvm_conformance::Verdict;
use mvm_fake_agent::conduct::{Action, Misbehaviour, hold};
use mvm_protocol::status::Health;
use std::path::Path;
use std::time::Duration;

async fn said(one: Misbehaviour, socket: &Path) -> Result<&'static str, Error> {
    let deadlines = Deadlines::all(Duration::from_secs(1));
    let endpoint = Endpoint::unix(socket);
    let mut session = Dialer::new().connect(&endpoint, &deadlines).await?;
    match one.action {
        Action::Ping => session.ping().await.map(|_| "ok"),
        Action::Status => Ok(match session.status().await?.health.known() {
            Some(Health::Healthy) => "healthy",
            _ => "ok",
        }),
        Action::Watch => {
            let (_, mut watch) = Watcher::start(session, Duration::from_millis(200)).await?;
            for _ in 0..3 {
                watch.next().await?;
            }
            Ok("ok")
        }
    }
}

fn word(error: &Error) -> &'static str {
    match error {
        Error::Refused(_) => "refused",
        Error::TimedOut { .. } => "timed-out",
        Error::NotAnAgent { .. } => "no-agent",
        _ => "unreachable",
    }
}

#[test]
fn the_client_stands_all_of_it() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let report = hold(|one, socket| {
        let said = runtime.block_on(said(one, socket));
        Ok(said.unwrap_or_else(|error| word(&error)).to_owned())
    });
    let failed: Vec<_> = report.failed().collect();
    assert!(failed.is_empty(), "{:#?}", report.checks);
    assert_eq!(report.verdict, Verdict::Conforms);
}

#[test]
fn a_client_that_believes_everything_fails() {
    let report = hold(|_, _| Ok("healthy".into()));
    assert_eq!(report.verdict, Verdict::Fails);
    assert!(report.required.failed > 20, "{report:#?}");
    let report = hold(|_, _| Err("crashed".into()));
    assert_eq!(report.required.passed, 0);
}
