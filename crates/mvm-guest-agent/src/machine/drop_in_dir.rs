//! Reads a folder of drop-in files. Each is rejected alone; the rest stand.

use crate::core::registry::Loaded;
use mvm_protocol::drop_in::{self, DropIn, MAX_FILE};
use mvm_protocol::object::Problem;
use mvm_protocol::status::DropInError;
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Whether a file's owner and mode count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// In a guest: nobody but root and the agent's own user may be able to write it.
    Owner,
    /// On the machine that builds an image, where files belong to whoever builds.
    Anybody,
}

/// Reads both folders. Other work goes on in between.
pub(crate) async fn load(integrations: PathBuf, probes: PathBuf, trust: Trust) -> Loaded {
    let mut loaded = Loaded::default();
    loaded.integrations = read_folder(&integrations, trust, &mut loaded.errors).await;
    loaded.probes = read_folder(&probes, trust, &mut loaded.errors).await;
    loaded
}

async fn read_folder<T: DropIn>(dir: &Path, trust: Trust, errors: &mut Vec<DropInError>) -> Vec<T> {
    let mut reject = |file: &Path, message: String| {
        errors.push(DropInError {
            file: file.to_string_lossy().into_owned(),
            message,
        });
    };
    let files = match list(dir) {
        Ok(files) => files,
        Err(error) => {
            reject(dir, format!("cannot be read: {error}"));
            return Vec::new();
        }
    };
    let mut loaded: Vec<T> = Vec::with_capacity(files.len());
    let mut names: HashMap<String, PathBuf> = HashMap::with_capacity(files.len());
    for (count, file) in files.iter().enumerate() {
        if count % 64 == 63 {
            tokio::task::yield_now().await;
        }
        let read = read_file(file, trust)
            .and_then(|content| drop_in::read::<T>(&content).map_err(|problem| at_line(&problem)));
        match read {
            Err(message) => reject(file, message),
            Ok(drop_in) => {
                if let Some(first) = names.get(drop_in.name()) {
                    let message = format!(
                        "the name `{}` is taken by {}, which comes first",
                        drop_in.name(),
                        first.display()
                    );
                    reject(file, message);
                } else {
                    names.insert(drop_in.name().to_owned(), file.clone());
                    loaded.push(drop_in);
                }
            }
        }
    }
    loaded
}

/// The `*.json` files of a folder in file-name order; none if there is no folder. As for a shell's
/// glob, a leading dot hides a file: editors and Kubernetes put theirs there.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(b".json") && !bytes.starts_with(b".") {
            files.push(dir.join(name));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn at_line(problem: &Problem) -> String {
    format!("line {}: {}", problem.line, problem.message)
}

