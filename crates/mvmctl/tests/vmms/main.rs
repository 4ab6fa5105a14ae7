//! `mvmctl vm snapshot` and `vm restore` from end to end with Firecracker and Cloud Hypervisor, or
//! rather with stand-ins for them: processes with the real ones' interface and manners, and a guest's
//! agent behind their vsock socket. What is asked of the VMM and of the guest, and in which order, is
//! the contract of docs/snapshots.md.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod stories;
mod test_host;

use libtest_mimic::{Arguments, Trial};
use test_host::Backend;

/// Each test with each of the backends.
macro_rules! trials {
    ($($test:ident),+ $(,)?) => {
        [Backend::FIRECRACKER, Backend::CLOUD_HYPERVISOR]
            .into_iter()
            .flat_map(|backend| {
                [$(Trial::test(format!("{}::{}", backend.name, stringify!($test)), move || {
                    stories::$test(&backend);
                    Ok(())
                })),+]
            })
            .collect()
    };
}

fn main() {
    mvm_fake_vmm::run_if_called();
    let programs = test_host::install();
    let mut trials: Vec<Trial> = trials![
        a_snapshot_keeps_to_the_contract_and_so_does_its_clone,
        a_vm_is_suspended_and_resumed,
        a_guest_that_does_not_get_ready_costs_the_vm_nothing,
        a_snapshot_that_fails_is_undone_and_the_guest_is_told,
        a_sleep_whose_answer_is_lost_is_undone,
        a_vmm_that_dies_is_told,
        a_vmm_that_is_too_slow_is_given_up_and_the_vm_runs_on,
        the_next_command_mends_what_a_killed_one_has_left,
        how_a_vm_ended_is_told_by_every_command,
        one_that_something_else_paused_is_not_dialled,
        one_whose_vmm_does_not_answer_is_not_dialled,
        a_suspended_vm_is_not_booted_for_nothing,
        a_restore_that_is_killed_leaves_nothing_that_rm_does_not_find,
        a_restore_that_fails_leaves_no_new_vm,
    ];
    trials.push(Trial::test(
        "firecracker::the_broken_version_is_refused",
        || {
            stories::the_broken_version_is_refused();
            Ok(())
        },
    ));
    let mut arguments = Arguments::from_args();
    // One after the other, as nextest has them anyway: a process that one thread is just starting
    // holds, until it is the other program, the VMs' locks that the other threads have.
    arguments.test_threads.get_or_insert(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(programs);
    conclusion.exit();
}
