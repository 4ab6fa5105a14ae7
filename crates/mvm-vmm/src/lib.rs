//! Starting and stopping microVMs, and building guests for them.
//!
//! ```text
//! machine     start and stop: what is common to all backends
//!   driver    the seam: one file a VMM                 firecracker/, cloud_hypervisor/, qemu/, local
//!   microvm   what the first two have in common        http, vmlinux, unpack
//!   launch    processes while a VM is being started    ended again unless it succeeds
//!   process   programs that outlive this one
//!   making    a VM that is made under its lock        gone again unless it succeeds
//! removal     VMs that go, and what was left of some
//! snapshot    a snapshot's folder: written, named, read, checked
//! pause       a VM that stands still, and runs on
//! suspend     taking a snapshot of a VM, and starting one from it
//!   emulated  how many emulated guests do the latter at once
//! image       manifest.json and the files that it names
//! build/      making an image: modules, init scripts, cpio
//! brief       programs that are run for what they say
//! doctor/     what is in the way of starting VMs here
//! socket      Unix sockets at paths of any length
//! locate      where programs are
//! hint        what to do about a failure
//! ```
//!
//! Which VMs there are, what each is, and `vm.json` are `mvm-registry`'s. Nothing here knows what the agent says, beyond the line on the console with which it tells that
//! it listens. Everything blocks; an async caller runs it on a thread of its own.

mod brief;
pub mod build;
pub mod cloud_hypervisor;
pub mod console;
pub mod deadline;
mod detach;
pub mod doctor;
pub mod driver;
mod emulated;
pub mod error;
pub mod firecracker;
mod hint;
pub mod http;
pub mod image;
pub mod launch;
mod leftovers;
pub mod local;
pub mod locate;
pub mod machine;
mod making;
mod manifest;
mod microvm;
pub mod pause;
pub mod process;
pub mod qemu;
pub mod removal;
pub mod snapshot;
pub mod socket;
mod sparse;
pub mod suspend;
mod unpack;
mod vmlinux;

pub use deadline::Deadline;
pub use detach::detach;
pub use driver::Vmms;
pub use error::Error;
pub use image::Image;
pub use machine::{Spec, Starting, Stop, Stopped};
pub use mvm_registry::{Home, Record, Recorded, VmFolder, VmName};
pub use snapshot::{Snapshot, Verify};
