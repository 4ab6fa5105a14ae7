//! JSON, YAML and names alone: what programs read.

use super::shown::Shown;
use crate::args::Format;
use crate::commands::Context;
use crate::fleet::{Answered, Fleet, Scope};
use crate::report::{Failure, InData};
use serde::Serialize;

/// An answer with the VM's name in place of its `type`, and what else is known of the VM.
#[derive(Debug, Serialize)]
pub(crate) struct Named<'a, T> {
    pub(crate) vm: &'a str,
    #[serde(flatten)]
    pub(crate) answer: T,
}

/// What stands for one VM in a list.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Entry<'a, T> {
    Answer(Named<'a, T>),
    Failure(InData<'a>),
}

/// Writes what VMs answered: for one VM that was named an object, else a list. The table is made
/// only if one is asked for. If the one VM failed there is no answer to show: its failure is left
/// to the report of the command.
pub(crate) fn fleet<T: Serialize>(
    context: &Context,
    fleet: &Fleet<T>,
    table: impl FnOnce() -> Shown,
) -> Result<(), Failure> {
    if fleet.scope == Scope::One && fleet.only().is_none() {
        return Ok(());
    }
    match context.format {
        Format::Table | Format::Wide => context.ui.print(&table()),
        Format::Name => {
            let names = fleet.answers.iter().map(|one| Shown::line(&one.name));
            context.ui.print(&names.collect())
        }
        Format::Json | Format::Yaml => {
            if let Some((vm, answer)) = fleet.only() {
                return document(context, &Named { vm, answer });
            }
            let entries: Vec<_> = fleet.answers.iter().map(entry_of).collect();
            document(context, &entries)
        }
    }
}

/// Writes what is known of one VM that was named.
pub(crate) fn one(
    context: &Context,
    vm: &str,
    answer: &impl Serialize,
    table: impl FnOnce() -> Shown,
) -> Result<(), Failure> {
    match context.format {
        Format::Table | Format::Wide => context.ui.print(&table()),
        Format::Name => context.ui.print(&Shown::line(vm)),
        Format::Json | Format::Yaml => document(context, &Named { vm, answer }),
    }
}

/// The same for programs alone, where people are told nothing if all went well.
pub(crate) fn one_for_programs(
    context: &Context,
    vm: &str,
    answer: &impl Serialize,
) -> Result<(), Failure> {
    match context.format {
        Format::Json | Format::Yaml => document(context, &Named { vm, answer }),
        Format::Table | Format::Wide | Format::Name => Ok(()),
    }
}

fn entry_of<T>(one: &Answered<T>) -> Entry<'_, &T> {
    match &one.result {
        Ok(answer) => Entry::Answer(Named {
            vm: &one.name,
            answer,
        }),
        Err(failure) => Entry::Failure(failure.into()),
    }
}

/// Writes one document, indented.
pub(crate) fn document(context: &Context, value: &impl Serialize) -> Result<(), Failure> {
    let text = match context.format {
        Format::Yaml => yaml(value)?,
        _ => json(value)?,
    };
    context.ui.print(&text)
}

/// Writes one document of a stream: JSON on a line of its own, YAML after a `---`.
pub(crate) fn line(context: &Context, value: &impl Serialize) -> Result<(), Failure> {
    let text = if context.format == Format::Yaml {
        [Shown::line("---"), yaml(value)?].into_iter().collect()
    } else {
        Shown::json(&serde_json::to_string(value).map_err(std::io::Error::other)?)
    };
    context.ui.print(&text)
}

fn yaml(value: &impl Serialize) -> Result<Shown, Failure> {
    let yaml = serde_saphyr::to_string(value)
        .map_err(|error| Failure::failed(format!("cannot write this as YAML: {error}")))?;
    // The library escapes control characters and leaves marks of direction. JSON is YAML too, and
    // can say them with escapes.
    let shown = Shown::lines(&yaml, "\t");
    if shown.as_str() == yaml {
        return Ok(shown);
    }
    json(value)
}

fn json(value: &impl Serialize) -> Result<Shown, Failure> {
    let json = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    Ok(Shown::json(&json))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::visible::is_hidden;
    use serde_json::json;

    #[test]
    fn yaml_hides_nothing_from_a_terminal() {
        for text in [
            "\x1b[2J",
            "\u{9b}31m",
            "\u{7f}",
            "\u{202e}x",
            "a\nb\x1b",
            "a\n\u{2066}b\n",
            "\r",
            "\u{2028}",
            "\u{e0041}",
        ] {
            let yaml = yaml(&json!({"k": text})).unwrap();
            let is_safe = |c: char| c == '\n' || !is_hidden(c);
            assert!(yaml.as_str().chars().all(is_safe), "{yaml:?}");
        }
    }

    #[test]
    fn yaml_is_plain_where_it_can_be() {
        let value =
            json!([{"vm": "web", "ok": true, "value": "yes", "none": null, "rtt_ms": 0.43}]);
        assert_eq!(
            yaml(&value).unwrap().as_str(),
            "- none: null\n  ok: true\n  rtt_ms: 0.43\n  value: \"yes\"\n  vm: web\n"
        );
    }
}
