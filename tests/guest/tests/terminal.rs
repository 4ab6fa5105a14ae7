//! An interactive shell in a guest, at a terminal: tmux is the person's.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, TestVm, Tmux};

#[test]
fn a_shell_with_job_control() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let exec = format!(
        "PS1='here$ ' MVM_HOME={} {} vm exec -it -e PS1='there$ ' {} -- sh; echo ended $?; stty -a | \
         grep -o ' -*icanon'; exec sh",
        mvmctl.home().display(),
        mvmctl.program().display(),
        vm.address()
    );
    let terminal = Tmux::start((90, 30), &exec);
    terminal.expect("there$");
    // Echo is the guest's terminal's.
    terminal.press(&["stty size; echo $TERM", "Enter"]);
    terminal.expect("there$ stty size; echo $TERM");
    terminal.expect("30 90");
    // It says itself when it is in the foreground: keys before that are the shell's.
    let job = "sh -c 'trap \"echo again\" CONT; echo runs; while :; do sleep 0.1; done'";
    terminal.press(&[job, "Enter"]);
    terminal.expect("runs");
    terminal.press(&["C-z"]);
    terminal.expect_part("[1]+  Stopped");
    terminal.press(&["fg", "Enter"]);
    terminal.expect("again");
    terminal.press(&["C-c"]);
    terminal.press(&["echo $? back", "Enter"]);
    terminal.expect("130 back");
    terminal.resize((120, 40));
    terminal.press(&["stty size", "Enter"]);
    terminal.expect("40 120");
    terminal.press(&["exit 7", "Enter"]);
    terminal.expect("ended 7");
    terminal.expect(" icanon");
}
