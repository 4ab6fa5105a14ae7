//! What is out of order, or has a field too many or too few, a stand-in refuses as the real program
//! does. Without that the other tests would prove little.

use crate::test_host::{Installed, LONG, put_kernel};
use mvm_fake_vmm::Subject;
use mvm_vmm::Deadline;
use mvm_vmm::http::{Api, HttpError, Method};
use serde_json::{Value, json};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Running {
    folder: TempDir,
    child: Child,
}

impl Running {
    fn start(vmm: &Subject) -> Self {
        let folder = tempfile::tempdir().unwrap();
        put_kernel(vmm, folder.path());
        let program = env::var_os(program_of(vmm).0).unwrap();
        let child = command(&program, vmm, folder.path()).spawn().unwrap();
        let running = Self { folder, child };
        let until = Instant::now() + LONG;
        while let Err(HttpError::NotListening) = running.get("/api/v1/vmm.ping") {
            assert!(Instant::now() < until, "it does not come up");
            sleep(Duration::from_millis(5));
        }
        running
    }

    fn api(&self) -> Api<'_> {
        Api {
            folder: self.folder.path(),
            socket: "api.sock",
        }
    }

    fn get(&self, path: &str) -> Result<Value, HttpError> {
        self.api().get(path, Deadline::new(LONG, None))
    }

    fn ask(&self, method: Method, path: &str, body: &Value) -> Result<(), HttpError> {
        let deadline = Deadline::new(LONG, None);
        if body.is_null() {
            self.api().act(path, deadline)
        } else {
            self.api().ask(method, path, body, deadline)
        }
    }

    fn put(&self, path: &str, body: &Value) {
        self.ask(Method::Put, path, body).unwrap();
    }

    fn pause(&self, state: &str) {
        self.ask(Method::Patch, "/vm", &json!({"state": state}))
            .unwrap();
    }

    fn refused(&self, expected: u16, path: &str, body: &Value) {
        match self.ask(Method::Put, path, body) {
            Err(HttpError::Refused { status, .. }) => assert_eq!(status, expected, "{path} {body}"),
            other => panic!("{path} {body}: {other:?}"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What names the program in the drivers' environment, and its arguments.
fn program_of(vmm: &Subject) -> (&'static str, &'static [&'static str]) {
    if vmm.backend == "firecracker" {
        ("MVM_FIRECRACKER", &["--id", "a", "--api-sock", "api.sock"])
    } else {
        ("MVM_CLOUD_HYPERVISOR", &["--api-socket", "path=api.sock"])
    }
}

fn command(program: &OsStr, vmm: &Subject, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(program_of(vmm).1)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn configure(vmm: &Running) {
    let machine = json!({"vcpu_count": 1, "mem_size_mib": 128, "track_dirty_pages": false});
    vmm.put("/machine-config", &machine);
    let boot = json!({"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"});
    vmm.put("/boot-source", &boot);
    vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": "v.sock"}));
}

pub(crate) fn firecracker_keeps_its_order(subject: &Subject) {
    let vmm = Running::start(subject);
    let start = json!({"action_type": "InstanceStart"});
    let create = json!({"snapshot_type": "Full", "snapshot_path": "s", "mem_file_path": "m"});
    vmm.refused(400, "/actions", &start);
    vmm.refused(400, "/snapshot/create", &create);
    configure(&vmm);
    let load = json!({"snapshot_path": "s",
        "mem_backend": {"backend_type": "File", "backend_path": "m"}});
    vmm.refused(400, "/snapshot/load", &load);
    vmm.put("/actions", &start);
    vmm.refused(400, "/actions", &start);
    vmm.refused(
        400,
        "/vsock",
        &json!({"guest_cid": 3, "uds_path": "w.sock"}),
    );
    vmm.refused(400, "/snapshot/create", &create);
    vmm.pause("Paused");
    vmm.pause("Paused");
    vmm.put("/snapshot/create", &create);
    assert_eq!(vmm.get("/").unwrap()["state"], "Paused");
    vmm.pause("Resumed");
    assert_eq!(vmm.get("/").unwrap()["state"], "Running");
}

pub(crate) fn firecracker_knows_its_fields(subject: &Subject) {
    let vmm = Running::start(subject);
    let whole = json!({"kernel_image_path": "vmlinux", "boot_args": ""});
    let mut more = whole.clone();
    more["cmdline"] = "".into();
    vmm.refused(400, "/boot-source", &more);
    vmm.refused(400, "/boot-source", &json!({"boot_args": ""}));
    vmm.refused(
        400,
        "/boot-source",
        &json!({"kernel_image_path": "nowhere"}),
    );
    vmm.put("/boot-source", &whole);
    vmm.refused(400, "/vsock", &json!({"guest_cid": 3}));
    vmm.refused(400, "/entropy", &json!({"rate": 1}));
    vmm.refused(400, "/nonsense", &json!({}));
}

pub(crate) fn firecracker_knows_the_fields_of_its_version(subject: &Subject) {
    let load = |field: &str, value: Value| {
        let mut load = json!({"snapshot_path": "nowhere",
            "mem_backend": {"backend_type": "File", "backend_path": "m"}});
        load[field] = value;
        load
    };
    for (version, knows_override, knows_clock) in [
        ("1.10.1", false, false),
        ("1.14.4", false, true),
        ("1.15.0", false, false),
        ("1.15.1", false, true),
        ("1.16.1", true, true),
        ("1.17.0-dev", true, true),
    ] {
        let _installed = Installed::version("MVM_FIRECRACKER", version);
        for (field, value, knows) in [
            (
                "vsock_override",
                json!({"uds_path": "v.sock"}),
                knows_override,
            ),
            ("clock_realtime", json!(false), knows_clock),
        ] {
            let vmm = Running::start(subject);
            match vmm.ask(Method::Put, "/snapshot/load", &load(field, value)) {
                Err(HttpError::Refused { message, .. }) => {
                    let unknown = message.contains("unknown field");
                    assert_eq!(unknown, !knows, "{version}, {field}: {message}");
                }
                other => panic!("{version}, {field}: {other:?}"),
            }
        }
    }
}

pub(crate) fn cloud_hypervisor_keeps_its_order(subject: &Subject) {
    let vmm = Running::start(subject);
    let act = |action: &str, body: &Value| vmm.put(&format!("/api/v1/{action}"), body);
    let refused = |action: &str, body: &Value| vmm.refused(500, &format!("/api/v1/{action}"), body);
    fs::create_dir(vmm.folder.path().join("s")).unwrap();
    let snapshot = json!({"destination_url": format!("file://{}/s", vmm.folder.path().display())});
    // From 53 on the status says that there is no VM.
    let no_vm = if subject.major() < 53 { 500 } else { 404 };
    vmm.refused(no_vm, "/api/v1/vm.boot", &Value::Null);
    refused("vm.pause", &Value::Null);
    act("vm.create", &config());
    refused("vm.create", &config());
    act("vm.boot", &Value::Null);
    refused("vm.snapshot", &snapshot);
    refused("vm.resume", &Value::Null);
    act("vm.pause", &Value::Null);
    refused("vm.pause", &Value::Null);
    act("vm.snapshot", &snapshot);
    refused("vm.snapshot", &snapshot);
    act("vm.resume", &Value::Null);
    vmm.refused(404, "/api/v1/vm.nonsense", &Value::Null);
}

fn config() -> Value {
    json!({
        "payload": {"kernel": "vmlinux", "cmdline": ""},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 1 << 28, "shared": false},
        "vsock": {"cid": 3, "socket": "v.sock"},
        "console": {"mode": "Off"},
        "serial": {"mode": "File", "file": "console.log"},
        "rng": {"src": "/dev/urandom"},
    })
}

pub(crate) fn cloud_hypervisor_finds_unknown_fields_at_boot(subject: &Subject) {
    let vmm = Running::start(subject);
    let mut more = config();
    more["memory"]["x"] = 1.into();
    vmm.put("/api/v1/vm.create", &more);
    vmm.refused(500, "/api/v1/vm.boot", &Value::Null);
    for (version, knows) in [("50.0.0", false), ("51.0.0", true), ("53.0.0", true)] {
        let _installed = Installed::version("MVM_CLOUD_HYPERVISOR", version);
        let vmm = Running::start(subject);
        let mut config = config();
        config["disks"] = json!([{"path": "vmlinux", "readonly": true, "image_type": "Raw"}]);
        vmm.put("/api/v1/vm.create", &config);
        let booted = vmm.ask(Method::Put, "/api/v1/vm.boot", &Value::Null);
        assert_eq!(booted.is_ok(), knows, "{version}: {booted:?}");
    }
}

/// From 53 on the status of an answer says that there is no VM, and a lock stays behind.
pub(crate) fn cloud_hypervisor_has_what_53_has(subject: &Subject) {
    let _installed = Installed::version("MVM_CLOUD_HYPERVISOR", "53.0.0");
    let vmm = Running::start(subject);
    vmm.refused(404, "/api/v1/vm.boot", &Value::Null);
    assert!(vmm.folder.path().join("api.sock.lock").exists());
}

/// What is too much is not.
pub(crate) fn cloud_hypervisor_finds_missing_fields_at_once(subject: &Subject) {
    let vmm = Running::start(subject);
    let mut config = config();
    config["vsock"] = json!({"cid": 3});
    vmm.refused(400, "/api/v1/vm.create", &config);
}

pub(crate) fn it_does_not_start_over_a_socket(subject: &Subject) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("api.sock"), "").unwrap();
    let stand_in = env::var_os(program_of(subject).0).unwrap();
    let program = subject
        .program()
        .map_or(stand_in.as_os_str(), Path::as_os_str);
    let child = command(program, subject, folder.path()).spawn().unwrap();
    let mut running = Running { folder, child };
    let until = Instant::now() + LONG;
    loop {
        if let Some(status) = running.child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(1));
            return;
        }
        let listens = !matches!(running.get("/"), Err(HttpError::NotListening));
        assert!(!listens, "it has started");
        assert!(Instant::now() < until, "it neither starts nor ends");
        sleep(Duration::from_millis(5));
    }
}
