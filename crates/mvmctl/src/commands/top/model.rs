//! What `vm top` knows and shows: events and keys in, actions and a page of rows out.
//!
//! ```text
//!           /            Enter, Esc
//!   list ───────► search ──────────► list        S, W, T        y          Enter, Esc
//!    │ ▲                                list ───────────► question ──► list, and it is done
//!    └─┘ sort, filter, move, detail                       │ anything else
//!                                                         ▼ list
//! ```
//!
//! Which state a VM is in, and which are to be watched, the fleet's view says. What is kept beside it of
//! a guest's answers is cleaned and cut as it comes in: nothing else of it gets on the screen.

use super::input::{Action, Input, Key};
use super::order::{Filter, Sort};
use super::row::{Deed, Guest, Row};
use crate::feed::{Fed, Heard};
use crate::render::shown::OneLine;
use mvm_fleet::{Effect, Now, RegistryEvent, Settings, State, Ticket, View};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How often guests say that they are there. Ten thousand of them are 333 frames a second.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(30);

/// How old what a row shows of `inspect` may be, while it is on the screen.
const ASK_AFTER: Duration = Duration::from_secs(5);

/// How long the view waits for a first word of a guest. Each try to reach one has deadlines of its own;
/// with many VMs most of them wait for their turn.
const FIRST_WORD: Duration = Duration::from_mins(10);

/// How long a search may be, in characters.
const LONGEST_SEARCH: usize = 64;

/// What keys are taken for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    Search,
    /// Whether to do that to that VM.
    Question(Deed, Arc<str>),
}

/// Since when a VM is in its state, on `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy)]
struct Since {
    state: State,
    at: Duration,
    /// Whether it was seen or told when that began. Else it is in it for longer than that.
    is_known: bool,
}

/// What is kept of a VM beside the view.
#[derive(Debug, Default)]
struct Beside {
    ticket: Option<Ticket>,
    /// Whether it has answered or failed by that.
    has_answered: bool,
    guest: Option<Guest>,
    asked: Option<Duration>,
    state: Option<Since>,
}

