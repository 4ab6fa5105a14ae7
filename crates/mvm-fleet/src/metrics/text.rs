//! The two text formats, written by hand.
//!
//! The libraries at hand keep a registry of series that live on until they are removed, which a fleet
//! of thousands of VMs that come and go would have to be kept equal with; the series here are made of
//! the view at each scrape. And each knows one of the two formats: prometheus-client (0.26) writes
//! OpenMetrics alone, metrics-exporter-prometheus (0.18) the older text alone. What is written by hand
//! in their place is this file, and `promtool` reads it in the tests.

use std::fmt::Write as _;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the header `Content-Type` has to say.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a client that sends this header `Accept` is answered: OpenMetrics if it asks for that, in
    /// this version or in none, and likes it no less than plain text.
    pub fn accepted(accept: &str) -> Self {
        let (mut open, mut text): (f32, f32) = (0.0, 0.0);
        for entry in accept.split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0_f32, None);
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                match key.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            if kind.eq_ignore_ascii_case("application/openmetrics-text")
                && version.is_none_or(|version| version == "1.0.0")
            {
                open = quality.max(open);
            } else if kind.eq_ignore_ascii_case("text/plain") {
                text = quality.max(text);
            }
        }
        if open > 0.0 && open >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// What kind of number a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It goes up and down.
    Gauge,
    /// It goes up, or begins anew.
    Counter,
    /// It is 1, and its labels say something.
    Info,
}

/// The series of one name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// Without `_total` and `_info`.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The unit, with which the name ends then.
    pub(crate) unit: Option<&'static str>,
    /// One line.
    pub(crate) help: &'static str,
}

impl Family {
    /// What a sample's name has behind the family's.
    pub(crate) fn suffix(&self) -> &'static str {
        match self.kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        }
    }
}

/// Writes families and samples, one family after the other.
pub(crate) struct Writer {
    out: String,
    format: Format,
    /// The name of the family's samples.
    sample: String,
}

impl Writer {
    pub(crate) fn new(format: Format) -> Self {
        Self {
            out: String::new(),
            format,
            sample: String::new(),
        }
    }

    /// The lines above a family's samples.
    pub(crate) fn family(&mut self, family: &Family) {
        self.sample.clear();
        self.sample.push_str(family.name);
        self.sample.push_str(family.suffix());
        let is_open = self.format == Format::OpenMetrics;
        let name = if is_open { family.name } else { &self.sample };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Info if is_open => "info",
            Kind::Gauge | Kind::Info => "gauge",
        };
        let out = &mut self.out;
        let _ = writeln!(out, "# HELP {name} {}", family.help);
        let _ = writeln!(out, "# TYPE {name} {kind}");
        if let Some(unit) = family.unit.filter(|_| is_open) {
            let _ = writeln!(out, "# UNIT {name} {unit}");
        }
    }

    /// A sample of that family. `labels` is as [`labels`] makes it, `more` are further ones.
    pub(crate) fn sample(&mut self, labels: &str, more: &[(&str, &str)], value: Value) {
        self.out.push_str(&self.sample);
        let mut separator = '{';
        if !labels.is_empty() {
            self.out.push('{');
            self.out.push_str(labels);
            separator = ',';
        }
        for (name, value) in more {
            self.out.push(separator);
            push_label(&mut self.out, name, value);
            separator = ',';
        }
        self.out.push_str(if separator == ',' { "} " } else { " " });
        value.push(&mut self.out);
        self.out.push('\n');
    }

    /// What the format asks for at the end of all.
    pub(crate) fn end(&mut self) {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
    }

    /// What was written.
    pub(crate) fn into_text(self) -> String {
        self.out
    }
}

/// Labels without their braces, to be used for many samples.
pub(crate) fn labels(labels: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        push_label(&mut out, name, value);
    }
    out
}

fn push_label(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str("=\"");
    // Most have nothing to escape: a scrape of a large host writes a million of them.
    if value
        .bytes()
        .any(|byte| matches!(byte, b'\\' | b'"' | b'\n'))
    {
        for character in value.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                _ => out.push(character),
            }
        }
    } else {
        out.push_str(value);
    }
    out.push('"');
}

/// A sample's number: never one that is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Whole(u64),
    /// Shown as 0 if it is not finite.
    Number(f64),
    /// Shown in seconds, to the millisecond: that is what clocks and agents tell.
    Milliseconds(u64),
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Whole(u64::from(is))
    }
}

impl From<std::time::Duration> for Value {
    fn from(duration: std::time::Duration) -> Self {
        Self::Milliseconds(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Value {
    /// Counts and times without `std`, which minds width, sign and precision for each: a scrape of a large
    /// host has hundreds of thousands of them.
    fn push(self, out: &mut String) {
        match self {
            Self::Whole(number) => push_whole(out, number, 1),
            Self::Milliseconds(ms) => {
                push_whole(out, ms / 1000, 1);
                let (mut rest, mut width) = (ms % 1000, 3);
                if rest != 0 {
                    while rest % 10 == 0 {
                        (rest, width) = (rest / 10, width - 1);
                    }
                    out.push('.');
                    push_whole(out, rest, width);
                }
            }
            Self::Number(number) if !number.is_finite() => out.push('0'),
            // Both formats read 1e300, and nobody wants its three hundred digits.
            Self::Number(number) if number.fract() != 0.0 || number.abs() >= 1e15 => {
                let _ = write!(out, "{number:?}");
            }
            Self::Number(number) => {
                let _ = write!(out, "{number}");
            }
        }
    }
}

/// The number in decimal, with zeros before it if it has fewer digits than that.
fn push_whole(out: &mut String, number: u64, width: usize) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number);
    for _ in digits.len()..width {
        out.push('0');
    }
    out.push_str(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_they_ask_for() {
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("text/plain;version=0.0.4", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                // Prometheus 2.42
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
            (
                "text/plain, application/openmetrics-text;q=0.5",
                Format::Text,
            ),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=x;;=", Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }

    #[test]
    fn numbers() {
        for (number, text) in [
            (0.0, "0"),
            (42.0, "42"),
            (-0.25, "-0.25"),
            (1e300, "1e300"),
            (1e-7, "1e-7"),
            (f64::NAN, "0"),
            (f64::INFINITY, "0"),
        ] {
            let mut out = String::new();
            Value::Number(number).push(&mut out);
            assert_eq!(out, text);
        }
        for (number, text) in [
            (0, "0"),
            (7, "7"),
            (10, "10"),
            (u64::MAX, "18446744073709551615"),
        ] {
            let mut out = String::new();
            Value::Whole(number).push(&mut out);
            assert_eq!(out, text);
        }
        for (ms, text) in [
            (0, "0"),
            (7, "0.007"),
            (40, "0.04"),
            (500, "0.5"),
            (1000, "1"),
            (93_510, "93.51"),
            (u64::MAX, "18446744073709551.615"),
        ] {
            let mut out = String::new();
            Value::Milliseconds(ms).push(&mut out);
            assert_eq!(out, text);
        }
    }
}
