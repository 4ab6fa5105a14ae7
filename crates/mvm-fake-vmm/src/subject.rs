//! What a story is told of: a stand-in, or a real program that the environment names.

use crate::relay;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variables that name programs, several by a colon, and the programs' names.
const NAMED_BY: [(&str, &str, &str); 2] = [
    ("firecracker", "MVM_TEST_FIRECRACKER", "MVM_FIRECRACKER"),
    (
        "cloud-hypervisor",
        "MVM_TEST_CLOUD_HYPERVISOR",
        "MVM_CLOUD_HYPERVISOR",
    ),
];

/// A VMM that the stories are told of.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As `--backend` has it.
    pub backend: &'static str,
    /// As it tells itself, without a `v`.
    pub version: String,
    real: Option<PathBuf>,
    /// Where the stand-ins look whether they are to be the real program.
    link: PathBuf,
}

impl Subject {
    /// Whether it is the real program, which runs a guest.
    pub fn is_real(&self) -> bool {
        self.real.is_some()
    }

    /// The version's first number.
    pub fn major(&self) -> u32 {
        let first = self.version.split('.').next().unwrap_or_default();
        first.parse().expect("a version begins with a number")
    }

    /// Of its tests: `firecracker`, `firecracker-1.16.1`.
    pub fn name(&self) -> String {
        if self.is_real() {
            format!("{}-{}", self.backend, self.version)
        } else {
            self.backend.to_owned()
        }
    }

    /// The real program, if it is one.
    pub fn program(&self) -> Option<&Path> {
        self.real.as_deref()
    }

    /// Has what is started from now on by the name of this VMM be this one.
    pub fn select(&self) {
        let _ = fs::remove_file(&self.link);
        if let Some(real) = &self.real {
            symlink(real, &self.link).expect("a link to the real program");
        }
    }
}

/// All VMMs of that backend: the stand-in, and each real program that is named. A program that
/// cannot tell its version is told, as what it was named by and why.
pub fn subjects(backend: &str) -> (Vec<Subject>, Vec<String>) {
    let (backend, variable, program) = NAMED_BY
        .into_iter()
        .find(|(name, ..)| *name == backend)
        .expect("a backend with a stand-in");
    let stand_in = PathBuf::from(env::var_os(program).expect("`install` was called"));
    let subject = |path: &Path, real: Option<PathBuf>| {
        Ok::<_, String>(Subject {
            backend,
            version: version(path)?,
            real,
            link: relay::link_beside(&stand_in).expect("it is in a folder"),
        })
    };
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    let named = env::var(variable).unwrap_or_default();
    let real = named.split(':').filter(|path| !path.is_empty());
    let real: Vec<_> = real.map(PathBuf::from).collect();
    if real.is_empty() {
        eprintln!(
            "{variable} is not set: of {backend} the stand-in alone is tried, and no real program"
        );
    }
    for each in [subject(&stand_in, None)].into_iter().chain(
        real.into_iter()
            .map(|path| subject(&path, Some(path.clone()))),
    ) {
        match each {
            Ok(subject) => found.push(subject),
            Err(why) => wrong.push(format!("{variable}: {why}")),
        }
    }
    (found, wrong)
}

fn version(program: &Path) -> Result<String, String> {
    let told = |why: String| format!("{}: {why}", program.display());
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| told(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_whitespace().nth(1);
    let version = version.and_then(|version| version.strip_prefix('v'));
    let version = version.ok_or_else(|| told(format!("it does not tell its version: {said:?}")))?;
    Ok(version.to_owned())
}

/// What the VMM of the VM in that folder and its guest were asked, and with what they answered.
pub fn calls(folder: &Path) -> Vec<String> {
    relay::flush(folder);
    calls_so_far(folder)
}

/// The same while a request may be under way, without what the guest has told since the last one.
pub fn calls_so_far(folder: &Path) -> Vec<String> {
    let calls = fs::read_to_string(folder.join("calls.log")).unwrap_or_default();
    calls.lines().map(str::to_owned).collect()
}

/// Begins that list anew.
pub fn forget_calls(folder: &Path) {
    relay::flush(folder);
    let _ = fs::remove_file(folder.join("calls.log"));
}
