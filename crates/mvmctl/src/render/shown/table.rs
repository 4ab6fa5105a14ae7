//! Columns under a header, without lines. On a terminal the columns that hold prose or paths are
//! wrapped to its width, the others never; where that cannot fit, and into a pipe, each row is one
//! line, so that `grep` and `awk` can be used on it.

use super::Shown;
use crate::render::text::{cut, wrapped};
use comfy_table::{Attribute, Color, ColumnConstraint, ContentArrangement, presets};
use mvm_protocol::visible::line;
use std::fmt::Write as _;

/// What a cell says about what it shows. How that looks is decided here alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Good,
    Warn,
    Bad,
    /// Not known, or of little weight.
    Dim,
}

/// How tables look where they are written to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looks {
    /// The terminal's width in columns; none elsewhere.
    pub(crate) width: Option<u16>,
    pub(crate) color: bool,
}

/// A table that is being filled.
#[derive(Debug)]
pub(crate) struct Table {
    cells: comfy_table::Table,
    headers: Vec<String>,
    width: Option<u16>,
}

/// The columns that may be wrapped, by their header.
const WRAPPED: [&str; 10] = [
    "ADDRESS",
    "CLOCK",
    "COMMAND",
    "INTEGRATIONS",
    "LAST CHECK",
    "OUTPUT",
    "REJECTED FILE",
    "VALUE",
    "WHY",
    "WORKER",
];

/// Spaces between columns.
const GAP: u16 = 2;

/// A column that is wrapped has at least this width, or the table is not wrapped at all.
const NARROWEST: u16 = 12;

/// The columns whose text is this host's own, and is shown whole however long it is.
const OURS: [&str; 2] = ["ADDRESS", "NAME"];

/// How much of a text from a guest is shown, in characters: of prose and of all else. The names of
/// integrations and probes have 64 at most.
const PROSE: usize = 500;
const TERSE: usize = 64;

/// A cell of a table.
#[derive(Debug)]
pub(crate) struct Cell {
    tone: Style,
    text: String,
}

/// A cell with that text. The table makes it fit for a terminal, and cuts it to what its column may
/// hold.
pub(crate) fn cell(tone: Style, text: &str) -> Cell {
    let text = text.to_owned();
    Cell { tone, text }
}

impl Cell {
    fn in_column(&self, header: &str) -> comfy_table::Cell {
        let text = line(&self.text);
        let cell = comfy_table::Cell::new(if OURS.contains(&header) {
            text
        } else if WRAPPED.contains(&header) {
            cut(&text, PROSE)
        } else {
            cut(&text, TERSE)
        });
        match self.tone {
            Style::Plain => cell,
            Style::Good => cell.fg(Color::Green),
            Style::Warn => cell.fg(Color::Yellow),
            Style::Bad => cell.fg(Color::Red),
            Style::Dim => cell.add_attribute(Attribute::Dim),
        }
    }
}

impl Table {
    /// With these column headers.
    pub(crate) fn new(looks: Looks, headers: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        if looks.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let bold = |header: &&str| comfy_table::Cell::new(header).add_attribute(Attribute::Bold);
        table.set_header(headers.iter().map(bold).collect::<Vec<_>>());
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        Self {
            cells: table,
            headers: headers.iter().map(ToString::to_string).collect(),
            width: looks.width,
        }
    }

    /// Adds a row of as many cells as there are headers.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        let cells = self.headers.iter().zip(cells);
        let shown: Vec<_> = cells.map(|(header, cell)| cell.in_column(header)).collect();
        self.cells.add_row(shown);
    }

    /// The table, ending in a newline.
    pub(crate) fn finish(mut self) -> Shown {
        self.arrange();
        let mut text = String::new();
        for line in self.cells.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        Shown(text)
    }

    fn arrange(&mut self) {
        let widths = self.cells.column_max_content_widths();
        let wrapped = |header: &String| WRAPPED.contains(&header.as_str());
        let least: u16 = self
            .headers
            .iter()
            .zip(&widths)
            .map(|(header, width)| {
                if wrapped(header) {
                    NARROWEST.min(*width)
                } else {
                    *width
                }
            })
            .fold(0, |sum, width| {
                sum.saturating_add(width).saturating_add(GAP)
            });
        let Some(width) = self.width.filter(|width| least <= *width) else {
            self.cells
                .set_content_arrangement(ContentArrangement::Disabled);
            return;
        };
        self.cells
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
        for (header, column) in self.headers.iter().zip(self.cells.column_iter_mut()) {
            if !wrapped(header) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
}

/// Names and values, one pair a line, for what is one of a kind.
pub(crate) fn pairs(looks: Looks, pairs: &[(&'static str, String)]) -> Shown {
    let longest = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let (on, off) = if looks.color {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    let mut text = String::new();
    for (name, value) in pairs {
        let value = line(value);
        let value = cut(&value, PROSE);
        let value = match looks.width {
            Some(width) => wrapped(&value, width.into(), longest + usize::from(GAP)),
            None => value.into_owned(),
        };
        let _ = writeln!(text, "{on}{name:longest$}{off}  {value}");
    }
    Shown(text)
}
