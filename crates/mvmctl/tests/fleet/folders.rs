//! Folders in which VMs are looked for, and that cannot be looked at.

use crate::server::Fleet;
use mvm_fake_fleet::Behaviour;

/// There may be VMs in it, so that nobody may scale by the numbers: but nothing waits for it in silence.
#[test]
fn a_folder_that_cannot_be_looked_at_is_told_and_holds_up_no_start() {
    let fleet = Fleet::new().and("web-1", Behaviour::Busy);
    let file = fleet.write("file", "");
    fleet.write("mvmctl.toml", &format!("discover = [\"{file}/*/v.sock\"]"));
    let problem = format!("cannot look for VMs in {file}: Not a directory (os error 20)");
    let mut server = fleet.serve("");
    server.says(&problem);
    server.says("take it out of `discover` in mvmctl.toml");
    server.notified(&format!("STATUS={problem}"));
    let mut server = server.ready();
    let answer = server.get("/readyz");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains(&problem), "{answer:?}");
    let answer = server.get("/v1/pools/web");
    assert_eq!((answer.status, &answer.json()["busy"]), (503, &1.into()));
    // One that looks once does not wait for it either.
    let policy = fleet.write("fleet.toml", "[[pool]]\nname = \"web\"\nmin = 2\n");
    let mut plan = fleet.mvmctl(&format!("fleet plan --policy {policy}"));
    let output = plan.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && stderr.contains(&problem),
        "{stderr}"
    );
    assert!(
        stderr.contains("or a folder cannot be looked at: nothing is done"),
        "{stderr}"
    );
    // Once it is mended the numbers may be believed.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    server.says("all folders can be looked at");
    server.until("web", |pool| pool["complete"] == true);
}
