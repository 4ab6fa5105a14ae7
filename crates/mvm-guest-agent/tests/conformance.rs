//! The agent held against the checks that others can hold theirs against.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Settings, folder};
use mvm_client::{Deadlines, Dialer, Endpoint};
use mvm_conformance::{Options, Outcome, Verdict, run};
use serde_json::json;

#[test]
fn the_agent_conforms() {
    let web = json!({"name": "web", "health_cmd": "true"});
    let size = json!({"name": "size", "command": "echo 1"});
    let agent = Agent::launch(folder(&[web], &[size]), Settings::default());
    let options = Options {
        disposable: true,
        dev: true,
        own_socket: true,
        only: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (dialer, endpoint) = (Dialer::new(), Endpoint::unix(agent.socket()));
    let deadlines = Deadlines::default();
    let report = run(&dialer, &endpoint, &deadlines, &options);
    let report = runtime.block_on(report).unwrap();
    for check in &report.checks {
        // What it recommends is what this agent does.
        let is_well = match &check.outcome {
            Outcome::Passed => true,
            Outcome::DoesNotApply { .. } => {
                let is_dev = check.name.starts_with("dev");
                let is_prod = check.name.ends_with("-of-a-prod-build");
                if cfg!(feature = "dev") {
                    is_prod
                } else {
                    is_dev
                }
            }
            Outcome::Failed { .. } | Outcome::NotRun { .. } => false,
        };
        assert!(is_well, "{check:?}");
    }
    assert_eq!(report.verdict, Verdict::Conforms);
    assert_eq!(report.unknown, Vec::<String>::new());
}
