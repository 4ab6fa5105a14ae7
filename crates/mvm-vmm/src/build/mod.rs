//! `mvmctl image build`: a bootable guest from a static agent, busybox and a kernel.
//!
//! ```text
//! kernel    which one, and where its modules are
//! modules   which of them, in which order
//! guest     init's table and scripts
//! files     what comes from this machine
//! tree      the files, and their archive
//! publish   the folder in its place
//! ```

mod error;
mod files;
mod guest;
mod kernel;
mod modules;
mod publish;
mod tree;

pub use error::BuildError;

use crate::brief::{self, BRIEFLY};
use crate::image::{self, Agent, Manifest};
use crate::locate::{self, AGENT, AGENT_DEV, BUSYBOX};
use files::{add_etc, add_wanted};
use modules::{Module, ModuleFolder};
use mvm_protocol::drop_in::Name;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tree::{Node, Tree};

/// The guest's part of the kernel command line: freed memory is zeroed, so that a snapshot of a
/// guest that dropped its caches is small.
const CMDLINE: &str = "init_on_free=1";

/// What goes into an image. What is not given is looked for where it usually is.
#[derive(Debug, Clone)]
pub struct Build {
    /// The folder to make.
    pub out: PathBuf,
    /// The agent, statically linked.
    pub agent: Option<PathBuf>,
    /// Whether it has to be the dev build, which serves commands and files.
    pub dev: bool,
    /// The kernel image.
    pub kernel: Option<PathBuf>,
    /// The folder of its modules, `lib/modules/VERSION`.
    pub modules: Option<PathBuf>,
    /// Modules to load besides those that every guest needs.
    pub more_modules: Vec<String>,
    /// Busybox, statically linked.
    pub busybox: Option<PathBuf>,
    /// A folder with `agent.json`, `integrations.d` and `probes.d`.
    pub etc: Option<PathBuf>,
    /// Programs that init keeps running.
    pub services: Vec<Service>,
    /// Files of this machine, and where they go in the guest.
    pub add: Vec<(PathBuf, String)>,
    /// Whether a restored guest takes its network from its payload.
    pub network_payload: bool,
    /// The guest's host name.
    pub hostname: String,
}

/// A program that init starts, and starts again when it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Stands before each line of its output on the console.
    pub name: String,
    /// Run by `/bin/sh -c`.
    pub command: String,
}

impl Service {
    /// Reads `NAME=COMMAND`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .filter(|(_, command)| !command.trim().is_empty())
            .ok_or("NAME=COMMAND is asked for")?;
        // It becomes a file's name, and the guest's scripts pass over hidden ones.
        let name = Name::new(name)
            .filter(|_| !name.starts_with('.'))
            .ok_or("a name has 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', no '.' first")?;
        Ok(Self {
            name: name.to_string(),
            command: command.to_owned(),
        })
    }
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The image folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The kernel that was taken.
    pub kernel: PathBuf,
    /// The modules that the guest loads, in that order.
    pub modules: Vec<String>,
    /// The initrd's size in bytes.
    pub initrd_bytes: u64,
}

