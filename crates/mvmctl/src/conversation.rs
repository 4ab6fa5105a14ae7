//! `-v`: the conversation with the agents, on stderr.
#![expect(clippy::disallowed_methods, reason = "each line is cleaned here")]

use crate::render::shown::OneLine;
use std::fmt;
use std::io::Write as _;
use std::time::Instant;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Shows from now on what is said to agents and what they say, each line with the milliseconds
/// since now and the VM's name.
pub(crate) fn show() {
    let subscriber = Registry::default().with(Conversation {
        start: Instant::now(),
    });
    // Fails only if there is a subscriber already, and this is called once.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

struct Conversation {
    start: Instant,
}

/// The name of the VM that a span is about.
struct VmName(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Conversation {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // Spans of ours, and what the client tells of its wire; not what libraries tell.
        metadata.target() == mvm_client::WIRE || metadata.target().starts_with("mvmctl")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let name = text_of("name", |visitor| attributes.record(visitor));
            span.extensions_mut().insert(VmName(name));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let message = text_of("message", |visitor| event.record(visitor));
        let vm = context.event_span(event).and_then(|span| {
            let extensions = span.extensions();
            extensions.get::<VmName>().map(|name| name.0.clone())
        });
        let line = format!(
            "{:8.1} ms  {}  {}\n",
            self.start.elapsed().as_secs_f64() * 1000.0,
            OneLine::of(&vm.unwrap_or_default()),
            OneLine::of(&message)
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// The text of one field.
fn text_of(field: &'static str, record: impl FnOnce(&mut dyn Visit)) -> String {
    struct Text {
        field: &'static str,
        text: String,
    }
    impl Visit for Text {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == self.field {
                value.clone_into(&mut self.text);
            }
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == self.field {
                self.text = format!("{value:?}");
            }
        }
    }
    let mut visitor = Text {
        field,
        text: String::new(),
    };
    record(&mut visitor);
    visitor.text
}
