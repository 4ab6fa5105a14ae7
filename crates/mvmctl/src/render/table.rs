//! Columns under a header, without lines. On a terminal long cells are wrapped to its width; into
//! a pipe each row is one line, so that `grep` and `awk` can be used on it.

use super::text::clean;
use crate::commands::Context;
use crate::ui::Ui;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, presets};

/// What a cell says about what it shows. How that looks is decided here alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
    /// Not known, or of little weight.
    Dim,
}

/// A table that is being filled.
#[derive(Debug)]
pub(crate) struct Table {
    table: comfy_table::Table,
}

/// A cell; its text is made fit for a terminal.
pub(crate) fn cell(tone: Tone, text: &str) -> Cell {
    let cell = Cell::new(clean(text));
    match tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warn => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
    }
}

impl Table {
    /// With these column headers.
    pub(crate) fn new(ui: &Ui, headers: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        match ui.width() {
            Some(width) => table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        if ui.color() {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let bold = |header: &&str| Cell::new(header).add_attribute(Attribute::Bold);
        table.set_header(headers.iter().map(bold).collect::<Vec<_>>());
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { table }
    }

    /// Adds a row of as many cells as there are headers.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.table.add_row(cells);
    }

    /// The table, ending in a newline.
    pub(crate) fn finish(&self) -> String {
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values, one pair a line, for what is one of a kind.
pub(crate) fn pairs(context: &Context, pairs: &[(&str, String)]) -> String {
    let longest = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let (on, off) = if context.ui.color() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    pairs
        .iter()
        .map(|(name, value)| format!("{on}{name:longest$}{off}  {}\n", clean(value)))
        .collect()
}
