//! One line on the console for each thing that a host did: what, how it came out, how long it took.
//! Never arguments, environment, paths or content.

use crate::machine::console::say;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::object::printable;
use std::time::Instant;

/// A line that is to be written when it is over.
pub(crate) struct Audit {
    what: String,
    began: Instant,
}

impl Audit {
    pub(crate) fn begin(kind: &str, program: &str) -> Self {
        let program = printable(program);
        let separator = if program.is_empty() { "" } else { " " };
        Self {
            what: format!("{kind}{separator}{program}"),
            began: Instant::now(),
        }
    }

    /// It came out so.
    pub(crate) fn end(&self, outcome: &str) {
        let took = self.began.elapsed().as_millis();
        say!(
            "{}: {outcome} after {took} ms (asked by the host)",
            self.what
        );
    }

    /// It was refused, or failed.
    pub(crate) fn refused(&self, error: &ErrorAnswer) {
        // The message may have a path in it.
        let code = serde_json::to_value(error.code);
        let code = code.as_ref().ok().and_then(serde_json::Value::as_str);
        self.end(code.unwrap_or("refused"));
    }
}
