//! The table as people see it, on a terminal that is none, of 80 by 24 and other sizes.

use super::input::{Action, Input, Key};
use super::model::{Mode, Model};
use super::order::{Filter, Sort};
use super::row::Deed;
use super::screen;
use crate::feed::{Fed, Heard};
use crate::render::shown::OneLine;
use mvm_fleet::{Effect, Now, Registered, RegistryEvent, RunState, Ticket};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Event;
use mvm_protocol::status::Inspect;
use mvm_protocol::visible::is_hidden;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// A model, and who answers for its guests.
struct Host {
    model: Model,
    tickets: HashMap<String, Ticket>,
    secs: u64,
}

impl Host {
    fn with(vms: &[(&str, RunState)]) -> Self {
        let mut host = Self {
            model: Model::new(),
            tickets: HashMap::new(),
            secs: 1_000_000,
        };
        let vms = vms
            .iter()
            .map(|(name, state)| Registered::new(*name, *state));
        let listed = RegistryEvent::Listed {
            vms: vms.collect(),
            whole: true,
        };
        host.input(Input::Fed(Fed::Registry(listed)));
        host
    }

    fn now(&self) -> Now {
        let since = Duration::from_secs(self.secs);
        Now {
            monotonic: since,
            boottime: since,
            wall: Timestamp(i64::try_from(since.as_millis()).unwrap()),
        }
    }

    fn input(&mut self, input: Input) -> Vec<Action> {
        let actions = self.model.input(input, &self.now());
        for action in &actions {
            if let Action::View(Effect::Watch { name, ticket }) = action {
                self.tickets.insert(name.to_string(), *ticket);
            }
        }
        actions
    }

    fn hear(&mut self, vm: &str, inspect: Value) {
        let inspect: Inspect = serde_json::from_value(inspect).unwrap();
        let ticket = self.tickets[vm];
        self.input(Input::Fed(Fed::Agent(
            ticket,
            Heard::Inspect(Box::new(inspect)),
        )));
    }

    fn event(&mut self, vm: &str, mut change: Value) {
        change["type"] = "event".into();
        change["at"] = "2026-11-24T06:01:00.000Z".into();
        let event: Event = serde_json::from_value(change).unwrap();
        let ticket = self.tickets[vm];
        self.input(Input::Fed(Fed::Agent(
            ticket,
            Heard::Event(Box::new(event)),
        )));
    }

    fn keys(&mut self, keys: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        for letter in keys.chars() {
            let key = match letter {
                '\n' => Key::Enter,
                '\x1b' => Key::Esc,
                '\x08' => Key::Backspace,
                letter => Key::Char(letter),
            };
            actions.extend(self.input(Input::Key(key)));
        }
        actions
    }

    /// The screen's lines, without what is empty at their ends.
    fn screen(&mut self, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = self.now();
        terminal
            .draw(|frame| screen::draw(frame, &mut self.model, true, &now))
            .unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| {
            let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned()
        })
        .collect()
    }
}

/// What a guest answers that is busy or idle, since that many seconds.
fn guest(health: &str, worker: &str, load: f64) -> Value {
    let mut answer = mvm_fake_agent::inspect(health);
    answer["now"] = "2026-11-24T06:01:00.000Z".into();
    answer["worker"]["since"] = "2026-11-24T06:00:00.000Z".into();
    answer["worker"]["state"] = worker.into();
    answer["worker"]["load1"] = load.into();
    answer
}

fn three() -> Host {
    let mut host = Host::with(&[
        ("db", RunState::Running),
        ("job-1", RunState::Asleep),
        ("web-1", RunState::Running),
        ("web-2", RunState::Running),
    ]);
    host.hear("web-1", guest("healthy", "idle", 0.02));
    host.hear("web-2", guest("unhealthy", "busy", 3.5));
    host
}

#[test]
fn a_terminal_of_80_by_24_shows_all_that_matters() {
    let mut host = three();
    let screen = host.screen(80, 24);
    assert_eq!(
        screen[..8],
        [
            "4 VMs: 1 busy, 1 idle, 1 asleep, 1 unknown  (not all have answered yet)",
            "by name  filter all  4 shown",
            "POOL         NAME         STATE    FOR     HEALTH    LOAD    PROBES",
            "db           db           unknown  >0s     -         -",
            "job          job-1        asleep   >0s     -         -",
            "web          web-1        idle     1m0s    healthy   0.02    disk-usage=42%",
            "web          web-2        busy     1m0s    unhealthy 3.50    disk-usage=42%",
            "",
        ]
    );
    assert_eq!(
        screen[23],
        "q quit s sort r reverse f filter / search Enter detail S sleep W wake T stop"
    );
    host.keys("G\n");
    let screen = host.screen(80, 24);
    let detail = screen.iter().position(|line| line == "web-2").unwrap();
    assert_eq!(
        screen[detail + 1..detail + 4],
        [
            "pool web, busy for 1m0s; worker busy",
            "my-service       unhealthy exit 1 after 11ms  ok",
            "disk-usage       ok        42%",
        ]
    );
    // Beside the list, where there is room.
    let screen = host.screen(200, 50);
    assert!(
        screen[2].starts_with("POOL ") && screen[2].ends_with("web-2"),
        "{}",
        screen[2]
    );
}

