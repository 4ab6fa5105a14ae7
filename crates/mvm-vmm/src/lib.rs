//! Starting and stopping microVMs, and building guests for them.
//!
//! ```text
//! machine     start, stop, remove: what is common to all backends
//!   driver    the seam: one file a VMM                 firecracker/, cloud_hypervisor/, qemu/, local
//!   microvm   what the first two have in common        http, vmlinux
//!   launch    processes while a VM is being started    ended again unless it succeeds
//!   process   pidfds: a pid is never taken for another process's
//! record      $MVM_HOME/vms/<name>/: vm.json, locks
//! snapshot    a snapshot's folder: written, named, read, checked
//! suspend     taking a snapshot of a VM, and starting one from it
//! image       manifest.json and the files that it names
//! build/      making an image: modules, init scripts, cpio
//! brief       programs that are run for what they say
//! doctor/     what is in the way of starting VMs here
//! socket      Unix sockets at paths of any length
//! locate      where programs are
//! ```
//!
//! Nothing here knows what the agent says, beyond the line on the console with which it tells that
//! it listens. Everything blocks; an async caller runs it on a thread of its own.

mod brief;
pub mod build;
pub mod cloud_hypervisor;
pub mod console;
pub mod doctor;
pub mod driver;
pub mod error;
pub mod firecracker;
pub mod http;
pub mod image;
pub mod launch;
pub mod local;
pub mod locate;
pub mod machine;
mod manifest;
mod microvm;
pub mod process;
pub mod qemu;
pub mod record;
pub mod snapshot;
mod socket;
pub mod suspend;
mod vmlinux;

pub use error::Error;
pub use image::Image;
pub use launch::Deadline;
pub use machine::{Spec, Starting, Stop, Stopped};
pub use record::{Home, Record, State, VmFolder, VmName};
pub use snapshot::{Snapshot, Verify};
