//! Why an image could not be built: what was tried, why it failed, and in [`BuildError::hint`] what
//! to do next.

use crate::error::Error;
use mvm_registry::of_system;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why an image could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A program that goes into the image was not found.
    #[error(transparent)]
    Program(#[from] Error),
    /// No kernel was named, and none is installed.
    #[error("no kernel with modules in {} and {}", boot.display(), lib_modules.display())]
    NoKernel {
        /// Where kernels are.
        boot: PathBuf,
        /// Where modules are.
        lib_modules: PathBuf,
    },
    /// A kernel was named whose modules are not where they usually are.
    #[error("cannot find the modules of {}", .0.display())]
    NoModulesFor(PathBuf),
    /// Kernel and modules do not belong together.
    #[error("{} is version {kernel}, its modules in {} are another's", file.display(), modules.display())]
    OtherVersion {
        /// The kernel image.
        file: PathBuf,
        /// Its version.
        kernel: String,
        /// The folder of the modules.
        modules: PathBuf,
    },
    /// A module that is needed is neither there nor built in.
    #[error("no module {name} in {}", folder.display())]
    NoModule {
        /// Which one.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
        /// Whether somebody asked for it, beyond what every guest needs.
        asked: bool,
    },
    /// A kernel module cannot be unpacked.
    #[error("cannot use {}: {reason}", path.display())]
    BadModule {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A program is not statically linked.
    #[error("{} needs shared libraries, which the guest does not have", path.display())]
    NotStatic {
        /// The program.
        path: PathBuf,
        /// How to get a static one.
        hint: &'static str,
    },
    /// A dev build of the agent was asked for, and this is another.
    #[error("{} is the {profile} build of the agent, and not the dev build", path.display())]
    NotDev {
        /// The program.
        path: PathBuf,
        /// What its `--version` says.
        profile: String,
        /// How to get one.
        hint: &'static str,
    },
    /// A file is not what it should be.
    #[error("cannot use {}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The agent refused the drop-ins or settings.
    #[error("the agent finds fault with {}:\n{problems}", etc.display())]
    DropIns {
        /// The folder.
        etc: PathBuf,
        /// A line for each problem.
        problems: String,
    },
    /// Two things would be at one place in the guest.
    #[error("/{0} is in the image already")]
    Collision(String),
    /// A file that would be where the guest mounts something.
    #[error(
        "{path} would not be seen in the guest, which mounts a file system of its own at {folder}"
    )]
    Hidden {
        /// Its place.
        path: String,
        /// Where that is mounted.
        folder: String,
    },
    /// Settings or a drop-in by `--add`.
    #[error("{0} would not be checked")]
    Unchecked(String),
    /// Two services of one name.
    #[error("two services are called {0}")]
    ServiceTwice(String),
    /// Not a place in the guest.
    #[error("{0:?} is no place in the guest: an absolute path without '.' and '..' is asked for")]
    GuestPath(String),
    /// The folder to make is something else already.
    #[error("{} is there already, and is no image folder", .0.display())]
    InTheWay(PathBuf),
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl BuildError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        let hint = match self {
            Self::Program(error) => return error.hint(),
            Self::NoKernel { .. } => {
                "apt-get install linux-image-cloud-amd64; or, without touching /boot: \
                 `apt-get download` the package it depends on, `dpkg-deb -x` it into a folder, and \
                 give --kernel DIR/boot/vmlinuz-…"
            }
            Self::NoModulesFor(_) => "give --modules DIR, a lib/modules/VERSION folder",
            Self::OtherVersion { .. } => "give the kernel and the modules of one package",
            Self::NoModule { asked: true, .. } => {
                "no module of this kernel has that name: `find DIR -name '*.ko*'` in its folder shows them"
            }
            Self::NoModule { .. } => "this kernel cannot run a guest with vsock; give another",
            Self::BadModule { .. } => {
                "install the kernel's package again (apt-get install --reinstall linux-image-…), or \
                 give the modules of a sound one with --modules DIR"
            }
            Self::NotStatic { hint, .. } | Self::NotDev { hint, .. } => hint,
            Self::DropIns { .. } => "mend these files; the guest would leave them out",
            Self::InTheWay(_) => "remove it, or give another --out",
            Self::BadFile { .. } => "give another file, or mend this one",
            Self::Collision(_) => "leave it out of --add and --etc, or give it another place",
            Self::Hidden { .. } => "give it another place, such as one below /srv or /var/lib",
            Self::Unchecked(_) => {
                "put it into a folder with agent.json, integrations.d and probes.d, and give that with --etc"
            }
            Self::ServiceTwice(_) => "give each a name of its own: --service NAME=COMMAND",
            Self::GuestPath(_) => "write it as in --add FILE:/srv/FILE",
            // Some distributions have kernels that root alone may read.
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as a user who may do that, or give a copy of that file that you may read"
            }
            Self::Io { source, .. } => of_system(source),
        };
        hint.to_owned()
    }
}
