//! What takes more than one connection, or time.
#![expect(
    clippy::indexing_slicing,
    reason = "a field that a JSON value does not have is null, which nothing here expects"
)]

mod answering;
mod dev;
pub(crate) mod sleeping;
mod watching;

use crate::check::{Agent, Check, Checking, Need};
use crate::conversation::Fault;
use crate::report::Level;

/// What a fault begins with that is none: the agent has nothing on which this could be tried.
pub(crate) const NOT_HERE: &str = "not here: ";

/// One behaviour: its name, whether it is required, what it needs, what is expected, and how it is
/// tried.
struct Behaviour {
    name: &'static str,
    level: Level,
    about: &'static str,
    is_slow: bool,
    run: for<'a> fn(&'a Agent) -> Checking<'a>,
}

/// Declares the behaviours of a module.
macro_rules! behaviours {
    ($($(#[$kind:ident])? $level:ident $run:ident: $name:literal, $about:literal;)*) => {
        pub(super) fn all() -> Vec<crate::behaviours::Behaviour> {
            vec![$(crate::behaviours::Behaviour {
                name: $name,
                level: crate::report::Level::$level,
                about: $about,
                is_slow: behaviours!(@ $($kind)?),
                run: |agent| Box::pin($run(agent)),
            }),*]
        }
    };
    (@ slow) => { true };
    (@) => { false };
}
use behaviours;

pub(crate) fn all<'a>() -> Vec<Check<'a>> {
    let sleeping = vec![Need::Disposable];
    let freezing = vec![Need::Disposable, Need::Capability("freeze".into())];
    let groups = [
        ("answers", answering::all(), Vec::new()),
        ("watch", watching::all(), Vec::new()),
        ("watch", watching::of_sleeps(), sleeping.clone()),
        ("sleep", sleeping::all(), sleeping),
        ("sleep", sleeping::of_freezing(), freezing),
        ("dev", dev::all(), vec![Need::Dev]),
    ];
    let groups = groups.into_iter();
    let checks = groups.flat_map(|(group, behaviours, needs)| {
        behaviours.into_iter().map(move |one| Check {
            name: format!("{group}/{}", one.name),
            level: one.level,
            about: one.about.into(),
            needs: needs.clone(),
            is_slow: one.is_slow,
            run: Box::new(one.run),
        })
    });
    checks.collect()
}

/// Passes if it is so.
fn ensure(is_so: bool, else_why: impl FnOnce() -> String) -> Result<(), Fault> {
    if is_so { Ok(()) } else { Err(else_why()) }
}
