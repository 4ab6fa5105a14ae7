//! A folder of drop-in files: pieces that a byte `0xff` separates, each a file's name, a newline and
//! its content. A name that begins with `@` is that of a link to the content, with `%` of a FIFO, with
//! `/` of a folder.
//!
//! Each file is loaded or rejected, alone; no two that are loaded have one name; and whatever was
//! loaded, the agent runs with it.

use super::{after, settings};
use crate::core::lifecycle::Journal;
use crate::core::{Action, Core, Event};
use crate::machine::drop_in_dir::load;
use crate::machine::regular_file::Trust;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tokio::runtime::Builder;

/// What lies in the folder.
pub fn drop_in_folder() -> impl FnMut(&[u8]) {
    let runtime = Builder::new_current_thread().build().unwrap();
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("drop-ins");
    move |input| {
        std::fs::create_dir(&folder).unwrap();
        let files = make(&folder, input);
        let none = parent.path().join("none");
        // Each of the two kinds from what is there.
        for (integrations, probes) in [(&folder, &none), (&none, &folder)] {
            let loading = load(integrations.clone(), probes.clone(), Trust::Owner);
            let loaded = runtime.block_on(loading).unwrap();
            let names: Vec<&str> = loaded
                .integrations
                .iter()
                .map(|one| one.name.as_str())
                .chain(loaded.probes.iter().map(|one| one.name.as_str()))
                .collect();
            let different: BTreeSet<_> = names.iter().collect();
            assert_eq!(different.len(), names.len(), "{names:?}");
            assert_eq!(names.len() + loaded.errors.len(), files, "{loaded:?}");
            for error in &loaded.errors {
                assert!(!error.message.contains(char::is_control), "{error:?}");
            }
            let mut core = Core::new(settings(), Journal::default(), after(0));
            core.handle(Event::DropInsLoaded(Ok(loaded)), after(1));
            for seconds in [30, 31, 90] {
                for action in core.handle(Event::Tick, after(seconds)) {
                    if let Action::Run(_, command) = action {
                        assert!(!command.argv.is_empty());
                    }
                }
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Makes the files, and says how many of them are to be read.
fn make(folder: &Path, input: &[u8]) -> usize {
    let mut read = 0;
    for piece in input.split(|byte| *byte == 0xff) {
        let end = piece.iter().position(|byte| *byte == b'\n');
        let (name, content) =
            end.map_or((piece, &[][..]), |end| (&piece[..end], &piece[end + 1..]));
        let kind = name.first().copied();
        let is_special = matches!(kind, Some(b'@' | b'%' | b'/'));
        let name = if is_special { &name[1..] } else { name };
        let path = folder.join(OsStr::from_bytes(name));
        // Below that folder, and a name that can be one.
        if name.contains(&b'/') || path.symlink_metadata().is_ok() {
            continue;
        }
        let made = match kind {
            Some(b'@') => std::os::unix::fs::symlink(OsStr::from_bytes(content), &path).is_ok(),
            Some(b'%') => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).is_ok(),
            Some(b'/') => std::fs::create_dir(&path).is_ok(),
            _ => std::fs::write(&path, content).is_ok(),
        };
        let is_meant = name.ends_with(b".json") && !name.starts_with(b".");
        read += usize::from(made && is_meant);
    }
    read
}