/// A file's content, if it is what a drop-in may be. What counts is the file at the end of links.
fn read_file(path: &Path, trust: Trust) -> Result<Vec<u8>, String> {
    // Without NONBLOCK a FIFO would hold the agent until somebody writes to it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("cannot be opened: {}", io::Error::from(error)))?;
    let file = File::from(fd);
    let meta = file
        .metadata()
        .map_err(|error| format!("cannot be read: {error}"))?;
    if !meta.is_file() {
        let kind = meta.file_type();
        let kind = match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        return Err(format!("is {kind}, not a regular file"));
    }
    if trust == Trust::Owner {
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != 0 && meta.uid() != own {
            return Err(format!(
                "belongs to uid {}: a drop-in runs commands, so only root or the agent's own user may own it",
                meta.uid()
            ));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(format!(
                "may be written by others (mode {:04o}): a drop-in runs commands; chmod go-w it",
                meta.mode() & 0o7777
            ));
        }
    }
    let mut content =
        Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0).min(MAX_FILE + 1));
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX) + 1;
    file.take(limit)
        .read_to_end(&mut content)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() > MAX_FILE {
        return Err(format!("is larger than {MAX_FILE} bytes"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
            path
        }

        async fn load(&self) -> (Vec<String>, Vec<(String, String)>) {
            let none = self.0.path().join("none");
            let loaded = load(self.0.path().to_owned(), none, Trust::Owner).await;
            let names = loaded
                .integrations
                .iter()
                .map(|it| it.name.as_str().to_owned())
                .collect();
            let errors = loaded.errors.into_iter().map(|error| {
                let file = Path::new(&error.file).file_name().unwrap();
                (file.to_str().unwrap().to_owned(), error.message)
            });
            (names, errors.collect())
        }

        async fn rejects(&self, file: &str, reason: &str) {
            self.write("good.json", r#"{"name":"good"}"#);
            let (names, errors) = self.load().await;
            assert_eq!(names, ["good"], "the rest stand");
            let [(rejected, message)] = errors.as_slice() else {
                panic!("{errors:?}")
            };
            assert_eq!(rejected, file);
            assert!(message.contains(reason), "{message}");
        }
    }

    #[tokio::test]
    async fn files_are_read_in_the_order_of_their_names() {
        let folder = Folder::new();
        folder.write("20-b.json", r#"{"name":"b"}"#);
        folder.write("10-a.json", r#"{"name":"z"}"#);
        folder.write("readme.txt", "no");
        folder.write(".hidden.json", "no");
        assert_eq!(folder.load().await, (vec!["z".into(), "b".into()], vec![]));
    }

    #[tokio::test]
    async fn a_missing_folder_is_an_empty_one() {
        let loaded = load(
            "/nonexistent/a".into(),
            "/nonexistent/b".into(),
            Trust::Owner,
        )
        .await;
        assert_eq!(loaded, Loaded::default());
    }

    #[tokio::test]
    async fn a_fifo_does_not_hold_the_agent() {
        let folder = Folder::new();
        let fifo = folder.0.path().join("x.json");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        folder.rejects("x.json", "a FIFO").await;
    }

    #[tokio::test]
    async fn links_are_followed_and_loops_are_rejected() {
        let folder = Folder::new();
        let elsewhere = Folder::new();
        let target = elsewhere.write("real.json", r#"{"name":"linked"}"#);
        symlink(target, folder.0.path().join("a.json")).unwrap();
        assert_eq!(folder.load().await.0, ["linked"]);
        std::fs::remove_file(folder.0.path().join("a.json")).unwrap();
        symlink("loop.json", folder.0.path().join("loop.json")).unwrap();
        folder.rejects("loop.json", "symbolic links").await;
    }

    #[tokio::test]
    async fn a_megabyte_is_rejected_and_64_kib_are_not() {
        let folder = Folder::new();
        folder.write("big.json", vec![b' '; 1_000_000]);
        folder.rejects("big.json", "larger than 65536 bytes").await;
        let mut content = r#"{"name":"padded"}"#.to_owned();
        content.push_str(&" ".repeat(MAX_FILE - content.len()));
        let folder = Folder::new();
        folder.write("full.json", content);
        assert_eq!(folder.load().await, (vec!["padded".into()], vec![]));
    }

    #[tokio::test]
    async fn files_that_others_may_write_are_rejected() {
        for mode in [0o664, 0o646] {
            let folder = Folder::new();
            let path = folder.write("open.json", r#"{"name":"open"}"#);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            folder
                .rejects("open.json", "may be written by others")
                .await;
        }
    }

    #[tokio::test]
    async fn wrong_types_are_named_with_their_line() {
        let folder = Folder::new();
        folder.write(
            "bad.json",
            "{\"name\": \"bad\",\n\"health_interval_secs\": \"5s\"}",
        );
        folder
            .rejects("bad.json", "line 2: field `health_interval_secs`")
            .await;
    }

    #[tokio::test]
    async fn the_first_of_two_with_one_name_is_loaded() {
        let folder = Folder::new();
        folder.write("hood.json", r#"{"name":"good","health_cmd":"false"}"#);
        folder
            .rejects("hood.json", "the name `good` is taken by")
            .await;
    }

    #[tokio::test]
    async fn ten_thousand_are_read() {
        let folder = Folder::new();
        for n in 0..10_000 {
            folder.write(&format!("{n:05}.json"), format!("{{\"name\":\"n{n}\"}}"));
        }
        let (names, errors) = folder.load().await;
        assert_eq!((names.len(), errors.len()), (10_000, 0));
    }
}