/// Builds an image.
pub fn build(build: &Build) -> Result<Built, BuildError> {
    check_names(&build.services)?;
    let (usual, how) = if build.dev {
        (&AGENT_DEV, STATIC_DEV_AGENT)
    } else {
        (&AGENT, STATIC_AGENT)
    };
    let agent = program(build.agent.as_deref(), usual, how)?;
    let busybox = program(build.busybox.as_deref(), &BUSYBOX, BUSYBOX.hint)?;
    // Without one that was named or installed, the one that `cargo xtask` has unpacked; modules are
    // never named without their kernel.
    let file = build.kernel.clone().or_else(installed_kernel);
    let kernel = kernel::choose(
        file.as_deref(),
        build.modules.as_deref(),
        Path::new("/boot"),
        Path::new("/lib/modules"),
    )?;
    let kernel_image = std::fs::read(&kernel.file).map_err(BuildError::io("read", &kernel.file))?;
    check_version(&kernel.file, &kernel_image, &kernel.modules)?;
    let network: &[&str] = if build.network_payload {
        &["virtio_net"]
    } else {
        &[]
    };
    let modules = find_modules(&kernel.modules, &build.more_modules, network)?;
    let about = describe(&agent)?;
    if build.dev && about.profile != "dev" {
        return Err(BuildError::NotDev {
            path: agent.path,
            profile: about.profile,
            hint: STATIC_DEV_AGENT,
        });
    }
    let port = match &build.etc {
        Some(etc) => check_etc(&agent, etc)?,
        None => mvm_protocol::PORT,
    };

    let mut tree = Tree::default();
    add_busybox(&mut tree, &busybox)?;
    tree.add_file(guest::AGENT, 0o755, agent.content)?;
    guest::add(&mut tree, &build.hostname, &modules, &build.services)?;
    if build.network_payload {
        guest::add_network_payload(&mut tree)?;
    }
    if let Some(etc) = &build.etc {
        add_etc(&mut tree, etc)?;
    }
    for (from, to) in &build.add {
        add_wanted(&mut tree, from, to)?;
    }

    let manifest = Manifest {
        version: image::VERSION,
        kernel: if kernel::is_elf(&kernel_image) {
            "vmlinux".into()
        } else {
            "vmlinuz".into()
        },
        initrd: Some("initrd".into()),
        rootfs: None,
        cmdline: CMDLINE.into(),
        agent: Agent { port, ..about },
    };
    let initrd = tree
        .write(Vec::new())
        .map_err(BuildError::io("write", Path::new("initrd")))?;
    publish::publish(&build.out, &manifest, &kernel_image, &initrd)?;
    Ok(Built {
        folder: build.out.clone(),
        manifest,
        kernel: kernel.file,
        modules: modules.into_iter().map(|module| module.name).collect(),
        initrd_bytes: initrd.len() as u64,
    })
}

/// Each service has a folder by its name.
fn check_names(services: &[Service]) -> Result<(), BuildError> {
    let mut known = BTreeSet::new();
    match services.iter().find(|service| !known.insert(&service.name)) {
        Some(twice) => Err(BuildError::ServiceTwice(twice.name.clone())),
        None => Ok(()),
    }
}

/// The kernel that an image gets for which none is named; without one, the one that `cargo xtask`
/// has unpacked.
pub(crate) fn installed_kernel() -> Option<PathBuf> {
    let places = [PathBuf::from("/")]
        .into_iter()
        .chain(locate::cache().map(|cache| cache.join("kernel")));
    places
        .filter_map(|root| kernel::newest(&root.join("boot"), &root.join("lib/modules")))
        .map(|kernel| kernel.file)
        .next()
}

/// How to get an agent that needs no libraries.
const STATIC_AGENT: &str = "build it so: RUSTFLAGS='-C target-feature=+crt-static' cargo build \
     --release --target x86_64-unknown-linux-gnu -p mvm-guest-agent";

/// How to get one that serves commands and files as well.
const STATIC_DEV_AGENT: &str = "`cargo xtask build` makes one beside mvmctl; or build it so, and give \
     it with --agent: RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target \
     x86_64-unknown-linux-gnu -p mvm-guest-agent --features dev";

/// A program that goes into the image and, being static, runs here too.
struct Program {
    path: PathBuf,
    content: Vec<u8>,
}

fn program(
    given: Option<&Path>,
    known: &locate::Program,
    hint: &'static str,
) -> Result<Program, BuildError> {
    let path = match given {
        Some(path) => std::path::absolute(path).map_err(BuildError::io("resolve", path))?,
        None => known.find()?,
    };
    let content = std::fs::read(&path).map_err(BuildError::io("read", &path))?;
    match kernel::is_static(&content) {
        Some(true) => Ok(Program { path, content }),
        Some(false) => Err(BuildError::NotStatic { path, hint }),
        None => Err(BuildError::BadFile {
            path,
            reason: "it is no program for a 64-bit Linux".into(),
        }),
    }
}

fn check_version(file: &Path, image: &[u8], modules: &Path) -> Result<(), BuildError> {
    let resolved = std::fs::canonicalize(modules).map_err(BuildError::io("open", modules))?;
    match kernel::version_inside(image) {
        Some(version) if !resolved.ends_with(&version) => Err(BuildError::OtherVersion {
            file: file.to_owned(),
            kernel: version,
            modules: resolved,
        }),
        _ => Ok(()),
    }
}

