//! Slurm on two hosts, a fleet's server on each, and Prometheus and the scaler where the controller is.

use crate::conf::{self, CONTROLLER, Engine, Guests, HOSTS, Host, POOL};
use crate::net::{Net, output, prefix, sweep};
use crate::record;
use crate::seen::{Watch, seconds};
use serde_json::Value;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The programs that take part.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Where Debian's packages of Slurm and munge are unpacked.
    pub(crate) slurm: PathBuf,
    pub(crate) prometheus: PathBuf,
    pub(crate) mvmctl: PathBuf,
    pub(crate) agent: PathBuf,
    /// What a real guest is made of: a kernel, its modules, busybox. Without, there is none.
    pub(crate) guest: Option<[PathBuf; 3]>,
    /// `packaging` of the repository.
    pub(crate) packaging: PathBuf,
}

impl Programs {
    /// By the variables that `cargo xtask engines` sets.
    pub(crate) fn given() -> Result<Self, String> {
        let path = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.ok_or_else(|| format!("{name} is not set: run `cargo xtask engines`"))
        };
        let parts = ["MVM_TEST_KERNEL", "MVM_TEST_MODULES", "MVM_TEST_BUSYBOX"];
        let real = std::env::var_os("MVM_TEST_REAL_GUESTS").is_some();
        Ok(Self {
            guest: if real {
                Some([path(parts[0])?, path(parts[1])?, path(parts[2])?])
            } else {
                None
            },
            slurm: path("MVM_TEST_SLURM")?,
            prometheus: path("MVM_TEST_PROMETHEUS")?,
            mvmctl: path("MVM_TEST_MVMCTL")?,
            agent: path("MVM_TEST_AGENT")?,
            packaging: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging"),
        })
    }
}

impl Programs {
    fn guests(&self) -> Guests {
        match self.guest {
            Some(_) => Guests::Qemu,
            None => Guests::Local,
        }
    }
}

/// All of it, ended when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) watch: Watch,
    pub(crate) guests: Guests,
    net: Net,
    folder: TempDir,
    /// Reaped when the namespaces are gone.
    children: Vec<Child>,
    scale: PathBuf,
    interrupted: Arc<AtomicBool>,
    begun: Instant,
    /// When a host could no longer be reached, and when it could be again, in seconds since 1970.
    unreachable: RefCell<Vec<(f64, Option<f64>)>>,
}

/// A deadline that is not meant to be met. Slurm asks a node that did not answer each 100 s.
const LONG: Duration = Duration::from_mins(4);

