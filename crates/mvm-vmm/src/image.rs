//! The image folder: `manifest.json` beside the files that it names.
//!
//! The manifest is read strictly. An image comes from a build that may be of another version than
//! this `mvmctl`; a key that would be ignored, or a file that is missing, has to be told before a
//! VMM is started, not by a guest that does not come up.

use crate::manifest::{self, Wrong};
use mvm_protocol::object::Problem;
use mvm_registry::of_system;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The manifest's name in its folder.
pub const MANIFEST: &str = "manifest.json";

/// The manifest's version that is written and read.
pub const VERSION: u32 = 1;

/// What `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The kernel's file name.
    pub kernel: String,
    /// The initrd's file name, if there is one.
    pub initrd: Option<String>,
    /// The root file system, if there is one.
    pub rootfs: Option<Rootfs>,
    /// The guest's part of the kernel command line; the VMM's part is added by its driver.
    pub cmdline: String,
    /// The agent in the guest.
    pub agent: Agent,
}

/// A root file system as one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Its file name.
    pub file: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: RootfsKind,
}

/// The file systems that a guest can have as its root. The VMM attaches either read-only: the file
/// is the image's, and other VMs run from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootfsKind {
    /// Read-only, compressed.
    Erofs,
    /// Read by kernels that do not know erofs.
    Ext4,
}

/// Which agent the image has, and where it listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// As `mvm-guest-agent --version` gave it.
    pub version: String,
    /// `prod` or `dev`.
    pub profile: String,
    /// The vsock port that it listens on.
    pub port: u32,
}

/// An image folder whose manifest is sound and whose files are there.
#[derive(Debug, Clone)]
pub struct Image {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// What its manifest says.
    pub manifest: Manifest,
}

/// Why an image folder cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The folder or its manifest cannot be read.
    #[error("{} is no image folder: cannot read its {MANIFEST}: {source}", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
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
    #[error("{} has version {found}; this mvmctl reads version {VERSION}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version that it has.
        found: u32,
    },
    /// A key names something that is no file of the folder.
    #[error("{} names {file:?} as its {key}: {reason}", path.display())]
    File {
        /// The manifest.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What it names.
        file: String,
        /// Why that cannot be used.
        reason: String,
    },
}

impl ImageError {
    /// What to do next.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreadable { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                "`mvmctl image build --out DIR` makes one".into()
            }
            Self::Unreadable { source, .. } => of_system(source).into(),
            Self::Version { .. } => "build the image again with this mvmctl".into(),
            Self::Manifest { .. } | Self::File { .. } => {
                "build the image again, or mend its manifest.json".into()
            }
        }
    }
}

impl Image {
    /// Reads and checks an image folder.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Unreadable {
            folder: folder.to_owned(),
            source,
        };
        // Absolute, since the VMM runs in the VM's own folder.
        let folder = std::path::absolute(folder).map_err(unreadable)?;
        let path = folder.join(MANIFEST);
        let content = std::fs::read(&path).map_err(unreadable)?;
        let manifest = read_manifest(&path, &content)?;
        let image = Self { folder, manifest };
        let named = [
            ("kernel", Some(&image.manifest.kernel)),
            ("initrd", image.manifest.initrd.as_ref()),
            ("rootfs", image.manifest.rootfs.as_ref().map(|r| &r.file)),
        ];
        for (key, file) in named {
            if let Some(file) = file {
                image.check_file(&path, key, file)?;
            }
        }
        Ok(image)
    }

    /// The kernel's path.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join(&self.manifest.kernel)
    }

    /// The initrd's path.
    pub fn initrd(&self) -> Option<PathBuf> {
        let file = self.manifest.initrd.as_ref()?;
        Some(self.folder.join(file))
    }

    /// The root file system's path.
    pub fn rootfs(&self) -> Option<PathBuf> {
        let rootfs = self.manifest.rootfs.as_ref()?;
        Some(self.folder.join(&rootfs.file))
    }

    fn check_file(&self, path: &Path, key: &'static str, file: &str) -> Result<(), ImageError> {
        let unusable = |reason: String| ImageError::File {
            path: path.to_owned(),
            key,
            file: file.to_owned(),
            reason,
        };
        if !is_plain(file) {
            return Err(unusable("the name of a file beside it is asked for".into()));
        }
        let metadata = std::fs::metadata(self.folder.join(file))
            .map_err(|error| unusable(error.to_string()))?;
        if !metadata.is_file() {
            return Err(unusable("it is no regular file".into()));
        }
        Ok(())
    }
}

