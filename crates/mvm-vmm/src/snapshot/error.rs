//! Why a snapshot folder cannot be used, or made, and what to do about it.

use super::{MANIFEST, VERSION, is_absent};
use mvm_protocol::object::Problem;
use mvm_registry::of_system;
use std::io;
use std::path::PathBuf;
use thiserror::Error as ThisError;

/// Why a snapshot folder cannot be used, or made.
#[derive(Debug, ThisError)]
pub enum SnapshotError {
    /// The folder or its manifest cannot be read.
    #[error("{} is no snapshot: cannot read its {MANIFEST}: {source}", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of it cannot be read, which says nothing about what is in it.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is not as it should be.
    #[error("{}, line {}: {}", path.display(), problem.line, problem.message)]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, and where.
        problem: Problem,
    },
    /// Its version is another one.
    #[error("{} has version {found}; this mvmctl reads versions 1 and {VERSION}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version that it has.
        found: u32,
    },
    /// The manifest does not go together.
    #[error("{}: {reason}", path.display())]
    Contradiction {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was taken with a VMM that is not known here.
    #[error("{} was written by {vmm:?}, and this mvmctl knows {known}", folder.display())]
    OtherVmm {
        /// The folder.
        folder: PathBuf,
        /// What its manifest names.
        vmm: String,
        /// The backends that there are.
        known: String,
    },
    /// A file is not what the manifest says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        reason: String,
    },
    /// There is something at the place where the snapshot is to be.
    #[error("{} is there already", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
    },
}

impl SnapshotError {
    /// What to do next.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreadable { source, .. } if is_absent(source) => {
                "`mvmctl vm snapshot NAME` says into which folder it wrote".into()
            }
            Self::Unreadable { source, .. } | Self::File { source, .. } => of_system(source).into(),
            Self::Version { .. } | Self::OtherVmm { .. } => {
                "restore it with the mvmctl that took it".into()
            }
            Self::Manifest { .. } | Self::Contradiction { .. } | Self::Damaged { .. } => {
                "the snapshot cannot be trusted: take it again, or copy it again".into()
            }
            Self::Exists { .. } => "choose another folder with --to, or remove that one".into(),
        }
    }
}
