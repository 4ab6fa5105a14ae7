//! What a chore needs of the machine beyond Rust, and how each thing is installed.
//!
//! Cargo tools and the guests' kernel go into a folder of the user's cache and leave the machine as
//! it is. Packages are the only thing that is installed for the whole machine, and only by root.

use crate::build::Target;
use crate::sh::{Cmd, Failure, Result, Tried, say, which};
use apt::{unpack, with_fresh_lists};
use std::fs;
use std::path::{Path, PathBuf};

mod aarch64;
mod apt;
mod debian;
mod kernel;
mod slurm;
mod tool;

pub(crate) use aarch64::aarch64;
pub(crate) use debian::debian;
pub(crate) use kernel::{Kernel, newer_kernel};
pub(crate) use slurm::slurm;
pub(crate) use tool::{CYCLONEDX, DEB, DENY, FUZZ, NEXTEST, VSOCK_BACKEND};

/// A Debian package, and the program that shows that its like is there on other systems.
struct Package {
    name: &'static str,
    program: &'static str,
    why: &'static str,
}

const QEMU: Package = Package {
    name: "qemu-system-x86",
    program: "qemu-system-x86_64",
    why: "runs the guests",
};
const BUSYBOX: Package = Package {
    name: "busybox-static",
    program: "busybox",
    why: "is the guests' userland, and the demo's web server",
};
const SOCAT: Package = Package {
    name: "socat",
    program: "socat",
    why: "is what copies are measured against",
};
const TMUX: Package = Package {
    name: "tmux",
    program: "tmux",
    why: "is the terminal of the tests of interactive commands",
};

/// Shells whose completion is tried. bash is everywhere.
const SHELLS: [Package; 2] = [
    Package {
        name: "fish",
        program: "fish",
        why: "is asked for completions of mvmctl",
    },
    Package {
        name: "zsh",
        program: "zsh",
        why: "is asked for completions of mvmctl",
    },
];

/// What reads what Prometheus answers, in scripts.
const JQ: Package = Package {
    name: "jq",
    program: "jq",
    why: "reads numbers in the scripts that are shipped",
};

const LINTIAN: Package = Package {
    name: "lintian",
    program: "lintian",
    why: "checks our Debian packages as Debian's own are checked",
};

/// What the tests of mkGuest take besides a guest's parts: Nix, and what stands for nixpkgs'
/// packages.
const NIX: [Package; 8] = [
    Package {
        name: "nix-bin",
        program: "nix-build",
        why: "is Nix, which builds guests by mkGuest",
    },
    Package {
        name: "bash-static",
        program: "bash-static",
        why: "is the shell of Nix's builds in the tests",
    },
    Package {
        name: "cpio",
        program: "cpio",
        why: "writes mkGuest's initrds",
    },
    Package {
        name: "e2fsprogs",
        program: "mke2fs",
        why: "writes mkGuest's ext4 images",
    },
    Package {
        name: "erofs-utils",
        program: "mkfs.erofs",
        why: "writes mkGuest's erofs images",
    },
    Package {
        name: "gzip",
        program: "gzip",
        why: "packs mkGuest's initrds",
    },
    Package {
        name: "xz-utils",
        program: "xz",
        why: "packs a kernel module, as other distributions do",
    },
    Package {
        name: "zstd",
        program: "zstd",
        why: "packs a kernel module, as other distributions do",
    },
];

impl Package {
    fn is_there(&self) -> bool {
        // On Debian `busybox` would satisfy the name, but is not static.
        let known = Cmd::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", self.name])
            .output();
        match known {
            Ok(status) => status == "installed",
            Err(_) => !is_debian() && which(self.program).is_some(),
        }
    }
}

/// Everything that a guest is made of, besides the agent.
pub(crate) struct GuestParts {
    pub(crate) kernel: Kernel,
    pub(crate) busybox: PathBuf,
    pub(crate) vsock_backend: PathBuf,
}

impl GuestParts {
    /// A program that makes guests of these parts and of those agents is told where they are.
    pub(crate) fn told(&self, program: Cmd, agent: &Path, dev: &Path) -> Cmd {
        program
            .env("MVM_TEST_AGENT", agent)
            .env("MVM_TEST_DEV_AGENT", dev)
            .env("MVM_TEST_KERNEL", &self.kernel.image)
            .env("MVM_TEST_MODULES", &self.kernel.modules)
            .env("MVM_TEST_BUSYBOX", &self.busybox)
            .env("MVM_TEST_VSOCK_BACKEND", &self.vsock_backend)
            // A test that finds no VMM would otherwise skip itself.
            .env("MVM_REQUIRE_VM", "1")
    }
}

/// What a microVM takes, installed where it is missing.
pub(crate) fn guest_parts() -> Result<GuestParts> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(Failure(format!(
            "guests are built for x86_64 alone, and this machine is {}",
            std::env::consts::ARCH
        )));
    }
    packages(&[QEMU, BUSYBOX])?;
    Ok(GuestParts {
        kernel: kernel::kernel()?,
        busybox: found(BUSYBOX.program)?,
        vsock_backend: VSOCK_BACKEND.installed()?,
    })
}

/// Nix and the tools of its tests, installed where they are missing.
pub(crate) fn nix() -> Result<()> {
    packages(&NIX)
}

/// The web server of a demo without a VM.
pub(crate) fn busybox() -> Result<PathBuf> {
    packages(&[BUSYBOX])?;
    found(BUSYBOX.program)
}

/// What copies are measured against.
pub(crate) fn socat() -> Result<()> {
    packages(&[SOCAT])
}

/// The terminal of the tests of interactive commands.
pub(crate) fn terminal() -> Result<()> {
    packages(&[TMUX])
}

