//! Restores that nobody announces: the agent notices them by itself.

use crate::story::{Story, a_minute, name, numbers};
use mvm_client::Watcher;
use mvm_guest_tests::{AGENT_SOCKET, Mvmctl, Parts, SOON, build_sleeper, eventually};
use mvm_protocol::answer::Change;
use mvm_protocol::status::{RestoreSign, Restored};
use mvm_vmm::suspend::{self, RestoreSpec};
use std::time::Duration;
use tokio::time::timeout;

/// What the guest has told those who watch inside of it, a line an event.
const TOLD: &str = "/run/told";

/// By the CID alone, unless this kernel tells of VMGENID.
#[tokio::test]
async fn a_restored_guest_that_nobody_wakes_notices_it() {
    let Some(parts) = Parts::find() else {
        return;
    };
    nobody_wakes(&parts).await;
}

/// By VMGENID, at once.
#[tokio::test]
async fn a_restored_guest_is_told_by_its_kernel_and_has_another_seed() {
    let Some(parts) = Parts::with_newer_kernel() else {
        return;
    };
    let sign = nobody_wakes(&parts).await;
    assert_eq!(sign, RestoreSign::Vmgenid, "{}", parts.kernel.display());
}

/// It keeps the CID that it was given.
#[tokio::test]
async fn a_clone_that_is_only_snapshotted_was_not_restored() {
    let Some(story) = Story::new().await else {
        return;
    };
    let [golden, own] = ["golden", "own"].map(|name| story.place(name));
    story
        .mvmctl
        .ok(&["vm", "snapshot", "golden", "--to", &golden]);
    let restore = ["vm", "restore", &golden, "--clone", "--name", "clone"];
    story.mvmctl.ok(&restore);
    story.mvmctl.ok(&["vm", "snapshot", "clone", "--to", &own]);
    // The signs are read with each sample.
    story.sh("clone", "sleep 6").await;
    let after = story.json(&["vm", "inspect", "clone"]);
    assert_eq!(after["snapshot"]["generation"], 1, "{after}");
    assert!(after["snapshot"]["unannounced"].is_null(), "{after}");
}

/// Two guests that are restored by hand, each with another CID, and never woken. Gives the sign by
/// which they noticed it.
async fn nobody_wakes(parts: &Parts) -> RestoreSign {
    let story = Story::of(parts, Mvmctl::new(), build_sleeper).await;
    let before = story.json(&["vm", "inspect", "golden"]);
    assert!(before["snapshot"]["unannounced"].is_null(), "{before}");
    // The signs are read with each sample. With this one, of which the guest tells, the next is five
    // seconds away.
    let mut watch = watch(&story, "golden").await;
    story
        .sh(
            "golden",
            "echo '{\"lease_secs\": 3600}' >/run/mvm/busy.d/work",
        )
        .await;
    let held = |change: &Change| match change {
        Change::Worker { worker } if !worker.held_by.is_empty() => Some(()),
        _ => None,
    };
    until(&mut watch, held).await;
    drop(watch);
    // Who watches in the guest is told even before it has a vsock device again.
    let watch_inside = format!("guest-probe watch {AGENT_SOCKET} {TOLD} >/dev/null 2>&1 &");
    story.sh("golden", &watch_inside).await;
    eventually("it is watched from inside", async || {
        let told = story.sh("golden", &format!("cat {TOLD} || true")).await;
        (!told.is_empty()).then_some(())
    })
    .await;
    let by_kernel = has_vmgenid(before["system"]["kernel"].as_str().unwrap());
    if by_kernel {
        story.seed().await;
    }
    let snapshot = story.snapshot_by_hand();

    let sign = if by_kernel {
        RestoreSign::Vmgenid
    } else {
        RestoreSign::Cid
    };
    let mut drawn = Vec::new();
    for clone in ["one", "two"] {
        let spec = RestoreSpec {
            clone: true,
            ..RestoreSpec::default()
        };
        suspend::restore(&story.home(), &name(clone), &snapshot, &spec, a_minute()).unwrap();
        if by_kernel {
            // Not by the agent, which is busy with that restore.
            drawn.push(numbers(
                story.sh(clone, "guest-probe random 300").await.trim(),
            ));
            // The CID is read as well: what comes of it is of the same restore.
            story.sh(clone, "sleep 6").await;
        } else {
            let mut watch = self::watch(&story, clone).await;
            let restored = until(&mut watch, |change| match change {
                Change::Restored { restored } => Some(restored.clone()),
                _ => None,
            })
            .await;
            let by = sign.into();
            let announced = false;
            assert_eq!(restored, Restored { announced, by });
        }
        eventually("the generation is written", async || {
            (story.value(clone, "generation") == "1").then_some(())
        })
        .await;
        let told = story.sh(clone, &format!("grep restored {TOLD}")).await;
        let word = serde_json::to_value(sign).unwrap();
        let event = format!(r#""restored":{{"announced":false,"by":{word}}}"#);
        assert!(told.contains(&event), "{event} in {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        let after = story.json(&["vm", "inspect", clone]);
        assert_eq!(after["lifecycle"], "running");
        assert_eq!(after["snapshot"]["generation"], 1, "{after}");
        assert_eq!(after["snapshot"]["unannounced"], 1, "{after}");
        assert!(after["snapshot"]["last_wake"].is_null(), "{after}");
        // What was known is from before.
        for one in after["integrations"].as_array().unwrap() {
            let checks = one["checks"].as_u64().unwrap();
            assert!(checks > 0 || one["health"] == "starting", "{one}");
        }
    }
    if let [one, two] = &drawn[..] {
        assert_eq!(one.intersection(two).count(), 0, "of 300 values");
    }

    // A wake after all of that is announced, and one more.
    story.mvmctl.ok(&["vm", "wake", "one", "--clone"]);
    let after = story.json(&["vm", "inspect", "one"]);
    assert_eq!(after["snapshot"]["generation"], 2);
    assert_eq!(after["snapshot"]["unannounced"], 1);
    sign
}

async fn watch(story: &Story, vm: &str) -> Watcher {
    let session = story.session(vm).await;
    let watcher = Watcher::start(session, Duration::from_secs(15)).await;
    watcher.unwrap().1
}

/// Waits for the change that is looked for.
async fn until<T>(watch: &mut Watcher, mut wanted: impl FnMut(&Change) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = watch.next().await.unwrap().expect("it does not sleep");
            if let Some(found) = wanted(&event.change) {
                return found;
            }
        }
    };
    timeout(SOON, found).await.expect("the guest tells")
}

/// Whether a kernel of Debian's has VMGENID: 6.12 has, and 6.1 has not. Those are what CI uses.
fn has_vmgenid(kernel: &str) -> bool {
    let mut numbers = kernel.split('.').map(|part| part.parse().unwrap_or(0));
    let (major, minor): (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    (major, minor) >= (6, 12)
}
