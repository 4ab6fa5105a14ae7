//! The binaries that a chore runs, built as users get them.

use crate::sh::{Cmd, Failure, Result, Tried, say};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub(crate) fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR");
    let xtask = xtask.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}

/// Cargo's target folder: the one that this program was built in, however it was configured.
/// Cargo marks it with a file.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| {
            Failure(format!(
                "no target folder above {}: start xtask as `cargo xtask`",
                own.display()
            ))
        })
}

/// The agent as it goes into a guest: static, small, prod.
pub(crate) fn static_agent() -> Result<PathBuf> {
    Target::own().agent()
}

/// The same for development guests, which serves commands, files, jobs and ports as well.
pub(crate) fn static_dev_agent() -> Result<PathBuf> {
    Target::own().dev_agent()
}

/// Where cargo keeps what it has fetched.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .ok_or_else(|| Failure("neither CARGO_HOME nor HOME is set".into()))
}

/// Agents that misbehave, for tests of clients.
pub(crate) fn fake_agent() -> Result<PathBuf> {
    Cmd::new("cargo")
        .args(["build", "--package", "mvm-fake-agent"])
        .run()?;
    built("debug/mvm-fake-agent")
}

/// What static programs are built for, and with what.
pub(crate) struct Target {
    /// As Rust calls its kind of CPU.
    pub(crate) arch: &'static str,
    /// What cargo is told of tools that are not this machine's own.
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// By which flags rustc links with LLD, if that is there.
    pub(crate) lld: Option<&'static str>,
    /// What runs such programs on this machine, if its CPU does not.
    pub(crate) runner: Option<PathBuf>,
}

impl Target {
    /// This machine's kind of CPU.
    pub(crate) fn own() -> Self {
        Self {
            arch: std::env::consts::ARCH,
            env: Vec::new(),
            // Rust's default on x86-64 alone.
            lld: (std::env::consts::ARCH == "x86_64").then_some(""),
            runner: None,
        }
    }

    pub(crate) fn triple(&self) -> String {
        format!("{}-unknown-linux-gnu", self.arch)
    }

    /// A folder of cargo's target folder, with a name that tells targets apart.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let name = match self.runner {
            None => name.to_owned(),
            Some(_) => format!("{name}-{}", self.arch),
        };
        Ok(target_dir()?.join(name))
    }

    pub(crate) fn agent(&self) -> Result<PathBuf> {
        self.build_agent("mvm-guest-agent", &[])
    }

    pub(crate) fn dev_agent(&self) -> Result<PathBuf> {
        self.build_agent("mvm-guest-agent-dev", &["--features", "dev"])
    }

    /// `mvmctl` as it is packed: static, so that it runs on any distribution. glibc asks no resolver
    /// then but those that it was built with, and `mvmctl` asks none: addresses are numbers.
    pub(crate) fn mvmctl(&self) -> Result<PathBuf> {
        self.program("mvmctl", "dist-host", &["--package", "mvmctl"], "")
    }

    /// A program of this target, run on this machine.
    pub(crate) fn run(&self, program: &Path) -> Cmd {
        match &self.runner {
            None => Cmd::new(program),
            Some(runner) => Cmd::new(runner).arg(program),
        }
    }

    /// Tells cargo, or what runs it, what the target's programs are built with.
    pub(crate) fn told(&self, cargo: Cmd, flags: &str) -> Cmd {
        let given = std::env::var("RUSTFLAGS").unwrap_or_default();
        let lld = self.lld.unwrap_or_default();
        let flags = [&given, "-C target-feature=+crt-static", lld, flags];
        let flags: Vec<_> = flags
            .into_iter()
            .filter(|flags| !flags.is_empty())
            .collect();
        let env = self.env.iter();
        let cargo = env.fold(cargo, |cargo, (key, value)| cargo.env(key, value));
        // With a target given, the flags do not reach build scripts and procedural macros.
        cargo
            .args(["--target", &self.triple()])
            .env("RUSTFLAGS", flags.join(" "))
    }

    /// Cargo gives both builds one name, and the next one replaces the last: each is put aside under a
    /// name of its own.
    fn build_agent(&self, name: &str, features: &[&str]) -> Result<PathBuf> {
        let options = [&["--package", "mvm-guest-agent"], features].concat();
        let smaller = self.lld.map_or("", |_| SMALLER);
        let built = self.program("mvm-guest-agent", "release", &options, smaller)?;
        let aside = self.folder("agents")?;
        fs::create_dir_all(&aside).tried(format!("create {}", aside.display()))?;
        let aside = aside.join(name);
        place(&built, &aside)?;
        Ok(aside)
    }

    fn program(&self, name: &str, profile: &str, options: &[&str], flags: &str) -> Result<PathBuf> {
        let cargo = Cmd::new("cargo")
            .args(["build", "--profile", profile])
            .args(options);
        self.told(cargo, flags).run()?;
        built(&format!("{}/{profile}/{name}", self.triple()))
    }
}

/// Flags for LLD that make the agent 15 % smaller: relocations packed as RELR, functions of the same
/// code kept once, and nothing for unwinding, since a panic aborts.
///
/// The script's path is relative to the workspace, where cargo runs the linker of its members: an
/// absolute one may have a space in it.
const SMALLER: &str = "-C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--icf=safe \
     -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,xtask/agent.ld";

/// A host program, optimised.
pub(crate) fn host_program(package: &str) -> Result<PathBuf> {
    Cmd::new("cargo")
        .args(["build", "--profile", "dist-host", "--package", package])
        .run()?;
    built(&format!("dist-host/{package}"))
}

/// A host program as the tests run it.
pub(crate) fn debug_program(package: &str) -> Result<PathBuf> {
    Cmd::new("cargo")
        .args(["build", "--package", package])
        .run()?;
    built(&format!("debug/{package}"))
}

/// What users get, side by side in a folder: `mvmctl` finds the agent beside itself.
pub(crate) fn programs() -> Result<PathBuf> {
    let dir = target_dir()?.join("bin");
    fs::create_dir_all(&dir).tried(format!("create {}", dir.display()))?;
    for program in [static_agent()?, host_program("mvmctl")?] {
        place(&program, &dir.join(program.file_name().unwrap_or_default()))?;
    }
    Ok(dir)
}

/// Copies a program, by a rename, since a program that runs cannot be written over.
pub(crate) fn place(program: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(program, &new)
        .and_then(|_| fs::rename(&new, to))
        .tried(format!("copy {} to {}", program.display(), to.display()))
}

/// `cargo xtask build`
pub(crate) fn run() -> Result<()> {
    let dev = static_dev_agent()?;
    let dir = programs()?;
    place(&dev, &dir.join("mvm-guest-agent-dev"))?;
    say("The agent, static, as prod and as dev build, and mvmctl. To have them at hand:");
    println!("\nexport PATH={}:$PATH", dir.display());
    Ok(())
}

fn built(path: &str) -> Result<PathBuf> {
    let file = target_dir()?.join(path);
    if file.is_file() {
        Ok(file)
    } else {
        Err(Failure(format!(
            "cargo succeeded, but {} is not there: is another target folder configured?",
            file.display()
        )))
    }
}
