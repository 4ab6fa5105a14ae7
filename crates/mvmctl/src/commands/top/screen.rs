//! How it looks: 80 columns are enough, 24 lines too.

use super::model::{Mode, Model};
use super::row::{Row, Tone};
use crate::render::shown::table::Style as Weight;
use mvm_fleet::Now;
use mvm_protocol::visible::is_hidden;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};

/// From this width on the detail stands beside the list, else below it.
const WIDE: u16 = 140;

/// The header's two lines, the table's one, and the footer's.
const AROUND: u16 = 3;

const WIDTHS: [Constraint; 7] = [
    Constraint::Max(12),
    Constraint::Fill(2),
    Constraint::Length(8),
    Constraint::Length(7),
    Constraint::Length(9),
    Constraint::Length(7),
    Constraint::Fill(3),
];

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame, model: &mut Model, color: bool, now: &Now) {
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let (list, detail) = split(body, model.detail);
    let lines = usize::from(list.height.saturating_sub(1));
    let (rows, chosen) = model.lay_out(lines, now);
    let table = Table::new(rows.iter().map(|row| table_row(row, color)), WIDTHS)
        .header(
            TableRow::new(["POOL", "NAME", "STATE", "FOR", "HEALTH", "LOAD", "PROBES"])
                .style(Style::new().add_modifier(Modifier::BOLD)),
        )
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(chosen);
    frame.render_stateful_widget(table, list, &mut state);
    frame.render_widget(Paragraph::new(header(model)), head);
    frame.render_widget(Paragraph::new(footer(model)), foot);
    if let Some(area) = detail {
        let lines = model
            .chosen(now)
            .map_or_else(Vec::new, |row| details(&row, color));
        frame.render_widget(Paragraph::new(lines), area);
    }
    hide_nothing(frame.buffer_mut());
}

/// Replaces what a terminal would obey, whatever it came from: the names of VMs and pools too. Guests'
/// texts were made [`OneLine`](crate::render::shown::OneLine)s before, and have nothing of it.
fn hide_nothing(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().contains(is_hidden) {
            cell.set_symbol("\u{fffd}");
        }
    }
}

fn split(body: Rect, detail: bool) -> (Rect, Option<Rect>) {
    if !detail {
        return (body, None);
    }
    let halves = [Constraint::Fill(1), Constraint::Fill(1)];
    let [list, detail] = if body.width >= WIDE {
        Layout::horizontal(halves).spacing(2).areas(body)
    } else if body.height > 2 * AROUND {
        Layout::vertical(halves).spacing(1).areas(body)
    } else {
        // There is room for one of them.
        return (Rect { height: 0, ..body }, Some(body));
    };
    (list, Some(detail))
}

fn header(model: &Model) -> Vec<Line<'static>> {
    let (shown, all) = model.count();
    let states = model.states().filter(|(_, count)| *count > 0);
    let states: Vec<_> = states
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect();
    let complete = if model.is_complete() {
        ""
    } else {
        "  (not all have answered yet)"
    };
    let first = format!("{all} VMs: {}{complete}", states.join(", "));
    let order = if model.reversed { ", reversed" } else { "" };
    let mut second = format!(
        "by {}{order}  filter {}  {shown} shown",
        model.sort.name(),
        model.filter.name()
    );
    if !model.search.is_empty() || model.mode == Mode::Search {
        second = format!("{second}  /{}", model.search);
        if model.mode == Mode::Search {
            second.push('_');
        }
    }
    vec![Line::from(first), Line::from(second)]
}

fn footer(model: &Model) -> Line<'static> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    match &model.mode {
        Mode::Question(deed, name) => {
            Line::styled(format!("{} {name}? y: yes, else no", deed.question()), bold)
        }
        Mode::Search => Line::from("Enter: done  Esc: no search"),
        Mode::List if !model.said.as_str().is_empty() => {
            Line::styled(model.said.as_str().to_owned(), bold)
        }
        Mode::List => Line::from(
            "q quit s sort r reverse f filter / search Enter detail S sleep W wake T stop",
        ),
    }
}

fn table_row(row: &Row, color: bool) -> TableRow<'static> {
    let (health_tone, health) = row.health();
    TableRow::new([
        Cell::from(row.pool.to_owned()),
        Cell::from(row.name.to_owned()),
        Cell::from(row.state.as_str()).style(style(row.tone(), color)),
        Cell::from(row.lasts()),
        Cell::from(health.to_string()).style(style(health_tone, color)),
        Cell::from(row.load()),
        Cell::from(row.probes().to_string()),
    ])
}

fn details(row: &Row, color: bool) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let pinned = if row.pinned { ", pinned" } else { "" };
    let state = row.state.as_str();
    let lasts = row.lasts();
    let mut lines = vec![Line::styled(row.name.to_owned(), bold)];
    let Some(guest) = row.guest else {
        lines.push(Line::from(format!(
            "pool {}, {state} for {lasts}{pinned}; nothing is known of its guest",
            row.pool
        )));
        return lines;
    };
    lines.push(Line::from(format!(
        "pool {}, {state} for {lasts}{pinned}; worker {}",
        row.pool,
        guest.worker()
    )));
    for one in guest.integrations() {
        lines.push(Line::from(vec![
            Span::raw(format!("{:16} ", one.name)),
            Span::styled(format!("{:9} ", one.health), style(one.tone, color)),
            Span::raw(format!("{}  {}", one.last_check, one.output)),
        ]));
    }
    for probe in guest.probes() {
        let tone = if probe.ok { Weight::Plain } else { Weight::Bad };
        let ok = if probe.ok { "ok" } else { "failed" };
        lines.push(Line::from(vec![
            Span::raw(format!("{:16} ", probe.name)),
            Span::styled(format!("{ok:9} "), style(tone, color)),
            Span::raw(probe.value.to_string()),
        ]));
    }
    lines
}

fn style(tone: Tone, color: bool) -> Style {
    let style = Style::new();
    match tone {
        Weight::Plain => style,
        Weight::Dim => style.add_modifier(Modifier::DIM),
        _ if !color => style,
        Weight::Good => style.fg(Color::Green),
        Weight::Warn => style.fg(Color::Yellow),
        Weight::Bad => style.fg(Color::Red),
    }
}
