//! A conforming agent passes every check, and for every check there is an agent that fails it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mvm_client::{Deadlines, Dialer, Endpoint};
use mvm_conformance::{Level, Options, Outcome, Report, Verdict, list, run};
use mvm_fake_agent::{FakeAgent, Fault, Model};
use std::collections::BTreeSet;
use std::time::Duration;

/// All that can be tried, of these checks.
fn options(only: &[&str]) -> Options {
    Options {
        disposable: true,
        dev: true,
        own_socket: true,
        only: only.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn report_on(model: Model, deadlines: Deadlines, options: &Options) -> Report {
    let agent = FakeAgent::start(move |peer| model.serve(peer));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let endpoint = Endpoint::unix(agent.path());
    let dialer = Dialer::new();
    let report = run(&dialer, &endpoint, &deadlines, options);
    runtime.block_on(report).unwrap()
}

/// What fails, of an agent that a good one would have answered long before.
fn failed(model: Model, only: &[&str]) -> BTreeSet<String> {
    let deadlines = Deadlines::all(Duration::from_millis(700));
    let report = report_on(model, deadlines, &options(only));
    report.failed().map(str::to_owned).collect()
}

#[test]
fn a_conforming_agent_passes_all_of_it() {
    let report = report_on(Model::new(None), Deadlines::default(), &options(&[]));
    for check in &report.checks {
        let is_dev = check.name.starts_with("dev");
        let is_well = match &check.outcome {
            Outcome::Passed => !is_dev,
            Outcome::DoesNotApply { .. } => is_dev,
            Outcome::Failed { .. } | Outcome::NotRun { .. } => false,
        };
        assert!(is_well, "{check:?}");
    }
    assert_eq!(report.verdict, Verdict::Conforms);
    assert_eq!(report.checks.len(), list().len());
    assert_eq!(report.unknown, Vec::<String>::new());
}

#[test]
fn each_fault_is_found_by_its_checks() {
    std::thread::scope(|scope| {
        let with_checks = Fault::ALL
            .iter()
            .filter(|fault| !fault.found_by().is_empty());
        for fault in with_checks {
            scope.spawn(move || {
                let found = failed(Model::new(Some(*fault)), fault.found_by());
                for check in fault.found_by() {
                    assert!(found.contains(*check), "{check} did not find {fault:?}");
                }
            });
        }
    });
}

#[test]
fn every_check_can_be_failed() {
    let behaviours = Fault::ALL.iter().flat_map(|fault| fault.found_by());
    let mut found: BTreeSet<String> = behaviours.map(|name| (*name).to_owned()).collect();
    let all = list();
    let vectors = |folder: &str| -> Vec<&str> {
        let names = all.iter().map(|(name, ..)| name.as_str());
        names.filter(|name| name.starts_with(folder)).collect()
    };
    for fault in [
        Fault::AgreesToAll,
        Fault::RefusesAll,
        Fault::SilentAtTooLarge,
    ] {
        found.extend(failed(Model::new(Some(fault)), &vectors("requests/")));
        found.extend(failed(Model::dev(fault), &vectors("dev")));
    }
    let liar = Model::new(Some(Fault::TakesAnyLine));
    found.extend(failed(liar, &vectors("handshake/")));
    let never: Vec<_> = all
        .iter()
        .filter(|(name, ..)| !found.contains(name))
        .collect();
    assert!(never.is_empty(), "nothing fails {never:?}");
    assert!(all.len() > 200, "{} checks", all.len());
}

#[test]
fn what_may_not_be_done_is_not_done() {
    let nothing = Options::default();
    let report = report_on(Model::new(None), Deadlines::default(), &nothing);
    assert_eq!(report.verdict, Verdict::Incomplete);
    for check in &report.checks {
        let is_passed = check.outcome == Outcome::Passed;
        let changes = [
            "sleep/",
            "handshake/",
            "watch/sleep",
            "watch/wake",
            "requests/sleep",
            "requests/wake",
        ];
        let changes = changes.iter().any(|begin| check.name.starts_with(begin));
        assert_eq!(
            is_passed,
            !changes && !check.name.starts_with("dev"),
            "{check:?}"
        );
    }
    // A fault in what is tried without leave counts all the same.
    let report = report_on(
        Model::new(Some(Fault::OtherProtocol)),
        Deadlines::default(),
        &nothing,
    );
    assert_eq!(report.verdict, Verdict::Fails);
}

#[test]
fn what_is_only_recommended_does_not_decide() {
    let only = ["answers/many-connections", "answers/hello"];
    let report = report_on(
        Model::new(Some(Fault::FewConnections)),
        Deadlines::all(Duration::from_secs(2)),
        &options(&only),
    );
    assert_eq!(report.recommended.failed, 1);
    assert_eq!(report.verdict, Verdict::Conforms);
    let level = report.checks.iter().find(|check| check.name == only[0]);
    assert_eq!(level.unwrap().level, Level::Recommended);
}

#[test]
fn nobody_to_be_looked_at_is_an_error() {
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.until_closed();
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let deadlines = Deadlines::all(Duration::from_millis(300));
    let endpoint = Endpoint::unix(agent.path());
    let (dialer, options) = (Dialer::new(), options(&[]));
    let report = run(&dialer, &endpoint, &deadlines, &options);
    assert!(runtime.block_on(report).is_err());
}