/// Whether it is the name of a file, and no path to one.
pub(crate) fn is_plain(file: &str) -> bool {
    Path::new(file).file_name() == Some(file.as_ref())
}

fn read_manifest(path: &Path, content: &[u8]) -> Result<Manifest, ImageError> {
    manifest::read(content, VERSION).map_err(|wrong| {
        let path = path.to_owned();
        match wrong {
            Wrong::Shape(problem) => ImageError::Manifest { path, problem },
            Wrong::Version(found) => ImageError::Version { path, found },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{
  "version": 1,
  "kernel": "vmlinux",
  "initrd": "initrd",
  "rootfs": null,
  "cmdline": "init_on_free=1",
  "agent": {"version": "0.1.0", "profile": "prod", "port": 52}
}"#;

    fn folder(manifest: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), manifest).unwrap();
        std::fs::write(folder.path().join("vmlinux"), "k").unwrap();
        std::fs::write(folder.path().join("initrd"), "i").unwrap();
        folder
    }

    fn refusal(manifest: &str) -> String {
        let folder = folder(manifest);
        let text = Image::open(folder.path()).unwrap_err().to_string();
        text.replace(&folder.path().display().to_string(), "IMG")
    }

    #[test]
    fn the_documented_manifest_is_read() {
        let folder = folder(GOOD);
        let image = Image::open(folder.path()).unwrap();
        assert_eq!(image.kernel(), folder.path().join("vmlinux"));
        assert_eq!(image.manifest.agent.port, 52);
        let bare = GOOD.replace("\"initrd\": \"initrd\"", "\"initrd\": null");
        let folder = self::folder(&bare);
        assert_eq!(Image::open(folder.path()).unwrap().initrd(), None);
    }

    #[test]
    fn every_refusal_names_the_culprit() {
        let check = |from: &str, to: &str, expected: &str| {
            let refusal = refusal(&GOOD.replace(from, to));
            assert!(refusal.contains(expected), "{refusal:?} lacks {expected:?}");
        };
        check(
            "\"kernel\"",
            "\"kernal\"",
            "IMG/manifest.json, line 3: unknown field `kernal`",
        );
        check("\"port\"", "\"prot\"", "unknown field `prot`");
        check(
            "  \"cmdline\": \"init_on_free=1\",\n",
            "",
            "missing field `cmdline`",
        );
        check("52", "\"52\"", "line 7: field `agent`");
        check(": 1,", ": 2,\n\"novelty\": 1,", "has version 2");
        check(
            "vmlinux",
            "vmlinux-6",
            "names \"vmlinux-6\" as its kernel: No such file",
        );
        check("vmlinux", "../vmlinux", "the name of a file beside it");
        check("vmlinux", "/vmlinux", "the name of a file beside it");
        check("vmlinux", "..", "the name of a file beside it");
        check("\"vmlinux\"", "\"\"", "the name of a file beside it");
        check(
            "null",
            r#"{"file":"root","type":"btrfs"}"#,
            "unknown variant `btrfs`",
        );
        check(
            "null",
            r#"{"file":"root","type":"erofs"}"#,
            "names \"root\" as its rootfs",
        );
    }

    #[test]
    fn no_folder_is_told_as_such() {
        let error = Image::open(Path::new("/nonexistent/image")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nonexistent/image is no image folder")
        );
        assert!(error.hint().contains("image build"));
    }
}
