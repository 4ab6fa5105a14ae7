//! What each test has: the VMM's program, an image, a home with a VM `web` that runs.

use mvm_fake_vmm::Subject;
use serde_json::Value;
use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A deadline that is not meant to be met.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What the two call their requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) name: &'static str,
    /// A request by which a VM is paused, its state is written, and it runs on.
    pub(crate) pause: &'static str,
    pub(crate) write: &'static str,
    pub(crate) resume: &'static str,
    /// What goes along with the first and the last.
    pub(crate) paused: &'static str,
    pub(crate) resumed: &'static str,
    /// A request by which a state is loaded.
    pub(crate) load: &'static str,
    /// A request by which a guest is booted.
    pub(crate) boot: &'static str,
    /// A request by which it says whether the VM is paused.
    pub(crate) ask: &'static str,
    /// Whether a guest is not reached any more that is paused and resumed without a snapshot.
    pub(crate) cuts_off: bool,
    /// Whether it is the real program.
    pub(crate) real: bool,
}

impl Backend {
    const FIRECRACKER: Self = Self {
        name: "firecracker",
        pause: "PATCH /vm",
        write: "PUT /snapshot/create",
        resume: "PATCH /vm",
        paused: r#"{"state":"Paused"}"#,
        resumed: r#"{"state":"Resumed"}"#,
        load: "PUT /snapshot/load",
        boot: "PUT /actions",
        ask: "GET /",
        cuts_off: false,
        real: false,
    };
    const CLOUD_HYPERVISOR: Self = Self {
        name: "cloud-hypervisor",
        pause: "PUT /api/v1/vm.pause",
        write: "PUT /api/v1/vm.snapshot",
        resume: "PUT /api/v1/vm.resume",
        paused: "",
        resumed: "",
        load: "PUT /api/v1/vm.restore",
        boot: "PUT /api/v1/vm.boot",
        ask: "GET /api/v1/vm.info",
        cuts_off: false,
        real: false,
    };

    pub(crate) fn of(vmm: &Subject) -> Self {
        let known = [Self::FIRECRACKER, Self::CLOUD_HYPERVISOR];
        let known = known.into_iter().find(|known| known.name == vmm.backend);
        Self {
            cuts_off: vmm.backend == "firecracker" && vmm.version == "1.16.1",
            real: vmm.is_real(),
            ..known.unwrap()
        }
    }

    /// The requests by which a VM runs on.
    pub(crate) fn run_on(&self) -> Vec<String> {
        let resumed = format!("{} 204", self.resume);
        if self.cuts_off {
            vec![format!("{} 400", self.write), resumed]
        } else {
            vec![resumed]
        }
    }
}

/// Has `mvmctl` find this executable under the VMMs' names. To be called before there are threads;
/// the folder that it gives is to be kept.
pub(crate) fn install() -> TempDir {
    let (folder, variables) = mvm_fake_vmm::install();
    for (variable, value) in variables {
        #[expect(unsafe_code, reason = "mvmctl looks there for its programs")]
        // SAFETY: called first in `main`, before there is another thread.
        unsafe {
            env::set_var(variable, value);
        }
    }
    folder
}

pub(crate) struct TestHost {
    root: TempDir,
}