#[test]
fn no_terminal_is_too_small() {
    let mut host = three();
    host.keys("\n");
    for (width, height) in [(1, 1), (10, 3), (80, 4), (20, 24), (300, 2)] {
        host.screen(width, height);
    }
}

#[test]
fn nothing_of_a_guest_commands_the_terminal() {
    let mut host = Host::with(&[("web-1", RunState::Running)]);
    let mut answer = guest("healthy", "idle", 1e300);
    let hostile = "x\u{1b}[2J\u{9b}31m\u{202e}\u{200b}\u{200d}\u{e0041}\r\n\tgpj";
    let integration = answer["integrations"][0].clone();
    answer["integrations"] = (0..500)
        .map(|number| {
            let mut one = integration.clone();
            one["name"] = format!("{number}{hostile}").into();
            one["health"] = hostile.into();
            one["last_check"]["output"] = format!("{hostile}\n{hostile}").into();
            one
        })
        .collect();
    answer["probes"][0]["name"] = hostile.into();
    answer["probes"][0]["value"] = json!({hostile: hostile.repeat(1000)});
    host.hear("web-1", answer);
    host.keys("\n");
    for (width, height) in [(80, 24), (200, 50)] {
        let screen = host.screen(width, height).join("");
        let obeyed = screen.chars().find(|letter| is_hidden(*letter));
        assert_eq!(obeyed, None, "{screen}");
        assert!(screen.contains("\\u{1b}"), "shown, not obeyed: {screen}");
    }
}

#[test]
fn no_name_of_a_vm_looks_like_another() {
    // The library drops control characters, and leaves what joins the letter before.
    let mut host = Host::with(&[("we\u{200d}b\u{1b}[2J", RunState::Running)]);
    let screen = host.screen(80, 24).join("");
    assert!(!screen.contains(is_hidden), "{screen}");
    assert!(screen.contains("w\u{fffd}b"), "{screen}");
}

#[test]
fn a_change_is_shown_at_the_integration_that_it_is_of_however_long_its_name_is() {
    let mut host = Host::with(&[("web-1", RunState::Running)]);
    let mut answer = guest("healthy", "idle", 0.0);
    let name = "n".repeat(64);
    answer["integrations"][0]["name"] = name.clone().into();
    let mut sick = guest("unhealthy", "idle", 0.0)["integrations"][0].clone();
    sick["name"] = name.into();
    host.hear("web-1", answer);
    host.event("web-1", json!({"integration": sick}));
    host.keys("\n");
    let screen = host.screen(80, 24);
    let shown: Vec<_> = screen.iter().filter(|line| line.contains("nnn")).collect();
    assert_eq!(shown.len(), 1, "{screen:?}");
    assert!(shown[0].contains("unhealthy"), "{screen:?}");
}

#[test]
fn rows_are_sorted_filtered_and_searched() {
    let mut host = three();
    let names = |host: &mut Host| {
        let screen = host.screen(80, 24);
        let rows = screen[3..23].iter().filter(|line| !line.is_empty());
        rows.map(|row| row[13..].split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&mut host), ["db", "job-1", "web-1", "web-2"]);
    host.keys("r");
    assert_eq!(names(&mut host), ["web-2", "web-1", "job-1", "db"]);
    host.keys("rs");
    assert_eq!(host.model.sort, Sort::State);
    assert_eq!(names(&mut host), ["web-2", "web-1", "job-1", "db"]);
    host.keys("ss");
    assert_eq!(host.model.sort, Sort::Health);
    assert_eq!(names(&mut host)[..2], ["web-2", "web-1"]);
    host.keys("s");
    assert_eq!(names(&mut host)[0], "web-2", "by load");
    host.keys("sf");
    assert_eq!(host.model.filter, Filter::Up);
    assert_eq!(names(&mut host), ["web-1", "web-2"]);
    host.keys("f");
    assert_eq!(names(&mut host), ["db", "web-2"], "unknown and unhealthy");
    host.keys("f");
    assert_eq!(names(&mut host), ["job-1"]);
    host.keys("f/WEBX\x08");
    assert_eq!(host.model.mode, Mode::Search);
    assert_eq!(names(&mut host), ["web-1", "web-2"]);
    // While it is searched, letters are no commands.
    assert!(host.keys("qT").is_empty());
    assert!(names(&mut host).is_empty());
    host.keys("\x1b");
    assert_eq!(names(&mut host).len(), 4);
    assert_eq!(host.keys("q"), [Action::Quit]);
}

