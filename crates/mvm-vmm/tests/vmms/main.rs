//! The drivers of Firecracker and Cloud Hypervisor against stand-ins for them, and against the real
//! programs that `MVM_TEST_FIRECRACKER` and `MVM_TEST_CLOUD_HYPERVISOR` name.
//!
//! This executable is the stand-ins, see `mvm-fake-vmm`: the drivers start it as the VMM. So
//! processes, sockets and files are real, and only the VMM is not. In front of a real VMM it writes
//! down what is asked, and lets it go wrong.

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
use mvm_fake_vmm::{Subject, subjects};

/// The tests of a module, by their names.
macro_rules! stories {
    ($vmm:expr, $module:ident: $($test:ident),+ $(,)?) => {
        [$(trial($vmm, stringify!($test), $module::$test)),+]
    };
}

fn trial(vmm: &Subject, test: &str, story: fn(&Subject)) -> Trial {
    let vmm = vmm.clone();
    Trial::test(format!("{}::{test}", vmm.name()), move || {
        vmm.select();
        story(&vmm);
        Ok(())
    })
}

fn main() {
    mvm_fake_vmm::run_if_called();
    let programs = test_host::install();
    let (firecracker, wrong) = subjects("firecracker");
    let (cloud_hypervisor, more_wrong) = subjects("cloud-hypervisor");
    let mut trials = Vec::new();
    for vmm in &firecracker {
        trials.extend(of_firecracker(vmm));
    }
    for vmm in &cloud_hypervisor {
        trials.extend(of_cloud_hypervisor(vmm));
    }
    for why in wrong.into_iter().chain(more_wrong) {
        trials.push(Trial::test("real_programs", move || Err(why.into())));
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

fn of_firecracker(vmm: &Subject) -> Vec<Trial> {
    let mut trials = Vec::from(stories! {
        vmm, firecracker: starts_and_stops, has_its_root_file_system, starts_again_after_a_crash,
        a_start_that_fails_leaves_no_process, an_answer_with_more_in_it_is_not_taken,
        its_own_words_are_not_in_the_guests_console,
    });
    trials.extend(stories! {
        vmm, manners: firecracker_keeps_its_order, firecracker_knows_its_fields,
        it_does_not_start_over_a_socket,
    });
    if !vmm.is_real() {
        trials.extend(stories! {
            vmm, firecracker: is_chosen_if_kvm_boots_the_kernel, the_broken_version_is_refused,
            every_version_restores_its_own_snapshots, what_nobody_touched_is_not_written,
            another_versions_snapshot_is_refused_before_anything_starts,
        });
        trials.extend(stories! { vmm, manners: firecracker_knows_the_fields_of_its_version });
    }
    if vmm.version == "1.16.0" {
        trials.extend(stories! { vmm, firecracker: no_snapshot_is_taken_with_it });
    } else {
        trials.extend(stories! {
            vmm, firecracker: snapshots_and_runs_on, suspends_and_resumes,
            a_clone_has_sockets_of_its_own,
            a_manifest_that_does_not_go_together_is_refused_before_anything_starts,
            a_snapshot_that_fails_leaves_the_vm_running,
            a_vmm_that_dies_while_snapshotting_is_told,
            a_vmm_that_hangs_while_snapshotting_is_given_up,
            a_load_that_fails_is_told_with_the_end_of_the_process,
        });
        trials.extend(stories! { vmm, both: where_a_snapshot_is_made_is_noted_before_it_is });
    }
    trials
}

fn of_cloud_hypervisor(vmm: &Subject) -> Vec<Trial> {
    let mut trials = Vec::from(stories! {
        vmm, cloud_hypervisor: starts_and_stops, has_its_root_file_system,
        starts_again_after_a_crash, a_start_that_fails_leaves_no_process,
        an_answer_with_more_in_it_is_not_taken, snapshots_and_runs_on, suspends_and_resumes,
        a_restore_leaves_the_snapshot_as_it_was, the_first_request_after_a_restore_may_fail,
        a_resume_whose_answer_was_lost_is_not_made_again,
        a_snapshot_that_fails_leaves_the_vm_running, a_vmm_that_dies_while_snapshotting_is_told,
    });
    trials.extend(stories! { vmm, both: where_a_snapshot_is_made_is_noted_before_it_is });
    trials.extend(stories! { vmm, manners: cloud_hypervisor_keeps_its_order });
    trials.extend(stories! { vmm, manners: cloud_hypervisor_finds_missing_fields_at_once });
    if !vmm.is_real() {
        trials.extend(stories! {
            vmm, manners: cloud_hypervisor_finds_unknown_fields_at_boot,
            cloud_hypervisor_has_what_53_has,
        });
        trials.extend(stories! {
            vmm, cloud_hypervisor: a_disk_has_its_type_where_the_version_asks_for_it,
            a_later_versions_snapshot_is_refused_before_anything_starts,
        });
    }
    // Later ones take the place of one where nobody listens.
    if vmm.major() < 53 {
        trials.extend(stories! { vmm, manners: it_does_not_start_over_a_socket });
    }
    trials
}
