//! What a guest lacks, or what is done to it: its agent stays, says what is amiss, and goes on when it is
//! over.
//!
//! ```text
//! given    what the guest is not given: processes, memory, a run folder, the right time
//! full     disks that are full or may not be written
//! hung     a filesystem that does not answer: what waits for it is stuck in the kernel
//! hosts    more hosts, slower ones and more of their output than there is room for
//! killed   an agent that is killed at random moments
//! ```

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod full;
mod given;
mod hosts;
mod hung;
mod killed;

use mvm_guest_tests::TestVm;
use mvm_protocol::dev::exec::{Argv, Exec};
use serde_json::Value;

/// By which an agent that was started anew is told from the one before.
async fn agent_pid(vm: &TestVm) -> u32 {
    vm.session().await.inspect().await.unwrap().agent.pid
}

/// Has these integrations loaded as well.
async fn write_integrations(vm: &TestVm, integrations: &[Value]) {
    let files = integrations.iter().map(|drop_in| {
        let name = drop_in["name"].as_str().unwrap();
        format!("echo '{drop_in}' >/etc/mvm/integrations.d/{name}.json; ")
    });
    vm.sh(&files.collect::<Vec<_>>().concat()).await;
    vm.session().await.reload().await.unwrap();
}

fn shell(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec::new(Argv::new(words.to_vec()).unwrap())
}