impl Cluster {
    pub(crate) fn start(
        programs: &Programs,
        engine: Engine,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, String> {
        sweep();
        let folder = tempfile::Builder::new().prefix(&prefix()).tempdir();
        let folder = folder.map_err(|error| format!("cannot make a folder: {error}"))?;
        // Slurm writes its spool folders for others to enter.
        write(folder.path(), programs, engine)
            .map_err(|error| format!("cannot write into {}: {error}", folder.path().display()))?;
        let mut cluster = Self {
            watch: Watch::start(folder.path()),
            guests: programs.guests(),
            net: Net::lay(folder.path(), env(folder.path(), programs))?,
            folder,
            children: Vec::new(),
            scale: programs.packaging.join("slurm/mvm-scale"),
            interrupted: Arc::clone(interrupted),
            begun: Instant::now(),
            unreachable: RefCell::default(),
        };
        if let Some(parts) = &programs.guest {
            cluster.build(&programs.agent, parts)?;
        }
        cluster.start_all(programs)?;
        Ok(cluster)
    }

    /// The image of all guests.
    fn build(&self, agent: &Path, [kernel, modules, busybox]: &[PathBuf; 3]) -> Result<(), String> {
        let folder = self.folder.path();
        let mut build = self.net.on(CONTROLLER, "mvmctl");
        build
            .args(["image", "build", "--out"])
            .arg(folder.join("image"));
        build.arg("--agent").arg(agent).arg("--kernel").arg(kernel);
        build
            .arg("--modules")
            .arg(modules)
            .arg("--busybox")
            .arg(busybox);
        output(build.arg("--etc").arg(folder.join("etc"))).map(|_| ())
    }

    fn start_all(&mut self, programs: &Programs) -> Result<(), String> {
        let folder = self.folder.path().to_owned();
        let path = |name: &str| folder.join(name).display().to_string();
        let (socket, key) = (path("munge/socket"), path("munge/key"));
        self.spawn(
            CONTROLLER,
            "munged",
            &[
                "--foreground",
                "--force",
                "--num-threads=2",
                &format!("--socket={socket}"),
                &format!("--key-file={key}"),
                &format!("--pid-file={}", path("munge/pid")),
                &format!("--seed-file={}", path("munge/seed")),
            ],
        )?;
        self.until("munge", || Ok(Path::new(&socket).exists()))?;
        self.spawn(CONTROLLER, "slurmctld-wlm", &["-D"])?;
        let step = programs.slurm.join("usr/sbin/slurmstepd-wlm");
        let step = step.display().to_string();
        for host in HOSTS {
            self.spawn(host.name, "slurmd-wlm", &["-D", "-d", &step])?;
            let listen = format!("{}:9152", host.address);
            let policy = path("fleet.toml");
            let serve = [
                "fleet",
                "serve",
                "--insecure",
                "--listen",
                &listen,
                "--policy",
                &policy,
            ];
            self.spawn(host.name, "mvmctl", &serve)?;
        }
        let prometheus = programs.prometheus.display().to_string();
        self.spawn(
            CONTROLLER,
            &prometheus,
            &[
                &format!("--config.file={}", path("prometheus.yml")),
                &format!("--storage.tsdb.path={}", path("prometheus")),
                "--web.listen-address=127.0.0.1:9090",
            ],
        )?;
        self.until("both nodes idle", || {
            let nodes = self
                .control("sinfo", &["-h", "-N", "-o", "%N %t"])
                .unwrap_or_default();
            Ok(nodes.lines().collect::<Vec<_>>() == ["a idle", "b idle"])
        })
    }

    /// Starts a program that runs on. What it says is kept.
    fn spawn(&mut self, host: &str, program: &str, args: &[&str]) -> Result<(), String> {
        let name = program.rsplit('/').next().unwrap_or(program);
        let log = self.folder.path().join(format!("log/{name}-{host}"));
        let failed = |error| format!("cannot start {program}: {error}");
        let log = File::create(log).map_err(failed)?;
        let mut command = self.net.on(host, program);
        command
            .args(args)
            .stderr(log.try_clone().map_err(failed)?)
            .stdout(log);
        if program == "mvmctl" {
            command.env("MVM_HOME", self.home(host));
        }
        self.children.push(command.spawn().map_err(failed)?);
        Ok(())
    }

    fn home(&self, host: &str) -> PathBuf {
        self.folder.path().join(format!("host-{host}"))
    }

    /// A command where the controller is.
    fn control(&self, program: &str, args: &[&str]) -> Result<String, String> {
        output(self.net.on(CONTROLLER, program).args(args))
    }

    /// Says when something happens.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Waits for something that can only be asked for.
    pub(crate) fn until(
        &self,
        what: &str,
        is_so: impl Fn() -> Result<bool, String>,
    ) -> Result<(), String> {
        let until = Instant::now() + LONG;
        while !is_so()? {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".into());
            }
            if Instant::now() > until {
                return Err(format!("waited in vain for {what}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Runs the scaler once: its standard error if it did nothing.
    pub(crate) fn scale(&self) -> Result<(), String> {
        output(self.net.on(CONTROLLER, &self.scale).args([POOL, "9"])).map(|_| ())
    }

    /// What Prometheus' query gives, if it is one number.
    pub(crate) fn number(&self, query: &str) -> Option<u64> {
        let result = self.asked("query", &[("query", query)])?;
        result.pointer("/value/1")?.as_str()?.parse().ok()
    }

    /// What Prometheus' query gave in each second of that time, as seconds since 1970 and the number.
    pub(crate) fn numbers(&self, query: &str, from: f64, to: f64) -> Vec<(f64, f64)> {
        let (from, to) = (from.to_string(), to.to_string());
        let asked = [
            ("query", query),
            ("start", &from),
            ("end", &to),
            ("step", "1"),
        ];
        let result = self.asked("query_range", &asked);
        let values = result.as_ref().and_then(|result| result.get("values"));
        let values = values.and_then(Value::as_array).into_iter().flatten();
        let number = |value: &Value| {
            let (time, number) = (value.get(0)?.as_f64()?, value.get(1)?.as_str()?);
            Some((time, number.parse().ok()?))
        };
        values.filter_map(number).collect()
    }

    /// The one series that Prometheus answers with.
    fn asked(&self, what: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let url = format!("http://127.0.0.1:9090/api/v1/{what}");
        let mut curl = self.net.on(CONTROLLER, "curl");
        curl.args(["-fsS", "-m", "5", "-G"]).arg(url);
        for (name, value) in parameters {
            curl.arg("--data-urlencode").arg(format!("{name}={value}"));
        }
        let mut answer: Value = serde_json::from_str(&output(&mut curl).ok()?).ok()?;
        let result = answer.pointer_mut("/data/result")?.as_array_mut()?;
        if result.len() == 1 {
            result.pop()
        } else {
            None
        }
    }

    /// What the recording rule says that all hosts want.
    pub(crate) fn wanted(&self) -> Option<u64> {
        self.number(&format!("pool:mvm_fleet_wanted:sum{{pool=\"{POOL}\"}}"))
    }

    /// What the host itself says that it wants, asked there; `None` while its view is not complete.
    pub(crate) fn wanted_by(&self, host: Host) -> Option<u64> {
        let url = format!("http://{}:9152/v1/pools/{POOL}", host.address);
        let answer = output(
            self.net
                .on(host.name, "curl")
                .args(["-fsS", "-m", "5", &url]),
        );
        let answer: Value = serde_json::from_str(&answer.ok()?).ok()?;
        answer.get("wanted")?.as_u64()
    }

    /// The names, states and nodes of the engine's jobs.
    pub(crate) fn jobs(&self) -> Result<String, String> {
        self.control("squeue", &["-h", "-o", "%j %T %N"])
    }

    /// Whether the engine takes a host for one that answers.
    pub(crate) fn answers(&self, host: Host) -> Result<bool, String> {
        let nodes = self.control("sinfo", &["-h", "-r", "-N", "-o", "%N"])?;
        Ok(nodes.lines().any(|node| node == host.name))
    }

    /// Cuts a host off (`down`), or joins it again (`up`).
    pub(crate) fn cable(&self, host: Host, to: &str) -> Result<(), String> {
        let mut unreachable = self.unreachable.borrow_mut();
        match unreachable.last_mut() {
            Some((_, until @ None)) if to == "up" => *until = Some(seconds()),
            _ => unreachable.push((seconds(), None)),
        }
        self.net.cable(host, to)
    }

    /// From when until when a host could not be reached, in seconds since 1970.
    pub(crate) fn unreachable(&self) -> Vec<(f64, Option<f64>)> {
        self.unreachable.borrow().clone()
    }

    /// Has a host lose its power.
    pub(crate) fn off(&self, host: Host) {
        self.unreachable.borrow_mut().push((seconds(), None));
        self.net.off(host);
    }

    /// Tells the engine that a host is off.
    pub(crate) fn down(&self, host: Host) -> Result<(), String> {
        let node = format!("nodename={}", host.name);
        let down = ["update", &node, "state=down", "reason=off"];
        self.control("scontrol", &down).map(|_| ())
    }

    /// Has a VM's guest work, or not.
    pub(crate) fn work(&self, host: &str, vm: &str, works: bool) -> Result<(), String> {
        let probe = conf::work(works).0;
        let mut check = self.net.on(host, "mvmctl");
        check.env("MVM_HOME", self.home(host));
        output(check.args(["vm", "check", vm, probe])).map(|_| ())
    }

    /// What all VMs have written down.
    pub(crate) fn journal(&self) -> std::io::Result<String> {
        let mut journal = fs::read_to_string(self.folder.path().join("journal"))?;
        for file in fs::read_dir(self.folder.path().join("log"))? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if let Some((vm, host)) = name.split_once('.') {
                let console = String::from_utf8_lossy(&fs::read(file.path())?).into_owned();
                journal += &record::beats(&console, vm, host);
            }
        }
        Ok(journal)
    }

    /// What all think of it by now, and the ends of all that the programs have said.
    pub(crate) fn logs(&self) -> String {
        let mut text = self.jobs().unwrap_or_else(|error| error);
        for host in HOSTS {
            let _ = writeln!(text, "== {}", host.name);
            for path in [
                format!("v1/pools/{POOL}"),
                "v1/vms".into(),
                "v1/view".into(),
            ] {
                let url = format!("http://{}:9152/{path}", host.address);
                let mut curl = self.net.on(host.name, "curl");
                let told = output(curl.args(["-sS", "-m", "5", &url]));
                text += &told.unwrap_or_else(|error| error);
                text.push('\n');
            }
        }
        let files = fs::read_dir(self.folder.path().join("log"));
        for file in files.into_iter().flatten().flatten() {
            let said = fs::read_to_string(file.path()).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = lines
                .get(lines.len().saturating_sub(12)..)
                .unwrap_or_default();
            let _ = writeln!(
                text,
                "== {}\n{}",
                file.file_name().display(),
                last.join("\n")
            );
        }
        text
    }
}

/// The environment of all commands.
fn env(folder: &Path, programs: &Programs) -> Vec<(&'static str, String)> {
    let folder = folder.display();
    let slurm = programs.slurm.display();
    let libraries = format!("{slurm}/usr/lib/x86_64-linux-gnu");
    let path = std::env::var("PATH").unwrap_or_default();
    let mvmctl = programs.mvmctl.parent().map(Path::display);
    let mvmctl = mvmctl.map(|folder| folder.to_string()).unwrap_or_default();
    let vm = programs.packaging.join("slurm/mvm-vm");
    vec![
        (
            "PATH",
            format!("{mvmctl}:{slurm}/usr/sbin:{slurm}/usr/bin:{path}"),
        ),
        (
            "LD_LIBRARY_PATH",
            format!("{libraries}:{libraries}/slurm-wlm"),
        ),
        ("SLURM_CONF", format!("{folder}/slurm.conf")),
        ("MVM_POOLS", format!("{folder}/pools")),
        ("MVM_VM", vm.display().to_string()),
        (
            "MVM_SBATCH",
            format!("--output={folder}/log/%x.%N --open-mode=append"),
        ),
        ("MVM_CONFIG", format!("{folder}/mvmctl.toml")),
    ]
}

/// All files.
fn write(folder: &Path, programs: &Programs, engine: Engine) -> std::io::Result<()> {
    let folders = [
        "munge",
        "log",
        "slurmctld",
        "slurmd-a",
        "slurmd-b",
        "no-cgroups",
        "pools",
        "etc/probes.d",
    ];
    for name in folders
        .iter()
        .chain(&["etc/integrations.d", "host-a", "host-b"])
    {
        fs::create_dir_all(folder.join(name))?;
    }
    let mut key = [0; 128];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    fs::write(folder.join("munge/key"), key)?;
    fs::set_permissions(folder.join("munge/key"), fs::Permissions::from_mode(0o600))?;
    let packaged = fs::read_to_string(programs.packaging.join("slurm/slurm.conf"))?;
    let rules = programs.packaging.join("prometheus/mvm.rules.yml");
    let rules = conf::rules(&fs::read_to_string(rules)?);
    for (name, text) in [
        (
            "slurm.conf",
            conf::slurm(folder, &programs.slurm, engine, &packaged),
        ),
        ("cgroup.conf", conf::cgroup(folder)),
        ("mvm.rules.yml", rules),
        (
            "prometheus.yml",
            conf::prometheus(&folder.join("mvm.rules.yml")),
        ),
        ("fleet.toml", conf::policy()),
        (
            "pools/web.conf",
            conf::pool(folder, &programs.agent, programs.guests()),
        ),
        ("etc/agent.json", conf::AGENT.to_owned()),
        (
            "etc/integrations.d/journal.json",
            conf::heartbeat(folder, programs.guests()),
        ),
        ("etc/probes.d/work.json", conf::work(true).1),
        ("etc/probes.d/rest.json", conf::work(false).1),
        ("mvmctl.toml", String::new()),
        ("journal", String::new()),
    ] {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Whether a program is on `PATH`.
pub(crate) fn is_there(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\" >/dev/null", program])
        .status();
    found.is_ok_and(|status| status.success())
}
