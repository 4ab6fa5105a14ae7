//! What a guest answers beside its watch, and may be older than what that has told.

use crate::input::AgentEvent;
use crate::script::{Script, integration, status, worker};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Change;
use mvm_protocol::status::Health;

#[test]
fn an_answer_from_before_makes_no_guest_idle_that_works() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 40);
    // It is asked, is about to answer, and begins to work.
    let since = Timestamp(script.guest_time().0 - 40_000);
    let idle = status(worker(false, since));
    let busy = worker(true, script.guest_time());
    script.event("web-1", Change::Worker { worker: busy });
    script.agent("web-1", AgentEvent::AskedStatus(&idle));
    assert_eq!(script.told(), "web-1 busy");
    script.heartbeat("web-1");
    assert_eq!(script.told(), "web-1 busy");
}

#[test]
fn an_answer_from_before_brings_no_guest_back_that_is_lost() {
    let mut script = Script::running(&["web-1"]);
    let idle = status(worker(false, script.guest_time()));
    script.agent("web-1", AgentEvent::Status(&idle));
    script.agent("web-1", AgentEvent::Lost);
    script.agent("web-1", AgentEvent::AskedStatus(&idle));
    assert_eq!(script.told(), "web-1 unknown");
}

#[test]
fn it_tells_what_integrations_there_are() {
    let mut script = Script::running(&["web-1"]);
    let mut told = status(worker(false, script.guest_time()));
    told.integrations = vec![integration("db", Health::Starting)];
    told.health = Health::Starting.into();
    script.agent("web-1", AgentEvent::Status(&told));
    assert_eq!(script.told(), "web-1 starting");
    // The one that nobody has checked yet is gone.
    told.integrations = vec![integration("web", Health::Healthy)];
    script.agent("web-1", AgentEvent::AskedStatus(&told));
    assert_eq!(script.told(), "web-1 idle 0");
}
