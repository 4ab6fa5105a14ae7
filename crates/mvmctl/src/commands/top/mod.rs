//! `mvmctl vm top`
//!
//! `model` is pure: what comes from folders, guests and the keyboard goes in, and what is to be done
//! comes out. `screen` draws it, [`crate::feed`] watches the VMs, and this file joins them to a
//! terminal.
#![expect(
    clippy::disallowed_methods,
    reason = "it draws cells: what is hidden is taken out of them in `screen::draw`"
)]

mod input;
mod model;
mod order;
mod row;
mod screen;
#[cfg(test)]
mod tests;

use super::Context;
use super::machine::name;
use crate::args::Format;
use crate::feed::WAITING;
use crate::feed::clock::now;
use crate::feed::folders::{self, Following};
use crate::feed::watching::{self, Watches};
use crate::fleet::allow_descriptors;
use crate::raw_terminal::RawTerminal;
use crate::render::data;
use crate::render::shown::table::{Style, Table, cell};
use crate::render::shown::{OneLine, Shown};
use crate::report::{Failure, Outcome};
use crossterm::cursor::{Hide, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, read};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use input::{Action, Input, Inputs, Key};
use model::{HEARTBEAT, Model};
use mvm_registry::Home;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use row::{Deed, Integration, Probe, Row};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Stdout, stdout};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// How often it is drawn anew while no key is pressed.
const REFRESH: Duration = Duration::from_secs(1);

/// Watch all VMs in a table
///
/// Pool, name, state and for how long, health, load and the probes' last values of each VM, and as a
/// detail the last outputs of its integrations. Keys sort, filter and search, and put a VM to sleep,
/// wake or stop it, after a question. With --once, -o json or -o yaml it is written once, when each VM
/// has answered or failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print the table once
    #[arg(long)]
    once: bool,
}

/// A VM as data.
#[derive(Debug, Serialize)]
struct VmData<'a> {
    vm: &'a str,
    pool: &'a str,
    state: &'static str,
    for_secs: u64,
    /// Whether that is when it began; else it is in that state for longer.
    since_known: bool,
    pinned: bool,
    health: Option<OneLine>,
    load: Option<f64>,
    integrations: Vec<Integration>,
    probes: &'a [Probe],
}

impl<'a> VmData<'a> {
    fn of(row: &Row<'a>) -> Self {
        Self {
            vm: row.name,
            pool: row.pool,
            state: row.state.as_str(),
            for_secs: row.lasts.as_secs(),
            since_known: !row.lasts_longer,
            pinned: row.pinned,
            health: row.guest.map(|guest| guest.health().1),
            load: row.guest.map(|guest| guest.load),
            integrations: row
                .guest
                .map(|guest| guest.integrations().collect())
                .unwrap_or_default(),
            probes: row.guest.map_or(&[], |guest| guest.probes()),
        }
    }
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        allow_descriptors();
        let inventory = context.inventory()?;
        let home = inventory.home().clone();
        let (inputs, received) = mpsc::channel(WAITING);
        let watching = watching::Settings {
            inventory: inventory.clone(),
            dialer: context.dialer.clone(),
            deadlines: context.deadlines(),
            inspect: true,
            at_once: context.parallel,
            heartbeat: HEARTBEAT,
        };
        let top = Top {
            context,
            home,
            model: Model::new(),
            watches: Watches::new(watching, Inputs(inputs.clone())),
            _folders: folders::watch(inventory, Inputs(inputs.clone())),
            inputs,
            received,
        };
        let is_data = !matches!(context.format, Format::Table | Format::Wide);
        if self.once || is_data {
            return top.once().await;
        }
        if !std::io::stdin().is_terminal() || !stdout().is_terminal() {
            return Err(Failure::usage("`vm top` needs a terminal")
                .hint("--once prints the table once, -o json as data"));
        }
        top.live().await
    }
}

struct Top<'a> {
    context: &'a Context,
    home: Home,
    model: Model,
    watches: Watches<Inputs>,
    _folders: Following,
    inputs: mpsc::Sender<Input>,
    received: mpsc::Receiver<Input>,
}

