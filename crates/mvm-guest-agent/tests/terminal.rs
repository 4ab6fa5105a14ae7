//! `exec` on a terminal.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::dev::{exec, shell, with};
use common::{Agent, As, Connection, Settings, folder};
use serde_json::{Value, json};

fn on_terminal(request: Value) -> Value {
    with(
        request,
        json!({"tty": {"cols": 91, "rows": 17}, "stdin": true}),
    )
}

fn begin(agent: &Agent, request: Value) -> Connection {
    let mut connection = agent.connection();
    let started = connection.begin(&on_terminal(request));
    assert_eq!(started["type"], "exec-started", "{started}");
    connection
}

#[test]
fn a_terminal_is_the_controlling_one_of_a_new_session_and_has_its_size() {
    let agent = Agent::start(&[], &[]);
    let mut connection = begin(
        &agent,
        shell(
            "tty; stty size; ps -o sid= -p $$; echo $$ $TERM; test -t 2 && echo err >&2 2>/dev/tty",
        ),
    );
    let ran = connection.rest();
    let text = ran.text().replace('\r', "");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text}");
    assert_eq!(lines[1], "17 91");
    assert_eq!(format!("{} xterm", lines[2].trim()), lines[3], "{text}");
    assert_eq!(lines[4], "err");
    assert_eq!(ran.errors(), "", "all comes on one channel");
    assert_eq!(ran.end(), (Some(0), None));
}

#[test]
fn a_command_can_close_its_terminal_and_reopen_it() {
    let agent = Agent::start(&[], &[]);
    // Nobody has it open for a while, twice; more than it holds is read all the same.
    let text = "for n in 1 2; do exec 0<&- 1>&- 2>&-; sleep 0.2; exec >/dev/tty; echo again $n; \
                head -c 100000 /dev/zero | tr '\\0' x; echo; done; exit 5";
    let ran = begin(&agent, shell(text)).rest();
    let lines: Vec<String> = ran.text().lines().map(str::to_owned).collect();
    let all = "x".repeat(100_000);
    assert!(
        lines == ["again 1", &all, "again 2", &all],
        "{} bytes",
        ran.text().len()
    );
    assert_eq!(ran.end(), (Some(5), None));
    // What is left running on it is hung up, as ever, and does not keep it open.
    let text = "trap '' HUP; sleep 1013.5 & exec 0<&- 1>&- 2>&-; exit 6";
    let ran = begin(&agent, shell(text)).rest();
    assert_eq!(ran.end(), (Some(6), None));
    assert_eq!(common::processes("sleep 1013.5"), [0; 0]);
}

#[test]
fn a_terminal_echoes_input_and_can_be_resized() {
    let agent = Agent::start(&[], &[]);
    let text =
        "trap 'stty size' WINCH; echo up; while read -r line; do echo \"<$line>\"; done; echo over";
    let mut connection = begin(&agent, exec(&["/bin/bash", "-c", text]));
    connection.until("up\r\n");
    connection.data(0, b"hello\n");
    assert!(
        connection.until("<hello>\r\n").contains("hello\r\n"),
        "echo"
    );
    connection.send(&json!({"type": "resize", "cols": 132, "rows": 50}));
    // A shell that reads a line tells of signals when it has it.
    connection.data(0, b"x\n");
    connection.until("50 132\r\n");
    // On a line that has begun, too, its end is the end.
    connection.data(0, b"half");
    connection.send(&json!({"type": "stdin-close"}));
    let ran = connection.rest();
    assert!(ran.text().contains("over"), "{}", ran.text());
    assert_eq!(ran.end(), (Some(0), None));
}

#[test]
fn control_c_interrupts_what_is_in_the_foreground() {
    for user in [As::Tester, As::Nobody] {
        let agent = Agent::launch(folder(&[], &[]), Settings::user(user));
        let bash = exec(&["/bin/bash", "--norc", "--noprofile", "-i"]);
        // Without the marks that it puts around what is pasted.
        let bash = with(bash, json!({"env": {"TERM": "dumb"}}));
        let mut connection = begin(&agent, bash);
        connection.data(0, b"PS1='ready> '\n");
        connection.until("\nready> ");
        connection.data(0, b"echo begun; sleep 1010.5\n");
        connection.until("\nbegun");
        // It is in the foreground by the time that it is that program.
        common::within(|| (common::processes("sleep 1010.5").len() == 1).then_some(()));
        connection.data(0, &[3]);
        connection.until("ready> ");
        connection.data(0, b"echo code $?\n");
        connection.until("\ncode 130");
        // Job control: a stopped job goes on in the background.
        connection.data(0, b"sleep 1011.5\n");
        common::within(|| (common::processes("sleep 1011.5").len() == 1).then_some(()));
        connection.data(0, &[26]);
        connection.until("Stopped");
        connection.data(0, b"bg; jobs\n");
        connection.until("Running");
        connection.data(0, b"exit 7\n");
        let ran = connection.rest();
        assert_eq!(ran.end(), (Some(7), None), "{}", ran.text());
        assert_eq!(common::processes("sleep 1011.5"), [0; 0]);
    }
}

#[test]
fn a_terminal_belongs_to_its_user() {
    let agent = Agent::start(&[], &[]);
    let text = "stat -c '%u %a' $(tty); echo direct > $(tty)";
    let mut connection = begin(&agent, with(shell(text), json!({"user": "nobody"})));
    let ran = connection.rest();
    assert_eq!(ran.text(), "65534 620\r\ndirect\r\n");
    let resize = json!({"type": "resize", "cols": 1, "rows": 1});
    let mut pipes = agent.connection();
    pipes.begin(&with(exec(&["cat"]), json!({"stdin": true})));
    pipes.send(&resize);
    let refusal = pipes.json();
    assert_eq!(refusal["code"], "bad-request", "{refusal}");
    pipes.data(0, b"and it goes on");
    pipes.send(&json!({"type": "stdin-close"}));
    assert_eq!(pipes.rest().text(), "and it goes on");
}