/// How a run of it ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl TestHost {
    /// One with a VM `web` that runs.
    pub(crate) fn with_web(backend: &Backend) -> Self {
        Self::with_version(backend, None)
    }

    /// One with an image and no VM.
    pub(crate) fn with_image(backend: &Backend) -> Self {
        let host = Self {
            root: tempfile::tempdir().unwrap(),
        };
        let image = host.path("image");
        fs::create_dir(&image).unwrap();
        let manifest = r#"{"version":1,"kernel":"vmlinux","initrd":null,"rootfs":null,"cmdline":"",
            "agent":{"version":"0.1.0","profile":"prod","port":52}}"#;
        fs::write(image.join("manifest.json"), manifest).unwrap();
        if backend.real {
            mvm_bare_guest::build(&image).unwrap();
        } else {
            fs::write(image.join(mvm_bare_guest::KERNEL), "\x7fELF").unwrap();
        }
        host
    }

    pub(crate) fn with_version(backend: &Backend, version: Option<&str>) -> Self {
        let host = Self::with_image(backend);
        fs::create_dir_all(host.file("web", "")).unwrap();
        if let Some(version) = version {
            fs::write(host.file("web", "version"), version).unwrap();
        }
        let image = host.path("image");
        let image = image.display();
        host.ok(&format!(
            "vm start web --image {image} --memory 64 --backend {}",
            backend.name
        ));
        host.forget_calls();
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A file of a VM.
    pub(crate) fn file(&self, vm: &str, name: &str) -> PathBuf {
        self.path("home/vms").join(vm).join(name)
    }

    /// The names in the folder in which snapshots are made.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| !["home", "image"].contains(&name.as_str()))
            .collect()
    }

    pub(crate) fn begin(&self, line: &str) -> Child {
        self.command(line).spawn().unwrap()
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvmctl"));
        command
            .args(line.split_whitespace())
            .env("MVM_HOME", self.path("home"))
            .env("NO_COLOR", "1")
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Run {
        let output = self.begin(line).wait_with_output().unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn ok(&self, line: &str) -> Run {
        let run = self.run(line);
        assert_eq!(run.code, Some(0), "{line}: {}", run.stderr);
        run
    }

    /// A run that fails with exit code 1, and says all of that.
    pub(crate) fn fails(&self, line: &str, words: &[&str]) {
        let run = self.run(line);
        assert_eq!(run.code, Some(1), "{line}: {}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{line} --json")).stdout).unwrap()
    }

    /// As `web`'s record has it.
    pub(crate) fn state(&self) -> String {
        let record = fs::read(self.file("web", "vm.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["state"].as_str().unwrap().to_owned()
    }

    /// What `web`'s guest says of itself.
    pub(crate) fn lifecycle(&self, vm: &str) -> String {
        let status = self.json(&format!("vm status {vm}"));
        status["lifecycle"].as_str().unwrap().to_owned()
    }

    /// The next such call to `web` goes wrong in that way.
    pub(crate) fn inject(&self, fault: &str) {
        fs::write(self.file("web", "fault"), fault).unwrap();
    }

    /// What a VMM and its guest were asked, without the questions that change nothing.
    pub(crate) fn calls(&self, vm: &str) -> Vec<String> {
        let mut calls = mvm_fake_vmm::calls(&self.file(vm, ""));
        calls.retain(|call| !call.starts_with("GET "));
        calls
    }

    pub(crate) fn forget_calls(&self) {
        mvm_fake_vmm::forget_calls(&self.file("web", ""));
    }

    /// Waits until `web` was asked that.
    pub(crate) fn await_call(&self, call: &str) {
        let until = Instant::now() + LONG;
        let calls = || mvm_fake_vmm::calls_so_far(&self.file("web", ""));
        while !calls().iter().any(|made| made == call) {
            assert!(Instant::now() < until, "{call}: {:?}", calls());
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits until so many watch `web`'s guest.
    pub(crate) fn await_watchers(&self, count: usize) {
        let until = Instant::now() + LONG;
        let watches = || {
            let calls = self.calls("web");
            calls.iter().filter(|call| *call == "guest watch").count()
        };
        while watches() < count {
            assert!(Instant::now() < until, "{:?}", self.calls("web"));
            sleep(Duration::from_millis(5));
        }
    }

    /// Asks a VMM for something, as another program than mvmctl may.
    pub(crate) fn api(&self, vm: &str, call: &str, body: &str) {
        let mut stream = UnixStream::connect(self.file(vm, "api.sock")).unwrap();
        let length = body.len();
        let request =
            format!("{call} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204", "{call}");
    }

    /// Ends a VM's process as the kernel does for want of memory.
    pub(crate) fn kill(&self, vm: &str) {
        self.signal_vmm(vm, "-KILL");
    }

    pub(crate) fn signal_vmm(&self, vm: &str, name: &str) {
        let record = fs::read(self.file(vm, "vm.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let processes = record["processes"].as_array().unwrap();
        let vmm = processes.iter().find(|one| one["role"] == "vmm").unwrap();
        let pid = vmm["pid"].to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// The processes that were started for its VMs, by their environment: those that have ended have
    /// none.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let marker = format!("MVM_HOME={}\0", self.path("home").display());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_marked = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&marker)
        };
        pids.filter(is_marked).collect()
    }

    /// Sends a signal to a run.
    pub(crate) fn signal(run: &Child, name: &str) {
        let pid = run.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }

    pub(crate) fn touch(&self, vm: &str, name: &str) {
        fs::write(self.file(vm, name), "").unwrap();
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        let vms = fs::read_dir(self.path("home/vms"));
        for vm in vms.into_iter().flatten().flatten() {
            let name = vm.file_name().into_string().unwrap();
            let record = Path::new(&vm.path()).join("vm.json");
            if record.exists() {
                self.run(&format!("vm rm --force {name}"));
            }
        }
    }
}