#[derive(Debug)]
pub(super) struct Model {
    view: View,
    beside: HashMap<Arc<str>, Beside>,
    by_ticket: HashMap<Ticket, Arc<str>>,
    is_listed: bool,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) filter: Filter,
    pub(super) search: String,
    pub(super) mode: Mode,
    pub(super) detail: bool,
    /// What was done last, in words.
    pub(super) said: OneLine,
    selected: Option<Arc<str>>,
    /// The names that are shown, in order.
    order: Vec<Arc<str>>,
    /// The first of them on the screen, and how many have room there.
    top: usize,
    rows: usize,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            view: View::new(Settings {
                silence: 3 * HEARTBEAT,
                answer_deadline: FIRST_WORD,
                ..Settings::default()
            }),
            beside: HashMap::new(),
            by_ticket: HashMap::new(),
            is_listed: false,
            sort: Sort::Name,
            reversed: false,
            filter: Filter::All,
            search: String::new(),
            mode: Mode::List,
            detail: false,
            said: OneLine::default(),
            selected: None,
            order: Vec::new(),
            top: 0,
            rows: 0,
        }
    }

    /// Takes what has come about.
    pub(super) fn input(&mut self, input: Input, now: &Now) -> Vec<Action> {
        match input {
            Input::Fed(Fed::Registry(event)) => {
                self.is_listed |= matches!(event, RegistryEvent::Listed { .. });
                let effects = self.view.registry(event, now);
                self.effects(effects)
            }
            Input::Fed(Fed::Agent(ticket, heard)) => self.heard(ticket, &heard, now),
            // The view knows that it does not show all.
            Input::Fed(Fed::Unreadable(_)) => Vec::new(),
            Input::Key(key) => self.key(key),
            Input::Done(said) => {
                self.said = said;
                Vec::new()
            }
        }
    }

    /// Time has passed: asks those that are on the screen, if what they show is old.
    pub(super) fn tick(&mut self, now: &Now) -> Vec<Action> {
        let effects = self.view.tick(now);
        let mut actions = self.effects(effects);
        for name in self.order.iter().skip(self.top).take(self.rows) {
            let Some(beside) = self.beside.get_mut(name) else {
                continue;
            };
            let is_old = beside
                .asked
                .is_none_or(|asked| now.boottime.saturating_sub(asked) >= ASK_AFTER);
            if let (Some(ticket), Some(_), true) = (beside.ticket, &beside.guest, is_old) {
                beside.asked = Some(now.boottime);
                actions.push(Action::View(Effect::Ask { ticket }));
            }
        }
        actions
    }

    fn effects(&mut self, effects: Vec<Effect>) -> Vec<Action> {
        for effect in &effects {
            match effect {
                Effect::Watch { name, ticket } => {
                    let beside = self.beside.entry(name.clone()).or_default();
                    beside.ticket = Some(*ticket);
                    beside.has_answered = false;
                    self.by_ticket.insert(*ticket, name.clone());
                }
                Effect::Unwatch { ticket } => {
                    let name = self.by_ticket.remove(ticket);
                    if let Some(beside) = name.and_then(|name| self.beside.get_mut(&name))
                        && beside.ticket == Some(*ticket)
                    {
                        beside.ticket = None;
                        beside.guest = None;
                    }
                }
                Effect::Ask { .. } | Effect::AwaitResume { .. } => {}
            }
        }
        effects.into_iter().map(Action::View).collect()
    }

    fn heard(&mut self, ticket: Ticket, heard: &Heard, now: &Now) -> Vec<Action> {
        if let Some(beside) = self
            .by_ticket
            .get(&ticket)
            .and_then(|name| self.beside.get_mut(name))
        {
            beside.has_answered = true;
            match heard {
                Heard::Status(status) => {
                    let guest = beside.guest.get_or_insert_with(|| Guest::of(status));
                    guest.status(status);
                }
                Heard::Inspect(inspect) => {
                    let guest = beside
                        .guest
                        .get_or_insert_with(|| Guest::of(&inspect.status));
                    guest.inspect(inspect);
                    beside.asked = Some(now.boottime);
                }
                Heard::AskedStatus(status) => {
                    if let Some(guest) = &mut beside.guest {
                        guest.asked(status);
                    }
                }
                Heard::AskedInspect(inspect) => {
                    if let Some(guest) = &mut beside.guest {
                        guest.asked_inspect(inspect);
                    }
                    beside.asked = Some(now.boottime);
                }
                Heard::Event(event) => {
                    if let Some(guest) = &mut beside.guest {
                        guest.change(&event.change);
                    }
                }
                Heard::Lost => beside.guest = None,
                Heard::LetGo => {}
            }
        }
        let effects = self.view.agent(ticket, heard.event(), now);
        self.effects(effects)
    }

    fn key(&mut self, key: Key) -> Vec<Action> {
        match key {
            Key::Interrupt => return vec![Action::Quit],
            Key::Resized => return Vec::new(),
            _ => {}
        }
        match self.mode.clone() {
            Mode::List => self.list_key(key),
            Mode::Search => {
                self.search_key(key);
                Vec::new()
            }
            Mode::Question(deed, name) => {
                self.mode = Mode::List;
                if key == Key::Char('y') {
                    self.said = OneLine::of(&format!("{} {name}…", deed.doing()));
                    vec![Action::Do(deed, name)]
                } else {
                    self.said = OneLine::of("nothing was done");
                    Vec::new()
                }
            }
        }
    }

    fn list_key(&mut self, key: Key) -> Vec<Action> {
        self.said = OneLine::default();
        match key {
            Key::Char('q') => return vec![Action::Quit],
            Key::Esc if self.detail => self.detail = false,
            Key::Esc => self.search.clear(),
            Key::Enter => self.detail = !self.detail,
            Key::Char('/') => {
                self.search.clear();
                self.mode = Mode::Search;
            }
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.reversed = !self.reversed,
            Key::Char('f') => self.filter = self.filter.next(),
            Key::Char('S') => self.ask(Deed::Sleep),
            Key::Char('W') => self.ask(Deed::Wake),
            Key::Char('T') => self.ask(Deed::Stop),
            Key::Up | Key::Char('k') => self.move_by(-1),
            Key::Down | Key::Char('j') => self.move_by(1),
            Key::PageUp => self.move_by(-self.page()),
            Key::PageDown => self.move_by(self.page()),
            Key::Home | Key::Char('g') => self.move_by(isize::MIN),
            Key::End | Key::Char('G') => self.move_by(isize::MAX),
            Key::Char(_) | Key::Backspace | Key::Interrupt | Key::Resized => {}
        }
        Vec::new()
    }

    fn search_key(&mut self, key: Key) {
        match key {
            Key::Enter => self.mode = Mode::List,
            Key::Esc => {
                self.search.clear();
                self.mode = Mode::List;
            }
            Key::Backspace => drop(self.search.pop()),
            Key::Char(letter) if self.search.chars().count() < LONGEST_SEARCH => {
                self.search.push(letter);
            }
            _ => {}
        }
    }

    /// Asks before anything is done, and does not ask for what makes no sense.
    fn ask(&mut self, deed: Deed) {
        let Some(vm) = self.selected.as_ref().and_then(|name| self.view.vm(name)) else {
            self.said = OneLine::of("no VM is chosen");
            return;
        };
        if deed.is_for(vm.run_state()) {
            self.mode = Mode::Question(deed, vm.name().into());
        } else {
            let state = vm.state().as_str();
            self.said = OneLine::of(&format!("{} is {state}: {}", vm.name(), deed.not_for()));
        }
    }

    fn page(&self) -> isize {
        isize::try_from(self.rows.max(1)).unwrap_or(isize::MAX)
    }

    fn move_by(&mut self, rows: isize) {
        let last = self.order.len().saturating_sub(1);
        let at = self.selected_at().unwrap_or(0);
        self.selected = self
            .order
            .get(at.saturating_add_signed(rows).min(last))
            .cloned();
    }

    fn selected_at(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.order.iter().position(|name| name == selected)
    }

    /// Lays out the rows for so many lines, and gives those that are on the screen and which of them is
    /// chosen.
    pub(super) fn lay_out(&mut self, lines: usize, now: &Now) -> (Vec<Row<'_>>, Option<usize>) {
        self.beside.retain(|name, _| self.view.vm(name).is_some());
        let needle = self.search.to_lowercase();
        let mut keyed: Vec<_> = Vec::with_capacity(self.view.len());
        for vm in self.view.vms() {
            let (state, name) = (vm.state(), vm.name());
            let beside = match self.beside.get_mut(name) {
                Some(beside) => beside,
                None => self.beside.entry(name.into()).or_default(),
            };
            if beside.state.is_none_or(|before| before.state != state) {
                let told = beside.guest.as_ref().and_then(Guest::state_for);
                let told = told.filter(|_| matches!(state, State::Busy | State::Idle));
                let noted = vm.changed_at().map(|at| now.since(at));
                let ago = told.or(noted);
                beside.state = Some(Since {
                    state,
                    at: now.boottime.saturating_sub(ago.unwrap_or_default()),
                    is_known: ago.is_some() || beside.state.is_some(),
                });
            }
            let guest = beside.guest.as_ref();
            let is_found = needle.is_empty()
                || name.to_lowercase().contains(&needle)
                || vm.pool().to_lowercase().contains(&needle);
            if is_found && self.filter.shows(state, guest) {
                let since = beside.state.map_or(now.boottime, |since| since.at);
                let key = match self.sort {
                    Sort::Name => 0.0,
                    Sort::State => f64::from(state as u8),
                    Sort::For => since.as_secs_f64(),
                    Sort::Health => guest.map_or(9.0, Guest::health_rank),
                    Sort::Load => guest.map_or(1.0, |guest| -guest.load),
                };
                keyed.push((key, name));
            }
        }
        // The view gives them in name order, which stays among equals.
        keyed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        if self.reversed {
            keyed.reverse();
        }
        let order: Vec<Arc<str>> = keyed.into_iter().map(|(_, name)| name.into()).collect();
        let before = self.selected_at();
        self.order = order;
        // Where the chosen one has gone, the one in its place is.
        let at = self
            .selected_at()
            .or(before)
            .unwrap_or(0)
            .min(self.order.len().saturating_sub(1));
        self.selected = self.order.get(at).cloned();
        self.rows = lines;
        let last_top = self.order.len().saturating_sub(lines);
        self.top = self
            .top
            .min(at)
            .max((at + 1).saturating_sub(lines))
            .min(last_top);
        let chosen = self.selected.as_ref().and(at.checked_sub(self.top));
        let chosen = chosen.filter(|line| *line < lines);
        let shown = self.order.iter().skip(self.top).take(lines);
        let rows = shown.filter_map(|name| self.row(name, now)).collect();
        (rows, chosen)
    }

    fn row(&self, name: &str, now: &Now) -> Option<Row<'_>> {
        let vm = self.view.vm(name)?;
        let beside = self.beside.get(name);
        let since = beside.and_then(|beside| beside.state);
        Some(Row {
            name: vm.name(),
            pool: vm.pool(),
            state: vm.state(),
            lasts: since.map_or(Duration::ZERO, |since| {
                now.boottime.saturating_sub(since.at)
            }),
            lasts_longer: since.is_none_or(|since| !since.is_known),
            pinned: vm.is_pinned(),
            guest: beside.and_then(|beside| beside.guest.as_ref()),
        })
    }

    /// The one that is chosen.
    pub(super) fn chosen(&self, now: &Now) -> Option<Row<'_>> {
        self.row(self.selected.as_deref()?, now)
    }

    /// How many VMs are shown, and how many there are.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.order.len(), self.view.len())
    }

    /// How many VMs are in each state.
    pub(super) fn states(&self) -> impl Iterator<Item = (State, u32)> {
        State::ALL.into_iter().map(|state| {
            let pools = self.view.pools();
            (state, pools.map(|(_, counts)| counts.of(state)).sum())
        })
    }

    /// Whether the folders were looked at, and each VM that was found there has answered or failed once.
    pub(super) fn has_settled(&self) -> bool {
        let mut watched = self
            .beside
            .values()
            .filter(|beside| beside.ticket.is_some());
        self.is_listed && watched.all(|beside| beside.has_answered)
    }

    /// The same, and no folder was there that could not be looked at.
    pub(super) fn is_complete(&self) -> bool {
        self.view.is_complete()
    }
}
