//! The run directory: `journal.json`, and after a byte `0xff` each `generation` and `frozen`.
//!
//! Whatever they say, an agent comes up, and pays what can be paid; and a journal that is read is read
//! the same when it is written again.

use super::{after, settings};
use crate::core::lifecycle::{Done, Journal};
use crate::core::registry::Loaded;
use crate::core::{Action, Core, Event};
use crate::machine::journal::Files;
use mvm_protocol::drop_in;
use mvm_protocol::lifecycle::Outcome;

/// The content of the files.
pub fn journal() -> impl FnMut(&[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let files = Files::new(folder.path());
    let loaded = loaded();
    move |input| {
        // It is removed when the target is.
        let _ = &folder;
        let names = ["journal.json", "generation", "frozen"];
        let mut contents = input.splitn(names.len(), |byte| *byte == 0xff);
        for name in names {
            match contents.next() {
                Some(content) => std::fs::write(files.path(name), content).unwrap(),
                None => drop(std::fs::remove_file(files.path(name))),
            }
        }
        // Of a list that cannot be read nothing is known.
        if let Ok(frozen) = files.frozen() {
            assert!(frozen.len() <= input.len());
        }
        let journal = files.read();
        files.keep(&journal).unwrap();
        assert_eq!(files.read(), journal);
        start(journal, &loaded);
    }
}

/// An agent that starts, and whose steps all succeed: it ends up with a guest that runs.
fn start(journal: Journal, loaded: &Loaded) {
    let mut core = Core::new(settings(), journal, after(0));
    let mut seconds = 0;
    let mut events = vec![Event::DropInsLoaded(Ok(loaded.clone()))];
    while let Some(event) = events.pop() {
        seconds += 1;
        assert!(seconds < 100, "it comes to no end");
        for action in core.handle(event, after(seconds)) {
            if let Action::Step(_) = action {
                events.push(Event::StepDone(Done {
                    outcome: Outcome::Ok,
                    duration_ms: 0,
                    detail: None,
                }));
            }
        }
    }
    let status = core.status(std::time::Duration::ZERO, after(seconds));
    assert_eq!(status.lifecycle, mvm_protocol::status::Lifecycle::Running);
}

fn loaded() -> Loaded {
    let read = |name: &str| {
        let text = format!(r#"{{"name":"{name}","checkpoint_cmd":"true","restore_cmd":"true"}}"#);
        drop_in::read(text.as_bytes()).unwrap()
    };
    Loaded {
        integrations: vec![read("db"), read("web")],
        ..Loaded::default()
    }
}
