//! Which kernel modules the guest needs, in the order in which they are to be loaded.
//!
//! What a module depends on is read from the module itself (`depends=` in its `.modinfo`), not from
//! `modules.dep`: that file is made when a kernel is installed, and a kernel package that was only
//! unpacked does not have it.

use super::BuildError;
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What every guest needs: the PCI transport, and vsock.
pub(super) const REQUIRED: &[&str] = &["virtio_pci", "vmw_vsock_virtio_transport"];

/// What is taken along where there is such a module: the transport of VMMs without PCI.
pub(super) const OPTIONAL: &[&str] = &["virtio_mmio"];

/// A module to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with `_` throughout.
    pub(super) name: String,
    /// Its content, uncompressed.
    pub(super) content: Vec<u8>,
}

/// `lib/modules/VERSION`
#[derive(Debug)]
pub(super) struct ModuleFolder {
    folder: PathBuf,
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

impl ModuleFolder {
    /// Looks through the folder.
    pub(super) fn open(folder: &Path) -> Result<Self, BuildError> {
        let mut files = HashMap::new();
        walk(folder, &mut files)?;
        let list = folder.join("modules.builtin");
        let built_in = std::fs::read_to_string(&list)
            .map_err(BuildError::io("read", &list))?
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        Ok(Self {
            folder: folder.to_owned(),
            files,
            built_in,
        })
    }

    /// These modules and all that they depend on, each after what it depends on. What is built into
    /// the kernel is left out.
    pub(super) fn resolve<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, BuildError> {
        let mut loaded = Vec::new();
        let mut seen = HashSet::new();
        for name in wanted {
            self.visit(name, &mut seen, &mut loaded)?;
        }
        Ok(loaded)
    }

    /// Whether there is such a module, as a file or built in.
    pub(super) fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.files.contains_key(&name) || self.built_in.contains(&name)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut HashSet<String>,
        loaded: &mut Vec<Module>,
    ) -> Result<(), BuildError> {
        let name = canonical(name);
        // Marked before it is looked into, so that a circle ends.
        if self.built_in.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let path = self.files.get(&name).ok_or_else(|| BuildError::NoModule {
            name: name.clone(),
            folder: self.folder.clone(),
        })?;
        let content = read(path)?;
        let depends = dependencies(&content).ok_or_else(|| BuildError::BadFile {
            path: path.clone(),
            reason: "it is no kernel module for a 64-bit machine".into(),
        })?;
        for dependency in depends {
            self.visit(&dependency, seen, loaded)?;
        }
        loaded.push(Module { name, content });
        Ok(())
    }
}

/// The names in `depends=a,b` of the `.modinfo` section, which holds `key=value` strings, each
/// ended by a zero byte.
fn dependencies(module: &[u8]) -> Option<Vec<String>> {
    let header = FileHeader64::<Endianness>::parse(module).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, module).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    let info = section.data(endian, module).ok()?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .unwrap_or_default();
    let names = std::str::from_utf8(depends).ok()?.split(',');
    Some(names.filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

/// A module's content, unpacked: busybox's insmod may know fewer packers than the distribution.
fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    let packer = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return std::fs::read(path).map_err(BuildError::io("read", path)),
    };
    let output = Command::new(packer)
        .arg("-dc")
        .arg(path)
        .output()
        .map_err(BuildError::io("unpack, with xz, zstd or gzip,", path))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(BuildError::BadFile {
        path: path.to_owned(),
        reason: format!(
            "{packer} cannot unpack it: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    })
}

fn walk(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<(), BuildError> {
    for entry in std::fs::read_dir(folder).map_err(BuildError::io("read", folder))? {
        let entry = entry.map_err(BuildError::io("read", folder))?;
        let path = entry.path();
        // Links (`build`, `source`) lead out of the folder.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/vmw_vsock/vsock.ko.xz` → `vsock`
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, packer) = file.split_once(".ko")?;
    matches!(packer, "" | ".xz" | ".zst" | ".gz").then(|| canonical(name))
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module as the kernel's build makes it, as far as is looked at here.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(16, 0);
        elf.extend(1_u16.to_le_bytes());
        elf.extend(62_u16.to_le_bytes());
        elf.extend(1_u32.to_le_bytes());
        let body = 64 + info.len() + names.len();
        for word in [0_u64, 0, body as u64] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(0_u32.to_le_bytes());
        for half in [64_u16, 0, 0, 64, 3, 2] {
            elf.extend(half.to_le_bytes());
        }
        elf.extend(info.as_bytes());
        elf.extend(names);
        let mut section = |name: u32, kind: u32, offset: usize, size: usize| {
            elf.extend(name.to_le_bytes());
            elf.extend(kind.to_le_bytes());
            for word in [0, 0, offset as u64, size as u64, 0, 0, 0] {
                elf.extend(word.to_le_bytes());
            }
        };
        section(0, 0, 0, 0);
        section(1, 1, 64, info.len());
        section(10, 3, 64 + info.len(), names.len());
        elf
    }

    fn folder(modules: &[(&str, &str)], built_in: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let net = folder.path().join("kernel/net");
        std::fs::create_dir_all(&net).unwrap();
        for (name, depends) in modules {
            std::fs::write(net.join(name), module(depends)).unwrap();
        }
        std::fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        folder
    }

    fn order(folder: &tempfile::TempDir, wanted: &[&str]) -> Result<Vec<String>, BuildError> {
        let modules = ModuleFolder::open(folder.path())?.resolve(wanted.iter().copied())?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn each_comes_once_and_after_what_it_depends_on() {
        let folder = folder(
            &[
                ("virtio-ring.ko", ""),
                ("virtio.ko", "virtio_ring"),
                ("virtio_pci.ko", "virtio_ring,virtio"),
                ("vsock.ko", "unix"),
            ],
            "kernel/net/unix/unix.ko\n",
        );
        assert_eq!(
            order(&folder, &["virtio_pci", "vsock"]).unwrap(),
            ["virtio_ring", "virtio", "virtio_pci", "vsock"]
        );
    }

    #[test]
    fn one_that_is_missing_is_named() {
        let folder = folder(&[("vsock.ko", "absent")], "");
        let error = order(&folder, &["vsock"]).unwrap_err().to_string();
        assert!(error.contains("no module absent"), "{error}");
        let net = folder.path().join("kernel/net");
        std::fs::write(net.join("vsock.ko"), "\x7fELF").unwrap();
        let error = order(&folder, &["vsock"]).unwrap_err().to_string();
        assert!(error.contains("no kernel module"), "{error}");
    }

    #[test]
    fn a_packed_one_is_unpacked() {
        let folder = folder(&[("vsock.ko", "")], "");
        let file = folder.path().join("kernel/net/vsock.ko");
        let packed = Command::new("gzip").arg(&file).status().unwrap();
        assert!(packed.success() && !file.exists());
        let modules = ModuleFolder::open(folder.path()).unwrap();
        assert!(modules.has("vsock"));
        let modules = modules.resolve(["vsock"]).unwrap();
        assert_eq!(modules[0].content, module(""));
    }
}
