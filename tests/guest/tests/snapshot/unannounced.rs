//! Restores that nobody announces: the agent notices them by itself.

use crate::story::{Story, a_minute, name};
use mvm_client::Watcher;
use mvm_guest_tests::{SOON, eventually};
use mvm_protocol::answer::Change;
use mvm_protocol::status::{RestoreSign, Restored};
use mvm_vmm::suspend::{self, RestoreSpec};
use std::fs;
use std::time::Duration;
use tokio::time::timeout;

/// A guest that is restored by hand, with another CID, and never woken.
#[tokio::test]
async fn a_restored_guest_that_nobody_wakes_notices_it() {
    let Some(story) = Story::new().await else {
        return;
    };
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
    let snapshot = story.snapshot_by_hand();

    let notices_at_once = has_vmgenid(before["system"]["kernel"].as_str().unwrap());
    let mut drawn = Vec::new();
    for clone in ["one", "two"] {
        let spec = RestoreSpec {
            clone: true,
            ..RestoreSpec::default()
        };
        suspend::restore(&story.home(), &name(clone), &snapshot, &spec, a_minute()).unwrap();
        let mut watch = self::watch(&story, clone).await;
        if notices_at_once {
            // Before it has a vsock device, so that nobody can watch; and once for both signs.
            let said = "restored, and no host has announced it: vmgenid";
            let console = fs::read(story.mvmctl.file(clone, "console.log")).unwrap();
            let console = String::from_utf8_lossy(&console).into_owned();
            assert!(console.contains(said), "{console}");
            drawn.push(story.random(clone));
            story.sh(clone, "sleep 6").await;
        } else {
            let restored = until(&mut watch, |change| match change {
                Change::Restored { restored } => Some(restored.clone()),
                _ => None,
            })
            .await;
            let by = RestoreSign::Cid.into();
            let announced = false;
            assert_eq!(restored, Restored { announced, by });
        }
        eventually("the generation is written", async || {
            (story.value(clone, "generation") == "1").then_some(())
        })
        .await;
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

/// Whether a kernel of Debian's tells of VMGENID: from 6.9 on, with the driver built in. The one that
/// CI uses is 6.1.
fn has_vmgenid(kernel: &str) -> bool {
    let mut numbers = kernel.split('.').map(|part| part.parse().unwrap_or(0));
    let (major, minor): (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    (major, minor) >= (6, 9)
}
