//! The files of an image, read out of it by other tools than those that wrote it, where there are.

use cpio::newc;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Kind and permissions.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// When it was changed, in seconds since the epoch.
    pub mtime: i64,
    /// A file's content, or where a link leads.
    pub content: Vec<u8>,
}

impl Entry {
    /// The content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

/// Paths without a leading slash, and what is there.
#[derive(Debug, Clone, Default)]
pub struct Files(pub BTreeMap<String, Entry>);

impl Files {
    /// The files of an initrd, compressed or not.
    pub fn of_initrd(file: &Path) -> Self {
        let mut bytes = fs::read(file).expect("read the initrd");
        if bytes.starts_with(b"\x1f\x8b") {
            let unpacked = Command::new("gzip").arg("-dc").arg(file).output();
            bytes = unpacked.expect("run gzip").stdout;
        }
        let mut files = BTreeMap::new();
        let mut rest = bytes.as_slice();
        loop {
            let mut reader = newc::Reader::new(rest).expect("an archive");
            let entry = reader.entry();
            if entry.is_trailer() {
                return Self(files);
            }
            let path = entry.name().to_owned();
            let mut found = Entry {
                mode: entry.mode(),
                owner: (entry.uid(), entry.gid()),
                mtime: entry.mtime().into(),
                content: Vec::new(),
            };
            std::io::copy(&mut reader, &mut found.content).expect("read the archive");
            let again = files.insert(path.clone(), found);
            assert!(again.is_none(), "{path} is there twice");
            rest = reader.finish().expect("read the archive");
        }
    }

    /// The files of an erofs image.
    pub fn of_erofs(image: &Path) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let mut extract = std::ffi::OsString::from("--extract=");
        extract.push(folder.path().join("root"));
        let output = Command::new("fsck.erofs").arg(extract).arg(image).output();
        let output = output.expect("run fsck.erofs");
        assert!(output.status.success(), "{output:?}");
        Self::below(&folder.path().join("root"))
    }

    /// The files of an ext4 image, which has to be sound.
    pub fn of_ext4(image: &Path) -> Self {
        let sound = Command::new("/usr/sbin/e2fsck")
            .arg("-fn")
            .arg(image)
            .output();
        let sound = sound.expect("run e2fsck");
        assert!(sound.status.success(), "{sound:?}");
        let folder = tempfile::tempdir().expect("make a folder");
        let dump = format!("rdump / {}", folder.path().display());
        let output = Command::new("/usr/sbin/debugfs")
            .args(["-R", &dump])
            .arg(image)
            .output();
        assert!(output.expect("run debugfs").status.success());
        fs::remove_dir(folder.path().join("lost+found")).expect("mke2fs makes it");
        Self::below(folder.path())
    }

    fn below(folder: &Path) -> Self {
        let mut files = Self::default();
        files.walk(folder, "");
        files
    }

    fn walk(&mut self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).expect("read a folder") {
            let path = entry.expect("read a folder").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let name = format!("{prefix}{name}");
            let metadata = fs::symlink_metadata(&path).expect("look at a file");
            let content = if metadata.is_symlink() {
                let to = fs::read_link(&path).expect("read a link");
                to.to_string_lossy().into_owned().into_bytes()
            } else if metadata.is_file() {
                fs::read(&path).expect("read a file")
            } else {
                Vec::new()
            };
            if metadata.is_dir() {
                self.walk(&path, &format!("{name}/"));
            }
            let found = Entry {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                mtime: metadata.mtime(),
                content,
            };
            self.0.insert(name, found);
        }
    }

    /// A file's text.
    pub fn text(&self, path: &str) -> String {
        let found = self.0.get(path);
        found.unwrap_or_else(|| panic!("there is no {path}")).text()
    }

    /// All paths.
    pub fn paths(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
