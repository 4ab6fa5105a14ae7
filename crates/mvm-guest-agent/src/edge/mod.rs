//! All that touches the world: sockets, processes, clocks, files. The edge does what the core says
//! and reports what came of it; it never knows why something is to be done.

pub(crate) mod cgroup;
pub(crate) mod children;
pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod console;
pub(crate) mod driver;
pub(crate) mod drop_in_dir;
pub(crate) mod drop_in_watch;
pub(crate) mod encode;
pub(crate) mod identity;
pub(crate) mod inherited;
pub(crate) mod inhibit;
pub(crate) mod journal;
pub(crate) mod listener;
pub(crate) mod mounts;
pub(crate) mod notify;
pub(crate) mod polled;
pub(crate) mod proc;
pub(crate) mod process;
pub(crate) mod run_dir;
pub(crate) mod samples;
pub(crate) mod session;
pub(crate) mod steps;
pub(crate) mod stream;
pub(crate) mod system;
pub(crate) mod users;
pub(crate) mod watchers;
pub(crate) mod world;