fn find_modules(
    folder: &Path,
    more: &[String],
    optional: &[&'static str],
) -> Result<Vec<Module>, BuildError> {
    let folder = ModuleFolder::open(folder)?;
    let required = modules::REQUIRED.iter().copied();
    folder.resolve(
        required.chain(more.iter().map(String::as_str)),
        modules::OPTIONAL.iter().chain(optional).copied(),
    )
}

/// What `mvm-guest-agent --version` says: `mvm-guest-agent 0.1.0 (prod)`.
fn describe(agent: &Program) -> Result<Agent, BuildError> {
    let output = run(agent, &["--version".as_ref()])?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut words = said.split_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("mvm-guest-agent"), Some(version), Some(profile), None) => Ok(Agent {
            version: version.to_owned(),
            profile: profile.trim_matches(['(', ')']).to_owned(),
            port: mvm_protocol::PORT,
        }),
        _ => Err(BuildError::BadFile {
            path: agent.path.clone(),
            reason: format!(
                "it is no mvm-guest-agent: --version gives {:?}",
                said.trim()
            ),
        }),
    }
}

/// Has the agent read its settings and drop-ins as it will in the guest, and finds the port that
/// it will listen on.
fn check_etc(agent: &Program, etc: &Path) -> Result<u32, BuildError> {
    let output = run(agent, &["--check-config".as_ref(), etc.as_os_str()])?;
    if !output.status.success() {
        let mut problems = String::from_utf8_lossy(&output.stdout).into_owned();
        problems.push_str(&String::from_utf8_lossy(&output.stderr));
        return Err(BuildError::DropIns {
            etc: etc.to_owned(),
            problems: problems.trim_end().to_owned(),
        });
    }
    check_users(etc)?;
    let path = etc.join("agent.json");
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(mvm_protocol::PORT),
        Err(error) => return Err(BuildError::io("read", &path)(error)),
    };
    // Sound JSON: the agent has just read it.
    let settings: serde_json::Value =
        serde_json::from_slice(&content).map_err(|e| BuildError::io("read", &path)(e.into()))?;
    // Elsewhere they would be checked here and read by nobody.
    for name in ["integrations_dir", "probes_dir"] {
        let usual = format!("/etc/mvm/{}.d", name.trim_end_matches("_dir"));
        match settings.get(name).and_then(|folder| folder.as_str()) {
            Some(folder) if Path::new(folder) != Path::new(&usual) => {
                let reason = format!(
                    "with `{name}` {folder:?} the agent would not read what --etc has in {usual}"
                );
                return Err(BuildError::BadFile { path, reason });
            }
            _ => {}
        }
    }
    let Some(listen) = settings.get("listen").and_then(|l| l.as_array()) else {
        return Ok(mvm_protocol::PORT);
    };
    listen
        .iter()
        .find_map(|address| address.as_str()?.strip_prefix("vsock:")?.parse().ok())
        .ok_or_else(|| BuildError::BadFile {
            path,
            reason: "with this `listen` no host can reach the agent over vsock".into(),
        })
}

/// The users that the guest has: nobody else's name can be run as. A number needs no entry.
fn check_users(etc: &Path) -> Result<(), BuildError> {
    for folder in ["integrations.d", "probes.d"] {
        let folder = etc.join(folder);
        let files = if folder.is_dir() {
            files::entries(&folder)?
        } else {
            Vec::new()
        };
        for path in files {
            // What is no drop-in has been refused, or is none.
            let content = std::fs::read(&path).unwrap_or_default();
            let drop_in: serde_json::Value = serde_json::from_slice(&content).unwrap_or_default();
            let user = drop_in.get("user").and_then(|user| user.as_str());
            if let Some(user) = user
                && !guest::USERS.contains(&user)
                && user.parse::<u32>().is_err()
            {
                let known = guest::USERS.join(" and ");
                let reason = format!("the guest has no user {user:?}, but {known}, and numbers");
                return Err(BuildError::BadFile { path, reason });
            }
        }
    }
    Ok(())
}

fn run(program: &Program, arguments: &[&OsStr]) -> Result<Output, BuildError> {
    brief::run(Command::new(&program.path).args(arguments), BRIEFLY)
        .map_err(BuildError::io("run", &program.path))
}

