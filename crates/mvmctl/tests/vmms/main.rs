//! `mvmctl vm snapshot` and `vm restore` from end to end with Firecracker and Cloud Hypervisor: with
//! stand-ins for them, processes with the real ones' interface and manners and a guest's agent behind
//! their vsock socket, and with the real programs that `MVM_TEST_FIRECRACKER` and
//! `MVM_TEST_CLOUD_HYPERVISOR` name. What is asked of the VMM and of the guest, and in which order, is
//! the contract of docs/snapshots.md.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod broken_off;
mod endings;
mod fleet;
mod fleet_killed;
mod stories;
mod supervised;
mod test_host;
mod untold;

use libtest_mimic::{Arguments, Trial};
use mvm_fake_vmm::{Subject, subjects};
use test_host::Backend;

/// Tests with one VMM.
macro_rules! trials {
    ($vmm:expr, $backend:expr; $($test:ident),+ $(,)?) => {
        [$(trial($vmm, stringify!($test), $backend, stories::$test)),+]
    };
}

/// The same for those with `vm run`.
macro_rules! supervised {
    ($vmm:expr, $backend:expr; $($test:ident),+ $(,)?) => {
        [$(trial($vmm, stringify!($test), $backend, supervised::$test)),+]
    };
}

fn trial(vmm: &Subject, test: &str, backend: Backend, story: Story) -> Trial {
    let vmm = vmm.clone();
    Trial::test(format!("{}::{test}", vmm.name()), move || {
        vmm.select();
        story(&backend);
        Ok(())
    })
}

/// Stories of restores that are broken off.
const UNTOLD: &[(&str, Story)] = &[
    (
        "the_next_wake_makes_a_clone_of_it",
        untold::the_next_wake_makes_a_clone_of_it,
    ),
    (
        "what_it_was_to_be_handed_is_asked_for",
        untold::what_it_was_to_be_handed_is_asked_for,
    ),
    (
        "the_next_run_tells_it_before_it_takes_it_over",
        untold::the_next_run_tells_it_before_it_takes_it_over,
    ),
    (
        "who_interrupts_it_is_told_how_to_wake_the_guest",
        untold::who_interrupts_it_is_told_how_to_wake_the_guest,
    ),
    (
        "what_loading_took_of_the_timeout_is_not_there_for_the_wake",
        untold::what_loading_took_of_the_timeout_is_not_there_for_the_wake,
    ),
    (
        "one_that_is_awake_runs_on_whether_that_can_be_noted_or_not",
        untold::one_that_is_awake_runs_on_whether_that_can_be_noted_or_not,
    ),
    (
        "one_that_could_not_be_personalized_and_runs_is_tried_again",
        untold::one_that_could_not_be_personalized_and_runs_is_tried_again,
    ),
];

/// What is told of a VMM.
type Story = fn(&Backend);

/// Stories of what does not come to its end.
const BROKEN_OFF: &[(&str, Story)] = &[
    (
        "a_restore_that_is_killed_leaves_nothing_that_rm_does_not_find",
        broken_off::a_restore_that_is_killed_leaves_nothing_that_rm_does_not_find,
    ),
    (
        "a_restore_that_is_killed_leaves_a_suspended_vm_asleep",
        broken_off::a_restore_that_is_killed_leaves_a_suspended_vm_asleep,
    ),
    (
        "a_vmm_that_dies_while_its_guest_is_woken_is_told_at_once",
        broken_off::a_vmm_that_dies_while_its_guest_is_woken_is_told_at_once,
    ),
];

