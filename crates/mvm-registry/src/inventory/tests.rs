//! Folders in which VMs are found, and some in which they are not.

mod asked;

use super::*;
use crate::process::ProcessId;
use crate::record::tests::record;
use crate::{Ending, Process, Recorded, Role};
use mvm_fake_agent::unprivileged;
use std::os::unix::fs::PermissionsExt as _;

/// A home with folders of the given names; in each a `v.sock` if there is no record, else the
/// record.
fn home_with(vms: &[(&str, Option<&str>)]) -> (tempfile::TempDir, Inventory) {
    let home = tempfile::tempdir().unwrap();
    for (name, record) in vms {
        let folder = home.path().join("vms").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        match record {
            Some(record) => std::fs::write(folder.join("vm.json"), record).unwrap(),
            None => std::fs::write(folder.join("v.sock"), "").unwrap(),
        }
    }
    let inventory = Inventory::at(home.path());
    (home, inventory)
}

#[test]
fn a_vm_is_a_folder_with_a_socket_or_a_record() {
    let (home, inventory) = home_with(&[
        ("b", None),
        ("a", Some(r#"{"backend":"qemu","state":"running","pid":7}"#)),
        ("not a name", None),
    ]);
    std::fs::create_dir(home.path().join("vms/empty")).unwrap();
    std::fs::write(home.path().join("vms/file"), "").unwrap();
    let vms = inventory.list().unwrap().vms;
    let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(vms[0].backend.as_deref(), Some("qemu"));
    let socket = home.path().join("vms/a/v.sock");
    assert_eq!(vms[0].endpoint().unwrap(), &Endpoint::unix(socket));
}

#[test]
fn no_folder_means_no_vm() {
    assert!(Inventory::at("/nonexistent").list().unwrap().vms.is_empty());
}

#[test]
fn what_does_not_run_is_never_dialled() {
    let (_home, inventory) = home_with(&[
        ("asleep", Some(r#"{"state":"asleep"}"#)),
        ("stopped", Some(r#"{"state":"stopped"}"#)),
        ("newer", Some(r#"{"state":"hovering"}"#)),
        ("broken", Some("{")),
        ("mistyped", Some(r#"{"state":1}"#)),
        ("elsewhere", Some(r#"{"address":"nowhere"}"#)),
    ]);
    let error = |name| inventory.find(name).unwrap().endpoint().unwrap_err();
    for name in ["asleep", "stopped"] {
        assert!(
            matches!(error(name), Error::NotRunning { state } if state.to_string() == name),
            "{name}"
        );
    }
    let newer = error("newer");
    assert!(matches!(newer, Error::NotRunning { state } if state.to_string() == "hovering"));
    for name in ["broken", "mistyped", "elsewhere"] {
        assert!(matches!(error(name), Error::BadRecord { .. }), "{name}");
    }
}

#[test]
fn a_record_can_say_where_the_agent_is() {
    let (_home, inventory) = home_with(&[("a", Some(r#"{"address":"vsock:7","port":1024}"#))]);
    let vm = inventory.find("a").unwrap();
    assert_eq!(
        vm.endpoint().unwrap(),
        &Endpoint::vsock(7).unwrap().with_port(1024)
    );
}

#[test]
fn addresses_need_no_folder() {
    let vm = Inventory::at("/nonexistent")
        .find("unix:/run/v.sock")
        .unwrap();
    assert_eq!(vm.name, "unix:/run/v.sock");
    assert_eq!(vm.endpoint().unwrap(), &Endpoint::unix("/run/v.sock"));
}

#[test]
fn a_typo_gets_the_nearest_name() {
    let (_home, inventory) = home_with(&[("web-1", None), ("web-2", None), ("db", None)]);
    let nearest = |typed| match inventory.find(typed) {
        Err(Error::NoSuchVm { nearest, .. }) => nearest,
        other => panic!("{other:?}"),
    };
    assert_eq!(nearest("wbe-1").as_deref(), Some("web-1"));
    assert_eq!(nearest("web2").as_deref(), Some("web-2"));
    assert_eq!(nearest("bd").as_deref(), Some("db"));
    assert_eq!(nearest("mail"), None);
}

#[test]
fn names_do_not_lead_out_of_the_folder() {
    let inventory = Inventory::at("/nonexistent");
    for name in [
        ".",
        "..",
        "",
        "a/b",
        "/run/v.sock",
        "é",
        "a b",
        &"x".repeat(65),
        "vsock:1",
    ] {
        assert!(
            matches!(
                inventory.find(name),
                Err(Error::NeitherNameNorAddress { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn settings_add_vms_and_do_not_replace_any() {
    let (home, mut inventory) = home_with(&[("a", None)]);
    let jailer = home.path().join("jailer");
    for name in ["a", "c"] {
        std::fs::create_dir_all(jailer.join(name)).unwrap();
        std::fs::write(jailer.join(name).join("v.sock"), "").unwrap();
    }
    let config = home.path().join("mvmctl.toml");
    std::fs::write(
        &config,
        format!("discover = [\"{}/*/v.sock\"]", jailer.display()),
    )
    .unwrap();
    inventory.settings = Settings::load(Some(&config), |_| None).unwrap();
    let vms = inventory.list().unwrap().vms;
    let ends: Vec<_> = vms
        .iter()
        .map(|vm| vm.endpoint().unwrap().clone())
        .collect();
    assert_eq!(
        ends,
        [
            Endpoint::unix(home.path().join("vms/a/v.sock")),
            Endpoint::unix(jailer.join("c/v.sock"))
        ]
    );
    assert_eq!(inventory.find("c").unwrap().endpoint().unwrap(), &ends[1]);
}

#[test]
fn home_by_the_book() {
    let at = |variables: &[(&str, &str)], is_root| {
        home(
            |name| {
                let value = variables.iter().find(|(variable, _)| *variable == name);
                value.map(|(_, value)| (*value).into())
            },
            is_root,
        )
        .ok()
        .map(|path| path.display().to_string())
    };
    let user = [("HOME", "/home/u")];
    assert_eq!(at(&[("MVM_HOME", "/m")], true).as_deref(), Some("/m"));
    let here = std::env::current_dir().unwrap().join("m");
    assert_eq!(
        at(&[("MVM_HOME", "m")], true).as_deref(),
        here.to_str(),
        "absolute once it is read"
    );
    assert_eq!(at(&user, true).as_deref(), Some("/var/lib/mvm"));
    assert_eq!(
        at(&user, false).as_deref(),
        Some("/home/u/.local/share/mvm")
    );
    let xdg = [("XDG_DATA_HOME", "/d"), ("HOME", "/home/u")];
    assert_eq!(at(&xdg, false).as_deref(), Some("/d/mvm"));
    let relative = [("XDG_DATA_HOME", "d"), ("HOME", "/home/u")];
    assert_eq!(
        at(&relative, false).as_deref(),
        Some("/home/u/.local/share/mvm")
    );
    assert_eq!(at(&[], false), None);
}

/// The folder, and settings that have VMs looked for in it.
fn discovering(inventory: &mut Inventory, folders: &[&Path]) {
    let patterns: Vec<_> = folders
        .iter()
        .map(|folder| format!("{:?}", folder.join("*/v.sock")))
        .collect();
    let config = inventory.home.root().join("mvmctl.toml");
    std::fs::write(&config, format!("discover = [{}]", patterns.join(","))).unwrap();
    inventory.settings = Settings::load(Some(&config), |_| None).unwrap();
}

/// A folder that nobody can look at, root neither: a link to itself.
fn closed(home: &Path) -> PathBuf {
    let folder = home.join("closed");
    std::os::unix::fs::symlink(&folder, &folder).unwrap();
    folder
}

#[test]
fn a_folder_that_cannot_be_read_takes_no_others_away() {
    let (home, mut inventory) = home_with(&[("web-1", None)]);
    let jailer = home.path().join("jailer");
    std::fs::create_dir_all(jailer.join("db")).unwrap();
    std::fs::write(jailer.join("db/v.sock"), "").unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let closed = closed(home.path());
    discovering(&mut inventory, &[&closed, &file, &jailer]);

    let found = inventory.list().unwrap();
    let names: Vec<_> = found.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["db", "web-1"]);
    let unreadable: Vec<_> = found
        .unreadable
        .iter()
        .map(|one| one.path.clone())
        .collect();
    assert_eq!(unreadable, [closed.clone(), file.clone()]);
    assert!(found.unreadable[0].hint().contains("discover"));

    assert_eq!(inventory.find("db").unwrap().name, "db");
    let error = inventory.find("wbe-1").unwrap_err();
    let told = error.to_string();
    assert!(told.contains("no VM has that name"), "{told}");
    for folder in [closed, file] {
        let folder = format!("cannot look for VMs in {}: ", folder.display());
        assert!(told.contains(&folder), "{told}");
    }
    let hint = error.hint("wbe-1");
    assert!(
        hint.contains("did you mean `web-1`?") && hint.contains("discover"),
        "{hint}"
    );
}

#[test]
fn others_are_found_where_the_home_cannot_be_read() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("vms"), "").unwrap();
    let mut inventory = Inventory::at(home.path());
    for error in [
        inventory.list().unwrap_err(),
        inventory.find("web").unwrap_err(),
    ] {
        assert!(matches!(error, Error::NoInventory { .. }), "{error:?}");
        assert!(error.hint("web").contains("MVM_HOME"));
    }
    let jailer = home.path().join("jailer");
    std::fs::create_dir_all(jailer.join("db")).unwrap();
    std::fs::write(jailer.join("db/v.sock"), "").unwrap();
    discovering(&mut inventory, &[&jailer]);
    let found = inventory.list().unwrap();
    assert_eq!((found.vms.len(), found.unreadable.len()), (1, 1));
    assert!(found.unreadable[0].hint().contains("MVM_HOME"));

    // And where nothing at all can be seen, that is no fleet of none.
    let closed = closed(home.path());
    discovering(&mut inventory, &[&closed]);
    let error = inventory.list().unwrap_err();
    assert!(matches!(error, Error::NoInventory { .. }), "{error:?}");
}

#[test]
fn a_file_where_a_folder_would_be_is_no_vm() {
    let (home, mut inventory) = home_with(&[]);
    let jailer = home.path().join("jailer");
    std::fs::create_dir_all(&jailer).unwrap();
    std::fs::write(jailer.join("README"), "").unwrap();
    discovering(&mut inventory, &[&jailer]);
    assert!(inventory.list().unwrap().vms.is_empty());
    let error = inventory.find("README").unwrap_err();
    assert!(
        matches!(error, Error::NoSuchVm { ref unreadable, .. } if unreadable.is_empty()),
        "{error:?}"
    );
}

#[test]
fn a_vm_that_is_there_and_closed_to_us_is_dialled_to_say_so() {
    let (home, mut inventory) = home_with(&[]);
    let jailer = home.path().join("jailer");
    std::fs::create_dir_all(&jailer).unwrap();
    // As good as a folder of another user's: it is there, and what is in it cannot be told.
    std::os::unix::fs::symlink("web", jailer.join("web")).unwrap();
    discovering(&mut inventory, &[&jailer]);
    assert_eq!(inventory.list().unwrap().vms.len(), 1);
    let socket = jailer.join("web/v.sock");
    assert_eq!(
        inventory.find("web").unwrap().endpoint().unwrap(),
        &Endpoint::unix(socket)
    );
}

#[test]
fn what_this_user_may_not_see_is_told_as_such() {
    let (home, mut inventory) = home_with(&[("theirs", Some("{}")), ("mine", None)]);
    let jailer = home.path().join("jailer");
    std::fs::create_dir_all(jailer.join("db")).unwrap();
    discovering(&mut inventory, &[&jailer]);
    let close = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap();
    };
    let theirs = home.path().join("vms/theirs");
    close(&theirs);
    close(&jailer);
    unprivileged(|| {
        let found = inventory.list().unwrap();
        assert_eq!((found.vms.len(), found.unreadable.len()), (2, 1));
        let error = inventory.find("theirs").unwrap().endpoint().unwrap_err();
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
        let error = inventory.find("mien").unwrap_err();
        assert!(error.to_string().contains("Permission denied"), "{error}");
        assert!(error.hint("mien").contains("did you mean `mine`?"));
    });
    let vms = home.path().join("vms");
    close(&vms);
    unprivileged(|| {
        for error in [
            inventory.list().unwrap_err(),
            inventory.find("mine").unwrap_err(),
        ] {
            assert!(matches!(error, Error::NoInventory { .. }), "{error:?}");
        }
    });
    // For the folder to be removed by those who are not root.
    for folder in [&vms, &jailer, &theirs] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// This process, as a VM's.
fn own_process(role: Role) -> Process {
    let own = ProcessId::own().unwrap();
    Process {
        role,
        pid: own.pid,
        start_ticks: own.start_ticks,
    }
}

/// A process that is not there.
fn gone(role: Role) -> Process {
    Process {
        start_ticks: 1,
        ..own_process(role)
    }
}

/// A home with a VM `web` of that record.
fn home_of(record: &Record) -> (tempfile::TempDir, Inventory) {
    let (home, inventory) = home_with(&[]);
    let folder = inventory.home().vm(&VmName::new("web").unwrap());
    folder.create().unwrap();
    folder.save(record).unwrap();
    (home, inventory)
}

fn state(inventory: &Inventory) -> VmState {
    inventory.find("web").unwrap().state
}

#[test]
fn one_that_ended_by_itself_is_not_dialled_and_says_how() {
    let record = Record {
        processes: vec![gone(Role::Vmm)],
        ..record()
    };
    let (home, inventory) = home_of(&record);
    assert_eq!(state(&inventory), VmState::Ended(Ending::Unknown));
    std::fs::write(
        home.path().join("vms/web/console.log"),
        "[    9.1] reboot: Power down\r\n",
    )
    .unwrap();
    let error = inventory.find("web").unwrap().endpoint().unwrap_err();
    assert!(
        matches!(error, Error::Ended(Ending::PoweredOff)),
        "{error:?}"
    );
    assert_eq!((error.code(), error.is_retryable()), ("vm-ended", false));
    let told = "the VM has ended by itself: its guest powered off";
    assert_eq!(error.to_string(), told);
}

#[test]
fn after_a_restart_of_this_machine_what_ran_has_ended() {
    let record = Record {
        processes: vec![own_process(Role::Vmm)],
        boot_id: "another".into(),
        ..record()
    };
    let (_home, inventory) = home_of(&record);
    assert_eq!(state(&inventory), VmState::Ended(Ending::HostRestarted));
}

#[test]
fn starting_is_who_holds_the_lock() {
    let record = Record {
        state: Recorded::Starting,
        processes: vec![own_process(Role::Vmm)],
        ..record()
    };
    let (_home, inventory) = home_of(&record);
    assert_eq!(state(&inventory), VmState::StartBrokenOff);
    let web = VmName::new("web").unwrap();
    let _lock = inventory.home().lock(&web).unwrap();
    assert_eq!(state(&inventory), VmState::Starting);
}

#[test]
fn without_its_vsock_backend_it_runs_and_is_not_dialled() {
    let record = Record {
        processes: vec![gone(Role::Vsock), own_process(Role::Vmm)],
        ..record()
    };
    let (_home, inventory) = home_of(&record);
    let vm = inventory.find("web").unwrap();
    assert_eq!(vm.state, VmState::Running);
    let error = vm.endpoint().unwrap_err();
    assert!(matches!(error, Error::VsockEnded), "{error:?}");
}

#[test]
fn vms_are_chosen_by_label_and_pool() {
    let (_home, inventory) = home_with(&[
        ("web-1", Some(r#"{"labels":{"tier":"front"}}"#)),
        ("web-2", None),
        ("db", Some(r#"{"labels":{"pool":"web","bad key":"x"}}"#)),
    ]);
    let chosen = |selectors: &[&str]| -> Vec<String> {
        let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
        let vms = inventory.list().unwrap().vms.into_iter();
        vms.filter(|vm| vm.is_meant_by(&selectors))
            .map(|vm| vm.name)
            .collect()
    };
    assert_eq!(chosen(&["pool=web"]), ["db", "web-1", "web-2"]);
    assert_eq!(chosen(&["pool=web", "tier=front"]), ["web-1"]);
    assert_eq!(chosen(&["pool!=web"]), [""; 0]);
}
