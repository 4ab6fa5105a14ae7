//! How far a transfer has come, on stderr.

use crate::render::shown::OneLine;
use crate::ui::Ui;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// When it is first shown.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// One that takes longer than a second is shown: as a bar on a terminal, in one line elsewhere.
pub(crate) struct Transfer<'a> {
    ui: &'a Ui,
    what: OneLine,
    total: Option<u64>,
    begun: Instant,
    moved: u64,
    shown: Shown,
}

enum Shown {
    NotYet,
    Line,
    Bar(ProgressBar),
}

impl<'a> Transfer<'a> {
    /// Begins now. The total is in bytes, if it is known.
    pub(crate) fn new(ui: &'a Ui, what: &str, total: Option<u64>) -> Self {
        Self {
            ui,
            what: OneLine::of(what),
            total,
            begun: Instant::now(),
            moved: 0,
            shown: Shown::NotYet,
        }
    }

    /// How many bytes are there.
    pub(crate) fn bytes(&self) -> u64 {
        self.moved
    }

    /// So many more bytes are there.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes as u64);
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(self.moved),
            Shown::NotYet if self.begun.elapsed() >= SHOWN_AFTER => self.show(),
            Shown::NotYet | Shown::Line => {}
        }
    }

    fn show(&mut self) {
        if !self.ui.is_live() {
            self.ui.note(&format!("{}…", self.what));
            self.shown = Shown::Line;
            return;
        }
        let bar = ProgressBar::with_draw_target(self.total, ProgressDrawTarget::stderr())
            .with_message(self.what.to_string())
            .with_elapsed(self.begun.elapsed())
            .with_position(self.moved);
        let template = match self.total {
            Some(_) => {
                "{wide_msg} {bar:20} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            None => "{spinner} {wide_msg} {binary_bytes} {binary_bytes_per_sec} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        self.shown = Shown::Bar(bar);
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}
