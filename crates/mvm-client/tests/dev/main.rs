//! What dev builds serve, against agents that do as a test says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod commands;
mod files;
mod jobs_and_ports;

use mvm_client::{Deadlines, Endpoint, Session};
use mvm_fake_agent::{FakeAgent, Peer, dev};
use mvm_protocol::dev::exec::{Argv, Exec, Path};
use mvm_protocol::dev::files::Put;
use serde_json::{Value, json};

async fn session(agent: &FakeAgent) -> Session {
    let endpoint = Endpoint::unix(agent.path());
    Session::connect(&endpoint, &Deadlines::default())
        .await
        .unwrap()
}

fn sh(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec::new(Argv::new(words.to_vec()).unwrap())
}

fn put() -> Put {
    Put {
        path: Path::new("/x".into()).unwrap(),
        mode: None,
        name: None,
        archive: None,
    }
}

/// Serves whatever is asked until the client closes: `ping`, or as the test says.
fn serving(serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> FakeAgent {
    FakeAgent::start(dev(move |peer, asked| {
        if asked["type"] == "ping" {
            peer.reply(asked, json!({"type": "pong"}));
        } else {
            serve(peer, asked);
        }
    }))
}
