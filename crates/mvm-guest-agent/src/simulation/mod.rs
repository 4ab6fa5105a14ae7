//! The agent in a simulation: its own driver, core, sessions, journal and wire, over in-memory
//! connections; a clock and commands that a script moves; and beside it a model that says what it
//! has to do.
//!
//! ```text
//!            transitions
//!   proptest ─────┬──▶ model  what it says is compared with what is seen …
//!                 │                                   │
//!                 └──▶ host ──socket──▶ session ──▶ driver ──▶ core
//!                      host ──socket──▶ session ──▶   │          … and here
//!                                                     └──▶ machine: clock, commands, steps
//! ```
//!
//! Time is the runtime's own, which stands still while anything can happen and jumps to the next
//! deadline when nothing can. So ten minutes of lease take no time, and every run is the same.

mod agent;
mod machine;
mod model;
mod transition;

use agent::Agent;
use model::Model;
use mvm_protocol::status::Health;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use transition::{Expect, SleepAsked, Transition, WakeAsked};

struct AgentTest;

impl StateMachineTest for AgentTest {
    type SystemUnderTest = Agent;
    type Reference = Model;

    fn init_test(_: &Model) -> Agent {
        Agent::new()
    }

    fn apply(mut agent: Agent, model: &Model, transition: Transition) -> Agent {
        let seen = agent.checks_run();
        match transition {
            Transition::Sleep { host, asked } => agent.ask(host, &asked.to_json(host)),
            Transition::Wake { host, asked } => agent.ask(host, &asked.to_json()),
            Transition::Check { host } => agent.ask(host, CHECK),
            Transition::Lose { host, half_a_frame } => agent.lose(host, half_a_frame),
            Transition::End(outcome) => agent.end(outcome),
            Transition::Pass { secs } => agent.pass(secs),
            Transition::Jump => agent.jump(),
            Transition::Crash => agent.crash(),
        }
        let answers: Vec<Expect> = model.answers.iter().map(|(_, expect)| *expect).collect();
        let hosts: Vec<usize> = model.answers.iter().map(|(host, _)| *host).collect();
        assert_eq!(agent.answers(&hosts), answers, "answers to hosts {hosts:?}");
        for host in 0..model::HOSTS {
            assert_eq!(agent.stray_answer(host), None, "host {host} has not asked");
        }
        assert_eq!(agent.doing(), model.doing, "what is under way");
        let status = agent.status();
        assert_eq!(status.lifecycle, model.phase);
        for one in &status.integrations {
            let starting = one.health == Health::Starting && one.last_check.is_none();
            assert!(starting || !model.was_frozen(), "{one:?}");
            assert!(one.since <= status.now.unwrap(), "{one:?}");
        }
        let journal = agent.journal();
        let mut owed = journal.owed.clone();
        owed.sort();
        assert_eq!(owed, model.owed(), "the journal's debts");
        assert_eq!(journal.asleep, model.phase != model::RUNNING);
        assert_eq!(journal.generation, model.generation);
        agent.keeps_its_promises(model.phase);
        if !model.may_check {
            assert_eq!(agent.checks_run(), seen, "a check ran in {:?}", model.phase);
        }
        agent
    }
}

const CHECK: &str = r#"{"type":"check","kind":"integration","name":"a"}"#;

prop_state_machine! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(128) })]

    #[test]
    fn the_agent_does_what_the_model_says(sequential 1..80 => AgentTest);
}

/// The steps that a random walk takes seldom, one after the other.
#[test]
fn the_model_and_the_agent_agree_on_a_snapshot_that_is_cloned() {
    use mvm_protocol::lifecycle::Outcome::Ok;
    let asked = SleepAsked {
        lease_ms: 9500,
        deadline_ms: 8500,
    };
    let restored = WakeAsked {
        token: Some(0),
        restored: true,
        tells_time: true,
    };
    let mut walk = vec![Transition::Sleep { host: 0, asked }];
    walk.extend([const { Transition::End(Ok) }; 7]);
    walk.push(Transition::Pass { secs: 3 });
    walk.push(Transition::Wake {
        host: 0,
        asked: restored,
    });
    walk.extend([const { Transition::End(Ok) }; 10]);
    walk.push(Transition::Pass { secs: 3 });
    let mut model = Model::default();
    let mut agent = AgentTest::init_test(&model);
    for transition in walk {
        assert!(Model::preconditions(&model, &transition), "{transition:?}");
        model = Model::apply(model, &transition);
        agent = AgentTest::apply(agent, &model, transition);
    }
    assert_eq!((model.phase, model.generation), (model::RUNNING, 1));
    assert_eq!(model.answers, [], "all were given before");
    // Each interval is a second.
    agent.has_checked_within(3);
}
