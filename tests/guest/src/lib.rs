//! Stories told with real microVMs.
//!
//! ```text
//! parts      what a guest is made of, as `cargo xtask test` names it; when to skip
//! image      the guest of the stories: its services, checks and probes
//! sleeper    the guest of the snapshots' stories
//! waker      the guest of the stories about what is still true after a wake
//! drawer     the guest whose service draws random numbers all the time
//! networked  the guest with a network card, whose service says which address it has
//! bare       the guest of the benchmarks
//! pool       the guest of the stories about a fleet
//! short_path sockets in folders of any depth
//! remote     scripts that are run in a guest from outside
//! machine    one QEMU and its vsock device, driven step by step
//! base       boots that guest once a run, and keeps it as a snapshot
//! vm         TestVm: each test's own clone of it, and what a story does with it
//! mvmctl     the program as a user runs it, with a home of its own
//! systemd    the guest with systemd: a Debian as its users make it
//! tmux       a terminal
//! ```
//!
//! A story of its own takes a second, since its guest does not boot: it continues where the
//! snapshot was taken. Whatever a test starts ends with it, also when it panics; then the console
//! is printed.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod bare;
mod base;
mod drawer;
mod image;
mod machine;
mod mvmctl;
mod networked;
mod parts;
mod pool;
pub mod remote;
mod short_path;
mod sleeper;
mod systemd;
mod tmux;
mod vm;
mod waker;

pub use bare::{AGENT_SOCKET, MOUNT_A_DISK, build_bare};
pub use drawer::{DRAWN, Draw, Drawn, amiss, build_drawer};
pub use image::{build_dev_image, build_image};
pub use mvmctl::{Mvmctl, Run};
pub use networked::{build_networked, qemu_with_card};
pub use parts::{Parts, named, package_file, required};
pub use pool::build_pool;
pub use sleeper::{MACHINE_ID, build_sleeper};
pub use systemd::SystemdVm;
pub use tmux::Tmux;
pub use vm::TestVm;
pub use waker::{build_waker, compute};

use std::time::{Duration, Instant};

/// How long something may take that a guest does at once. Emulated, on a busy machine, at once is
/// a second or two.
pub const SOON: Duration = Duration::from_secs(20);

/// Tries until something is so. Each try is a question to a guest, or a look at the system: nothing
/// that gives an event.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "within {SOON:?} not: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for an answer that `holding` holds up until it has ended. The deadline of the answer counts from
/// then: what holds it up has deadlines of its own, and takes as long as the guest does.
pub async fn held_up<A, H>(
    answer: impl Future<Output = A>,
    holding: impl Future<Output = H>,
) -> (A, H) {
    let released = tokio::sync::Notify::new();
    let late = async {
        released.notified().await;
        tokio::time::sleep(SOON).await;
    };
    let answer = async {
        tokio::select! {
            answer = answer => answer,
            () = late => panic!("no answer within {SOON:?}"),
        }
    };
    let holding = async {
        let held = holding.await;
        released.notify_one();
        held
    };
    tokio::join!(answer, holding)
}