/// Busybox, and a link for each of its applets where that one usually is.
fn add_busybox(tree: &mut Tree, busybox: &Program) -> Result<(), BuildError> {
    let output = run(busybox, &["--list-full".as_ref()])?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let applets: Vec<&str> = list.lines().filter(|line| line.contains('/')).collect();
    for needed in guest::APPLETS {
        if !applets
            .iter()
            .any(|path| path.rsplit('/').next() == Some(needed))
        {
            return Err(BuildError::BadFile {
                path: busybox.path.clone(),
                reason: format!("this busybox has no {needed}"),
            });
        }
    }
    tree.add_file("/bin/busybox", 0o755, busybox.content.as_slice())?;
    for applet in applets {
        if applet != "bin/busybox" {
            let to = "/bin/busybox".to_owned();
            tree.add(applet, Node::Link { to })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_as_written() {
        let service = Service::parse("web=httpd -f -h /www=x").unwrap();
        assert_eq!(
            (&*service.name, &*service.command),
            ("web", "httpd -f -h /www=x")
        );
        for bad in [
            "web", "web=", "web= ", "=x", "a/b=x", "..=x", ".x=x", "we b=x",
        ] {
            assert!(Service::parse(bad).is_err(), "{bad}");
        }
        let services = ["a=x", "b=y", "a=z"].map(|text| Service::parse(text).unwrap());
        let error = check_names(&services).unwrap_err().to_string();
        assert_eq!(error, "two services are called a");
        check_names(&services[..2]).unwrap();
    }

    #[test]
    fn settings_that_the_guest_would_not_go_by_are_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // An agent that finds fault with nothing.
        std::fs::write(at("draft"), "#!/bin/sh\nexit 0\n").unwrap();
        std::fs::set_permissions(at("draft"), std::fs::Permissions::from_mode(0o755)).unwrap();
        // By another process: what this one has open for writing cannot be run.
        let copied = Command::new("cp").args([at("draft"), at("agent")]).status();
        assert!(copied.unwrap().success());
        let agent = Program {
            path: at("agent"),
            content: Vec::new(),
        };
        let etc = at("etc");
        std::fs::create_dir_all(etc.join("probes.d")).unwrap();
        let check = |settings: &str, probe: &str| {
            std::fs::write(etc.join("agent.json"), settings).unwrap();
            std::fs::write(etc.join("probes.d/a.json"), probe).unwrap();
            check_etc(&agent, &etc).map_err(|error| error.to_string())
        };
        for (settings, probe, words) in [
            (
                r#"{"probes_dir": "/opt/p"}"#,
                "{}",
                "would not read what --etc has in /etc/mvm/probes.d",
            ),
            (
                r#"{"integrations_dir": "/i"}"#,
                "{}",
                "in /etc/mvm/integrations.d",
            ),
            (
                r#"{"listen": ["unix:/x"]}"#,
                "{}",
                "no host can reach the agent",
            ),
            (
                "{}",
                r#"{"user": "web"}"#,
                "the guest has no user \"web\", but root and nobody",
            ),
        ] {
            let error = check(settings, probe).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let usual = r#"{"probes_dir": "/etc/mvm/probes.d/", "listen": ["vsock:7"]}"#;
        assert_eq!(check(usual, r#"{"user": "nobody"}"#), Ok(7));
        assert_eq!(check("{}", r#"{"user": "1000"}"#), Ok(52));
    }

    /// The first line of many a script names `/usr/bin/env`, also where busybox knows no `/usr`.
    #[test]
    fn env_is_where_scripts_look_for_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        for usr in ["", "usr/"] {
            let path = folder.path().join("busybox");
            let list: Vec<_> = guest::APPLETS
                .iter()
                .map(|name| format!("echo {usr}bin/{name}\n"))
                .collect();
            let content = format!("#!/bin/sh\necho bin/busybox\n{}", list.concat());
            std::fs::write(&path, &content).unwrap();
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&path, executable).unwrap();
            let busybox = Program {
                path,
                content: content.into(),
            };
            let mut tree = Tree::default();
            add_busybox(&mut tree, &busybox).unwrap();
            guest::add(&mut tree, "x", &[], &[]).unwrap();
            assert!(tree.has("/usr/bin/env") && tree.has("/bin/busybox"));
        }
    }
}
