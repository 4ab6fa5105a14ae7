//! What a VMM says of its VM.

use super::*;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;

/// A VMM that says that, or nothing.
#[derive(Debug)]
struct Says(Result<bool, String>);

impl AskVmm for Says {
    fn is_paused(&self, _: &Record, _: &VmFolder, _: Duration) -> Result<bool, String> {
        self.0.clone()
    }
}

#[tokio::test]
async fn one_that_runs_is_asked_of_its_vmm_before_it_is_dialled() {
    let record = Record {
        processes: vec![own_process(Role::Vmm)],
        ..record()
    };
    let (home, inventory) = home_of(&record);
    let asked = async |says| {
        let inventory = inventory.clone().with_vmms(Arc::new(Says(says)));
        inventory.now("web", Duration::from_secs(1)).await.unwrap()
    };
    assert!(asked(Ok(false)).await.endpoint().is_ok());
    let paused = asked(Ok(true)).await;
    assert_eq!(paused.state, VmState::Paused(Pause::Other));
    let error = paused.endpoint().unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("not-running", true));
    let error = asked(Err("no answer".into())).await.endpoint().unwrap_err();
    assert!(matches!(error, Error::SilentVmm { .. }), "{error:?}");
    assert!(error.is_retryable());
    // One that is another's is not asked: nobody knows how.
    let foreign = r#"{"state":"running","backend":"qemu"}"#;
    std::fs::write(home.path().join("vms/web/vm.json"), foreign).unwrap();
    assert!(asked(Ok(true)).await.endpoint().is_ok());
}

/// A VMM that hears nobody any more, and ends a moment later.
#[derive(Debug)]
struct Ends(Mutex<Option<ChildStdin>>);

impl AskVmm for Ends {
    fn is_paused(&self, _: &Record, _: &VmFolder, _: Duration) -> Result<bool, String> {
        self.0.lock().unwrap().take();
        Err("it does not listen there".into())
    }
}

#[test]
fn a_vmm_that_is_about_to_end_has_ended() {
    let mut vmm = Command::new("sh");
    let vmm = vmm
        .args(["-c", "read word; sleep 0.1"])
        .stdin(Stdio::piped());
    let mut vmm = vmm.spawn().unwrap();
    let (process, _) = Process::identify(Role::Vmm, vmm.id()).unwrap();
    let record = Record {
        processes: vec![process],
        ..record()
    };
    let (_home, inventory) = home_of(&record);
    let ends = Ends(Mutex::new(vmm.stdin.take()));
    let inventory = inventory.with_vmms(Arc::new(ends));
    let vm = inventory.find("web").unwrap();
    assert_eq!(vm.state, VmState::Running);
    let vm = inventory.ask(vm, Duration::from_secs(20));
    assert!(matches!(vm.state, VmState::Ended(_)), "{:?}", vm.state);
    vmm.wait().unwrap();
}