/// The shells that complete what is typed for mvmctl.
pub(crate) fn shells() -> Result<()> {
    packages(&SHELLS)
}

/// What the scripts that are shipped run.
pub(crate) fn scripts() -> Result<()> {
    packages(&[JQ])
}

/// What checks Debian packages.
pub(crate) fn lintian() -> Result<()> {
    packages(&[LINTIAN])
}

fn found(program: &str) -> Result<PathBuf> {
    which(program).ok_or_else(|| Failure(format!("`{program}` is not on PATH")))
}

/// A target of cargo's that programs are packed for.
pub(crate) fn target(triple: &str) -> Result<Target> {
    let own = Target::own();
    match triple {
        own_triple if own_triple == own.triple() => Ok(own),
        "aarch64-unknown-linux-gnu" => aarch64(),
        other => Err(Failure(format!(
            "nothing is built for `{other}`, but for {} and aarch64-unknown-linux-gnu",
            own.triple()
        ))),
    }
}

/// Installs packages, or says which command does.
fn packages(wanted: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = wanted.iter().filter(|it| !it.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|it| it.name).collect();
    for Package { name, why, .. } in &missing {
        say(format!("{name} is not installed. It {why}."));
    }
    if !is_debian() {
        return Err(Failure(format!(
            "this is not Debian or a relative of it, and I know no other system's packages. \
             Install what Debian calls {} and try again",
            names.join(" and ")
        )));
    }
    if !is_root() {
        return Err(Failure(format!(
            "packages are missing, and only root installs them. Run\n\n    sudo apt-get update && \
             sudo apt-get install -y --no-install-recommends {}\n\nand try again",
            names.join(" ")
        )));
    }
    say("Asking apt for them, which takes about half a minute.");
    with_fresh_lists(&names, || {
        Cmd::new("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(&names)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .run()
    })
}

/// Prometheus, and what reads metrics as it does.
pub(crate) struct Prometheus {
    pub(crate) server: PathBuf,
    pub(crate) promtool: PathBuf,
}

/// Debian's package would start a server for the whole machine, so it is unpacked into our cache.
pub(crate) fn prometheus() -> Result<Prometheus> {
    if let (Some(server), Some(promtool)) = (which("prometheus"), which("promtool")) {
        return Ok(Prometheus { server, promtool });
    }
    let home = cache()?.join("prometheus");
    let programs = Prometheus {
        server: home.join("usr/bin/prometheus"),
        promtool: home.join("usr/bin/promtool"),
    };
    if programs.server.is_file() && programs.promtool.is_file() {
        return Ok(programs);
    }
    if !is_debian() {
        return Err(Failure(
            "Prometheus is missing. The tests have it scrape our metrics, and promtool read them. \
             Install both, and try again"
                .into(),
        ));
    }
    say(format!(
        "Prometheus is not installed. The tests have it scrape our metrics. Unpacking Debian's \
         prometheus into {}, which takes about ten seconds.",
        home.display()
    ));
    let package = "prometheus";
    unpack(package, &home, || Ok(package.to_owned()))?;
    Ok(programs)
}

/// The folder of Python's type checker, which the Python client is held against.
pub(crate) fn mypy() -> Result<PathBuf> {
    const VERSION: &str = "2.4.1";
    let home = cache()?.join(format!("mypy-{VERSION}"));
    if home.is_dir() {
        return Ok(home);
    }
    if which("python3").is_none() {
        packages(&[Package {
            name: "python3-pip",
            program: "pip3",
            why: "installs what checks the types of the Python client",
        }])?;
    }
    say(format!(
        "mypy {VERSION} is not installed. It checks the types of the Python client. Installing it into \
         {}, which takes about ten seconds.",
        home.display()
    ));
    let new = Scratch::new(&home.with_extension("new"))?;
    Cmd::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ])
        .arg("--target")
        .arg(new.path())
        .arg(format!("mypy=={VERSION}"))
        .run()?;
    fs::rename(new.path(), &home).tried(format!("rename to {}", home.display()))?;
    Ok(home)
}

/// Where our tools and the kernel are kept.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|value| Path::new(value).is_absolute())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .ok_or_else(|| Failure("neither XDG_CACHE_HOME nor HOME is set".into()))?;
    let cache = base.join("mvm-xtask");
    fs::create_dir_all(&cache).tried(format!("create {}", cache.display()))?;
    Ok(cache)
}

fn is_debian() -> bool {
    which("apt-get").is_some() && which("dpkg-deb").is_some()
}

pub(crate) fn is_root() -> bool {
    Cmd::new("id").arg("-u").output().is_ok_and(|id| id == "0")
}

/// A folder that is gone when its owner is.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).tried(format!("create {}", path.display()))?;
        Ok(Self(path.to_path_buf()))
    }

    /// A folder in another, named after this process. Those of processes that were killed, and so
    /// removed nothing, are removed.
    pub(crate) fn of_process(folder: &Path, name: &str) -> Result<Self> {
        let prefix = format!("{name}-");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let found = entry.file_name();
            let pid = found.to_str().and_then(|found| found.strip_prefix(&prefix));
            if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok())
                && !Path::new(&format!("/proc/{pid}")).exists()
            {
                drop(Self(entry.path()));
            }
        }
        Self::new(&folder.join(format!("{prefix}{}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let remove = || fs::remove_dir_all(&self.0);
        let removed = remove().or_else(|error| {
            // In Nix's stores folders are read-only, which holds up all but root.
            let writable = Cmd::new("chmod").args(["-R", "u+w"]).arg(&self.0).output();
            if writable.is_ok() {
                remove()
            } else {
                Err(error)
            }
        });
        if let Err(error) = removed {
            eprintln!("xtask: cannot remove {}: {error}", self.0.display());
        }
    }
}
