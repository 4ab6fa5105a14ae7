//! Everything that touches the machine: processes, cgroups, files, clocks, sockets, `/proc`. It does
//! what it is told and reports the outcome. It knows neither requests nor hosts, and never why
//! something is to be done.

mod calls;
pub(crate) mod cgroup;
mod cgroup_watch;
pub(crate) mod children;
pub(crate) mod clock;
pub(crate) mod command;
pub(crate) mod console;
pub(crate) mod descriptors;
pub(crate) mod drop_in_dir;
pub(crate) mod drop_in_watch;
pub(crate) mod end_mark;
mod execve;
mod fork;
pub(crate) mod freezer;
pub(crate) mod hypervisor_clock;
pub(crate) mod identity;
pub(crate) mod inherited;
pub(crate) mod inhibit;
pub(crate) mod interface;
pub(crate) mod journal;
pub(crate) mod kernel_log;
mod lifecycle_env;
mod links;
pub(crate) mod local;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
mod main_stack;
pub(crate) mod marks;
pub(crate) mod mounts;
pub(crate) mod outcome;
pub(crate) mod polled;
pub(crate) mod proc;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod regular_file;
pub(crate) mod run_dir;
pub(crate) mod samples;
#[cfg(target_arch = "x86_64")]
mod shared_start;
pub(crate) mod steps;
pub(crate) mod stream;
mod stuck;
pub(crate) mod system;
pub(crate) mod turns;
pub(crate) mod uevents;
pub(crate) mod users;
pub(crate) mod vsock;
pub(crate) mod workload;
