//! Which microVMs there are on this host, and what each of them is now.
//!
//! ```text
//! inventory   the VMs of $MVM_HOME and those that mvmctl.toml adds          Inventory, Vm
//! state       what a VM is now: one answer                                  VmState
//!   ending    how it ended that nobody stopped                              Ending
//! watch       told when that changes                                        Watch
//! record      vm.json: its one reader and its one writer                    Record, Recorded
//! notes       fleet.json and touched.json: what else is noted of a VM
//! home        folders, and the lock on each VM                              Home, VmFolder, Lock, Places
//! trust       whose records count: root's and one's own
//! process     pidfds: a pid is never taken for another process's            Process, Alive
//! listener    who listens on a Unix socket
//! ask         what a VMM is asked, by whoever knows VMMs                       AskVmm
//! name, labels, endpoint, settings: what users write
//! ```
//!
//! Everybody who wants to know what a VM is asks this crate: those who dial it, those who start and
//! stop it, those who list it. It knows neither how a VM is started nor what its agent says. What its
//! VMM says of it, whoever knows VMMs asks for it ([`AskVmm`]).

mod ask;
mod ending;
mod endpoint;
mod error;
mod files;
mod home;
mod inventory;
mod judge;
mod labels;
mod listener;
mod name;
pub mod notes;
mod process;
pub mod record;
mod settings;
pub mod state;
mod trust;
mod unreadable_dir;
mod watch;

pub use ask::AskVmm;
pub use ending::Ending;
pub use endpoint::{Address, Endpoint};
pub use error::{Error, Unreachable, of_system};
pub use files::{make_private, open_regular, read_bounded, write_whole};
pub use home::{Home, Lock, Places, VmFolder};
pub use inventory::{Candidate, Candidates, Inventory, Listing, Vm};
pub use labels::{Label, Labels, POOL, Selector};
pub use listener::{has_open, listed, open_connections};
pub use name::{VmName, nearest};
pub use notes::Notes;
pub use process::{Alive, GONE, Process, Role, boot_id};
pub use record::{Record, Recorded};
pub use state::{Pause, Untold, VmState};
pub use unreadable_dir::UnreadableDir;
pub use watch::{Change, Known, Watch};