#[test]
fn nothing_is_done_without_a_question() {
    let mut host = three();
    host.screen(80, 24);
    // What makes no sense is not asked.
    host.keys("jS");
    assert_eq!(host.model.mode, Mode::List);
    assert!(
        host.model.said.as_str().contains("job-1 is asleep"),
        "{}",
        host.model.said
    );
    assert!(host.keys("W").is_empty());
    assert_eq!(host.model.mode, Mode::Question(Deed::Wake, "job-1".into()));
    assert_eq!(host.screen(80, 24)[23], "wake job-1? y: yes, else no");
    assert!(host.keys("\n").is_empty(), "only y means yes");
    assert_eq!(host.model.mode, Mode::List);
    host.keys("W");
    assert_eq!(host.keys("y"), [Action::Do(Deed::Wake, "job-1".into())]);
    // It is about the VM that was asked about, whatever has moved meanwhile.
    host.keys("GT");
    // A terminal that gets another size is no answer.
    host.input(Input::Key(Key::Resized));
    host.input(Input::Fed(Fed::Registry(RegistryEvent::Gone {
        name: "db".into(),
    })));
    host.screen(80, 24);
    assert_eq!(host.keys("y"), [Action::Do(Deed::Stop, "web-2".into())]);
    host.input(Input::Done(OneLine::of("web-2 has stopped")));
    assert_eq!(host.screen(80, 24)[23], "web-2 has stopped");
}

#[test]
fn the_chosen_one_stays_chosen_and_on_the_screen() {
    let names: Vec<_> = (0..100).map(|number| format!("vm{number:02}")).collect();
    let vms: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), RunState::Stopped))
        .collect();
    let mut host = Host::with(&vms);
    host.screen(80, 24);
    host.input(Input::Key(Key::PageDown));
    host.input(Input::Key(Key::PageDown));
    let chosen = |host: &mut Host| {
        host.screen(80, 24);
        host.model.chosen(&host.now()).unwrap().name.to_owned()
    };
    assert_eq!(chosen(&mut host), "vm40");
    assert!(host.screen(80, 24).iter().any(|line| line.contains("vm40")));
    // Others come and go, it stays; when it goes, the next one is chosen.
    host.input(Input::Fed(Fed::Registry(RegistryEvent::Gone {
        name: "vm00".into(),
    })));
    assert_eq!(chosen(&mut host), "vm40");
    host.input(Input::Fed(Fed::Registry(RegistryEvent::Gone {
        name: "vm40".into(),
    })));
    assert_eq!(chosen(&mut host), "vm41");
    host.input(Input::Key(Key::End));
    assert_eq!(chosen(&mut host), "vm99");
    host.keys("r");
    assert_eq!(chosen(&mut host), "vm99", "now the first");
    host.input(Input::Key(Key::Home));
    host.input(Input::Key(Key::Up));
    assert_eq!(chosen(&mut host), "vm99");
}

#[test]
fn only_those_on_the_screen_are_asked_again_and_not_too_often() {
    let mut host = three();
    host.screen(80, 24);
    let asks = |host: &mut Host| {
        let now = host.now();
        let actions = host.model.tick(&now);
        let asked = actions.iter();
        asked
            .filter(|action| matches!(action, Action::View(Effect::Ask { .. })))
            .count()
    };
    assert_eq!(asks(&mut host), 0, "they have just answered");
    host.secs += 5;
    // Neither the one that sleeps nor the one that was never reached.
    assert_eq!(asks(&mut host), 2);
    assert_eq!(asks(&mut host), 0);
    host.secs += 5;
    host.keys("/web-1\n");
    host.screen(80, 24);
    assert_eq!(asks(&mut host), 1);
}

#[test]
fn it_has_settled_when_each_has_answered_or_failed() {
    let mut host = Host {
        model: Model::new(),
        tickets: HashMap::new(),
        secs: 1,
    };
    assert!(!host.model.has_settled(), "nobody has looked yet");
    host = Host::with(&[
        ("a", RunState::Running),
        ("b", RunState::Running),
        ("c", RunState::Stopped),
    ]);
    host.hear("a", guest("healthy", "idle", 0.0));
    assert!(!host.model.has_settled());
    host.input(Input::Fed(Fed::Agent(host.tickets["b"], Heard::Lost)));
    assert!(host.model.has_settled() && host.model.is_complete());
    // A folder that cannot be read keeps it from being complete, and nobody waiting.
    let part = RegistryEvent::Listed {
        vms: Vec::new(),
        whole: false,
    };
    host.input(Input::Fed(Fed::Registry(part)));
    assert!(host.model.has_settled() && !host.model.is_complete());
}

#[test]
fn a_state_lasts_until_it_changes() {
    let mut host = three();
    host.screen(80, 24);
    host.secs += 30;
    let line = |host: &mut Host, name: &str| {
        let screen = host.screen(80, 24);
        screen.into_iter().find(|line| line.contains(name)).unwrap()
    };
    assert!(line(&mut host, "web-1").contains("1m30s"));
    assert!(line(&mut host, "job-1").contains(">30s"));
    let stopped = Registered::new("web-1", RunState::Stopped);
    host.input(Input::Fed(Fed::Registry(RegistryEvent::Changed(stopped))));
    let web = line(&mut host, "web-1");
    assert!(web.contains("stopped  0s"), "{web}");
    assert!(!web.contains("disk-usage"), "nothing of before: {web}");
}
