//! The drivers of Firecracker and Cloud Hypervisor against stand-ins for them.
//!
//! This executable is both, see `mvm-fake-vmm`: the drivers start it as the VMM. So processes, sockets
//! and files are real, and only the VMM is not.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod both;
mod cloud_hypervisor;
mod firecracker;
mod manners;
mod test_host;

use libtest_mimic::{Arguments, Trial};

/// Tests by their functions' names, below their module's.
macro_rules! trials {
    ($($module:ident: $($test:ident),+;)+) => {
        vec![$($(Trial::test(
            concat!(stringify!($module), "::", stringify!($test)),
            || {
                $module::$test();
                Ok(())
            },
        ),)+)+]
    };
}

fn main() {
    mvm_fake_vmm::run_if_called();
    let programs = test_host::install();
    let trials = trials! {
        firecracker: starts_and_stops, is_chosen_if_kvm_boots_the_kernel, has_its_root_file_system, starts_again_after_a_crash,
            a_start_that_fails_leaves_no_process, an_answer_with_more_in_it_is_not_taken,
            its_own_words_are_not_in_the_guests_console,
            snapshots_and_runs_on, suspends_and_resumes, a_clone_has_sockets_of_its_own,
            every_version_restores_its_own_snapshots,
            another_versions_snapshot_is_refused_before_anything_starts,
            a_manifest_that_does_not_go_together_is_refused_before_anything_starts,
            a_snapshot_that_fails_leaves_the_vm_running, a_vmm_that_dies_while_snapshotting_is_told,
            a_vmm_that_hangs_while_snapshotting_is_given_up, the_broken_version_is_refused,
            a_load_that_fails_is_told_with_the_end_of_the_process;
        cloud_hypervisor: starts_and_stops, has_its_root_file_system,
            a_disk_has_its_type_where_the_version_asks_for_it,
            a_later_versions_snapshot_is_refused_before_anything_starts, starts_again_after_a_crash,
            a_start_that_fails_leaves_no_process, an_answer_with_more_in_it_is_not_taken,
            snapshots_and_runs_on, suspends_and_resumes, a_restore_leaves_the_snapshot_as_it_was,
            the_first_request_after_a_restore_may_fail,
            a_resume_whose_answer_was_lost_is_not_made_again,
            a_snapshot_that_fails_leaves_the_vm_running, a_vmm_that_dies_while_snapshotting_is_told;
        manners: firecracker_keeps_its_order, firecracker_knows_its_fields,
            firecracker_knows_the_fields_of_its_version,
            cloud_hypervisor_keeps_its_order, cloud_hypervisor_finds_unknown_fields_at_boot,
            neither_starts_over_a_socket;
    };
    let mut arguments = Arguments::from_args();
    // One after the other, as nextest has them anyway: a process that one thread is just starting
    // holds, until it is the other program, the VMs' locks that the other threads have.
    arguments.test_threads.get_or_insert(1);
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(programs);
    conclusion.exit();
}