/// Stories of the fleet.
const FLEET: &[(&str, Story)] = &[
    (
        "idle_ones_pause_and_then_sleep_and_a_connection_wakes_one",
        fleet::idle_ones_pause_and_then_sleep_and_a_connection_wakes_one,
    ),
    (
        "fifty_connections_wake_one",
        fleet::fifty_connections_wake_one,
    ),
    (
        "a_clone_is_known_as_soon_as_it_is_awake",
        fleet::a_clone_is_known_as_soon_as_it_is_awake,
    ),
    (
        "a_golden_pool_keeps_spare_and_at_most_max",
        fleet::a_golden_pool_keeps_spare_and_at_most_max,
    ),
    (
        "a_checkpoint_that_fails_costs_the_vm_nothing_and_is_tried_again",
        fleet::a_checkpoint_that_fails_costs_the_vm_nothing_and_is_tried_again,
    ),
    (
        "one_that_works_is_touched_or_pinned_is_let_be",
        fleet::one_that_works_is_touched_or_pinned_is_let_be,
    ),
    (
        "what_the_user_paused_is_the_users",
        fleet::what_the_user_paused_is_the_users,
    ),
    (
        "one_that_something_else_paused_is_seen_to_run_again",
        fleet::one_that_something_else_paused_is_seen_to_run_again,
    ),
    (
        "killed_within_each_step_it_goes_on",
        fleet_killed::killed_within_each_step_it_goes_on,
    ),
    (
        "killed_at_any_moment_it_goes_on",
        fleet_killed::killed_at_any_moment_it_goes_on,
    ),
];

fn main() {
    mvm_fake_vmm::run_if_called();
    let programs = test_host::install();
    let mut trials = Vec::new();
    for name in ["firecracker", "cloud-hypervisor"] {
        let (found, wrong) = subjects(name);
        for vmm in &found {
            trials.extend(of(vmm));
        }
        for why in wrong {
            trials.push(Trial::test("real_programs", move || Err(why.into())));
        }
    }
    let mut arguments = Arguments::from_args();
    // One after the other, as nextest has them anyway: a process that one thread is just starting
    // holds, until it is the other program, the VMs' locks that the other threads have; and which
    // VMM the program in its place is goes for all threads.
    arguments.test_threads = Some(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(programs);
    conclusion.exit();
}

fn of(vmm: &Subject) -> Vec<Trial> {
    let backend = Backend::of(vmm);
    let mut trials = Vec::new();
    if !vmm.is_real() {
        // What goes wrong is the guest.
        trials.extend(trials![vmm, backend;
            a_guest_that_does_not_get_ready_costs_the_vm_nothing,
            a_sleep_whose_answer_is_lost_is_undone,
            an_interrupt_ends_the_waiting_for_a_guest,
            a_guest_that_was_not_asleep_was_not_restored,
            a_restore_that_fails_leaves_no_new_vm,
        ]);
        trials.extend(supervised![vmm, backend;
            a_vm_is_ready_when_its_guest_is_and_the_watchdog_is_its_agents,
            asked_to_end_it_sleeps_and_goes_on_in_the_next_run,
            it_begins_from_a_snapshot,
            the_exit_code_says_how_it_ended,
            after_a_crash_the_next_run_takes_over_or_replaces_what_is_left,
            a_second_signal_ends_it_at_once,
            one_that_cannot_sleep_is_stopped_and_that_is_told,
            what_others_do_to_it_in_order_is_no_failure,
        ]);
        let how_it_ended = endings::how_a_vm_ended_is_told_by_every_command;
        trials.push(trial(
            vmm,
            "how_a_vm_ended_is_told_by_every_command",
            backend,
            how_it_ended,
        ));
        if vmm.backend == "firecracker" {
            trials.extend(trials![vmm, backend;
                the_broken_version_is_refused, that_a_vmm_has_no_room_for_a_connection_is_told,
            ]);
        }
    }
    if vmm.backend == "firecracker" && vmm.version == "1.16.0" {
        trials.extend(trials![vmm, backend; no_snapshot_is_taken_with_it]);
        return trials;
    }
    if !vmm.is_real() {
        for (test, story) in FLEET.iter().chain(UNTOLD).chain(BROKEN_OFF) {
            trials.push(trial(vmm, test, backend, *story));
        }
    }
    trials.extend(trials![vmm, backend;
        a_snapshot_keeps_to_the_contract_and_so_does_its_clone,
        a_vm_is_suspended_and_resumed,
        a_snapshot_that_fails_is_undone_and_the_guest_is_told,
        a_vmm_that_dies_is_told,
        a_vmm_that_is_too_slow_is_given_up_and_the_vm_runs_on,
        the_next_command_mends_what_a_killed_one_has_left,
        one_that_something_else_paused_is_not_dialled,
        one_that_something_else_paused_is_let_run_to_be_stopped,
        one_whose_vmm_does_not_answer_is_not_dialled,
        a_suspended_vm_is_not_booted_for_nothing,
    ]);
    trials
}
