//! Reads a folder of drop-in files. Each is rejected alone; the rest stand.

use super::descriptors::is_shortage;
use super::regular_file::{Link, Trust, read_regular};
use crate::core::registry::Loaded;
use mvm_protocol::drop_in::{self, DropIn, MAX_FILE};
use mvm_protocol::object::{Problem, in_one_line};
use mvm_protocol::status::DropInError;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// Reads both folders. Other work goes on in between.
///
/// # Errors
///
/// Descriptors or memory are lacking: that says nothing of what is in the folders.
pub(crate) async fn load(
    integrations: PathBuf,
    probes: PathBuf,
    trust: Trust,
) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    loaded.integrations = read_folder(&integrations, trust, &mut loaded.errors).await?;
    loaded.probes = read_folder(&probes, trust, &mut loaded.errors).await?;
    Ok(loaded)
}

async fn read_folder<T: DropIn>(
    dir: &Path,
    trust: Trust,
    errors: &mut Vec<DropInError>,
) -> io::Result<Vec<T>> {
    let mut reject = |file: &Path, message: String| {
        errors.push(DropInError {
            file: file.to_string_lossy().into_owned(),
            message,
        });
    };
    let files = match list(dir) {
        Ok(files) => files,
        Err(error) if is_shortage(&error) => return Err(error),
        Err(error) => {
            reject(dir, format!("cannot be read: {error}"));
            return Ok(Vec::new());
        }
    };
    let mut loaded: Vec<T> = Vec::with_capacity(files.len());
    let mut names: HashMap<String, PathBuf> = HashMap::with_capacity(files.len());
    for (count, file) in files.iter().enumerate() {
        if count % 64 == 63 {
            tokio::task::yield_now().await;
        }
        let read = match read_regular(file, Link::Followed, trust, MAX_FILE) {
            Err(error) if is_shortage(&error) => return Err(error),
            Err(error) => Err(error.to_string()),
            Ok(content) => drop_in::read::<T>(&content).map_err(|problem| at_line(&problem)),
        };
        match read {
            Err(message) => reject(file, message),
            Ok(drop_in) => {
                if let Some(first) = names.get(drop_in.name()) {
                    let message = format!(
                        "the name `{}` is taken by {}, which comes first",
                        drop_in.name(),
                        in_one_line(&first.to_string_lossy())
                    );
                    reject(file, message);
                } else {
                    names.insert(drop_in.name().to_owned(), file.clone());
                    loaded.push(drop_in);
                }
            }
        }
    }
    Ok(loaded)
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::Mode;
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
            let loaded = loaded.unwrap();
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
        assert_eq!(loaded.unwrap(), Loaded::default());
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
    async fn a_files_name_has_no_control_characters_in_a_message() {
        let folder = Folder::new();
        for name in ["\u{1b}[2J.json", "a.json"] {
            folder.write(name, r#"{"name":"web"}"#);
        }
        let (_, errors) = folder.load().await;
        let [(_, message)] = &errors[..] else {
            panic!("{errors:?}");
        };
        assert!(
            message.contains("/\u{fffd}[2J.json, which comes first"),
            "{message}"
        );
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