impl Top<'_> {
    /// Prints it when all have answered or failed: each try has its deadlines.
    async fn once(mut self) -> Result<Outcome, Failure> {
        let progress = self.context.ui.progress("waiting for the VMs");
        while !self.model.has_settled() {
            let Some(input) = self.received.recv().await else {
                break;
            };
            self.take(input);
            // What else has come is taken before it is looked at all of them again.
            while let Ok(input) = self.received.try_recv() {
                self.take(input);
            }
        }
        drop(progress);
        let now = now();
        let is_complete = self.model.is_complete();
        let (rows, _) = self.model.lay_out(usize::MAX, &now);
        match self.context.format {
            Format::Json | Format::Yaml => {
                let shown: Vec<_> = rows.iter().map(VmData::of).collect();
                data::document(self.context, &shown)?;
            }
            Format::Name => {
                for row in &rows {
                    self.context.ui.print(&Shown::line(row.name))?;
                }
            }
            Format::Table | Format::Wide => {
                let headers = ["POOL", "NAME", "STATE", "FOR", "HEALTH", "LOAD", "PROBES"];
                let mut table = Table::new(self.context.ui.looks(), &headers);
                for row in &rows {
                    let (health_tone, health) = row.health();
                    let plain = Style::Plain;
                    table.row(vec![
                        cell(plain, row.pool),
                        cell(plain, row.name),
                        cell(row.tone(), row.state.as_str()),
                        cell(plain, &row.lasts()),
                        cell(health_tone, health.as_str()),
                        cell(plain, &row.load()),
                        cell(plain, row.probes().as_str()),
                    ]);
                }
                self.context.ui.print(&table.finish())?;
            }
        }
        if !is_complete {
            self.context
                .ui
                .warning("not all VMs have answered or failed in time");
        }
        Ok(Outcome::Done)
    }

    async fn live(mut self) -> Result<Outcome, Failure> {
        let mut requests = self.context.termination_requests();
        let mut screen = Screen::enter()?;
        read_keys(self.inputs.clone())?;
        let mut ticks = interval(REFRESH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let draws = tokio::select! {
                biased;
                _ = requests.next() => return Ok(Outcome::Done),
                _ = ticks.tick() => {
                    let actions = self.model.tick(&now());
                    if self.act(actions) {
                        return Ok(Outcome::Done);
                    }
                    true
                }
                Some(input) = self.received.recv() => {
                    // What comes from guests is drawn with the next tick, however much it is.
                    let draws = matches!(input, Input::Key(_) | Input::Done(_));
                    if self.take(input) {
                        return Ok(Outcome::Done);
                    }
                    draws
                }
            };
            if draws {
                screen.draw(&mut self.model, self.context.ui.looks().color)?;
            }
        }
    }

    /// Whether it is over.
    fn take(&mut self, input: Input) -> bool {
        let actions = self.model.input(input, &now());
        self.act(actions)
    }

    fn act(&mut self, actions: Vec<Action>) -> bool {
        let mut over = false;
        for action in actions {
            match action {
                Action::View(effect) => self.watches.effect(effect),
                Action::Do(deed, vm) => self.start(deed, &vm),
                Action::Quit => over = true,
            }
        }
        over
    }

    /// Has another mvmctl do it: it goes on if this one ends, and what it says does not get on the
    /// screen by itself.
    fn start(&self, deed: Deed, vm: &Arc<str>) {
        let (inputs, vm) = (self.inputs.clone(), Arc::clone(vm));
        let arguments = match self.arguments(deed, &vm) {
            Ok(arguments) => arguments,
            Err(failure) => {
                let said = OneLine::of(&failure.message);
                tokio::spawn(async move { inputs.send(Input::Done(said)).await });
                return;
            }
        };
        tokio::task::spawn_blocking(move || {
            let own = std::env::current_exe();
            let ran = own.and_then(|own| Command::new(own).args(arguments).output());
            let said = match ran {
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr).into_owned();
                    said.lines().next_back().unwrap_or_default().to_owned()
                }
                Err(error) => error.to_string(),
            };
            let said = OneLine::of(&format!("{vm}: {said}"));
            let _ = inputs.blocking_send(Input::Done(said));
        });
    }

    fn arguments(&self, deed: Deed, vm: &str) -> Result<Vec<OsString>, Failure> {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        Ok(match deed {
            Deed::Sleep => words(&["vm", "snapshot", "--stop", vm]),
            Deed::Stop => words(&["vm", "stop", vm]),
            Deed::Wake => {
                let record = self.home.vm(&name(vm)?).record();
                let record = record.map_err(|error| Failure::registry(vm, &error))?;
                let Some(snapshot) = record.suspended_in else {
                    return Err(Failure::failed(format!(
                        "{vm}: its record does not say in which snapshot it sleeps"
                    )));
                };
                let mut restore = words(&["vm", "restore", "--name", vm, "--"]);
                restore.push(snapshot.into_os_string());
                restore
            }
        })
    }
}

/// The terminal, as it was before once this is dropped.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _raw: RawTerminal,
}

impl Screen {
    fn enter() -> Result<Self, Failure> {
        let raw = RawTerminal::enter();
        let raw =
            raw.map_err(|error| Failure::failed(format!("cannot make the terminal raw: {error}")))?;
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        Ok(Self {
            terminal: Terminal::new(CrosstermBackend::new(stdout()))?,
            _raw: raw,
        })
    }

    /// Draws what has changed. A terminal that has not yet taken what was drawn before is let be: the
    /// next frame shows all the same.
    fn draw(&mut self, model: &mut Model, color: bool) -> Result<(), Failure> {
        let out = stdout();
        let mut ready = [PollFd::new(&out, PollFlags::OUT)];
        if poll(&mut ready, Some(&Timespec::default())) == Ok(0) {
            return Ok(());
        }
        let now = now();
        self.terminal
            .draw(|frame| screen::draw(frame, model, color, &now))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// Reads keys on a thread that is never waited for. The end of the terminal is the end of the keys.
fn read_keys(inputs: mpsc::Sender<Input>) -> Result<(), Failure> {
    let reading = move || {
        while let Ok(event) = read() {
            let key = match event {
                Event::Key(event) => key(event),
                Event::Resize(..) => Some(Key::Resized),
                _ => None,
            };
            if let Some(key) = key
                && inputs.blocking_send(Input::Key(key)).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".into())
        .spawn(reading)?;
    Ok(())
}

fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    Some(match event.code {
        KeyCode::Char('c') if event.modifiers.contains(KeyModifiers::CONTROL) => Key::Interrupt,
        KeyCode::Char(letter) if !event.modifiers.contains(KeyModifiers::CONTROL) => {
            Key::Char(letter)
        }
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
