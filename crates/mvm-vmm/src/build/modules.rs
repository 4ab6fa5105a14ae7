//! Which kernel modules the guest needs, in the order in which they are to be loaded.
//!
//! What a module depends on is read from the module itself (`depends=` and `softdep=` in its
//! `.modinfo`), not from `modules.dep` and `modules.softdep`: those files are made when a kernel is
//! installed, and a kernel package that was only unpacked does not have them.

use super::BuildError;
use crate::unpack::{Packing, UnpackError};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// The most that a module may have, in bytes. The largest have some ten million; ten times that with
/// what a debugger needs.
const MAX_MODULE: u64 = 512 << 20;

/// What every guest needs: the PCI transport, and vsock.
pub(super) const REQUIRED: &[&str] = &["virtio_pci", "vmw_vsock_virtio_transport"];

/// What is taken along where there is such a module: the transport of VMMs without PCI, and the
/// keyboard, by which QEMU and Firecracker ask a guest to power off.
pub(super) const OPTIONAL: &[&str] = &["virtio_mmio", "i8042", "atkbd"];

/// A module to be loaded.
#[derive(Debug)]
pub(super) struct Module {
    /// Its name, with `_` throughout.
    pub(super) name: String,
    /// Its content, uncompressed.
    pub(super) content: Vec<u8>,
    /// Whether the guest does without if it cannot be loaded, as what drives a device that the
    /// machine does not have.
    pub(super) optional: bool,
}

impl Module {
    /// Its line in the list that the guest loads them by.
    pub(super) fn line(&self) -> String {
        let optional = if self.optional { " optional" } else { "" };
        format!("{}{optional}\n", self.name)
    }
}

/// `lib/modules/VERSION`
#[derive(Debug)]
pub(super) struct ModuleFolder {
    folder: PathBuf,
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

/// What is to be loaded so far.
#[derive(Debug, Default)]
struct Plan {
    loaded: Vec<Module>,
    /// Names that have been looked into, and what was found there.
    seen: HashMap<String, Needs>,
}

/// What a module says of others, and how much it is wanted itself.
#[derive(Debug, Clone, Default)]
struct Needs {
    /// Names of modules whose symbols it uses.
    depends: Vec<String>,
    /// Names or aliases of what has to be there before it, though it uses no symbol of theirs
    /// (`softdep=pre:`).
    before: Vec<String>,
    optional: bool,
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
    /// the kernel is left out; of the optional ones, also what is not there.
    pub(super) fn resolve<'a>(
        &self,
        required: impl IntoIterator<Item = &'a str>,
        optional: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Module>, BuildError> {
        let mut plan = Plan::default();
        for name in required {
            self.visit(name, false, &mut plan)?;
        }
        for name in optional {
            self.visit_optional(name, &mut plan)?;
        }
        for module in &mut plan.loaded {
            module.optional = plan.seen.get(&module.name).is_some_and(|n| n.optional);
        }
        Ok(plan.loaded)
    }

    fn visit(&self, name: &str, optional: bool, plan: &mut Plan) -> Result<(), BuildError> {
        let name = canonical(name);
        if self.built_in.contains(&name) {
            return Ok(());
        }
        if let Some(needs) = plan.seen.get_mut(&name) {
            // In its place already; and now perhaps wanted for good, with what it depends on.
            if needs.optional && !optional {
                needs.optional = false;
                for dependency in needs.depends.clone() {
                    self.visit(&dependency, false, plan)?;
                }
            }
            return Ok(());
        }
        let path = self.files.get(&name).ok_or_else(|| BuildError::NoModule {
            name: name.clone(),
            folder: self.folder.clone(),
            asked: !REQUIRED.contains(&name.as_str()),
        })?;
        let content = read(path)?;
        let needs = Needs {
            optional,
            ..needs(&content).ok_or_else(|| BuildError::BadFile {
                path: path.clone(),
                reason: "it is no kernel module for a 64-bit machine".into(),
            })?
        };
        // Known before it is looked into, so that a circle ends.
        plan.seen.insert(name.clone(), needs.clone());
        for alias in &needs.before {
            self.visit_optional(alias, plan)?;
        }
        for dependency in &needs.depends {
            self.visit(dependency, optional, plan)?;
        }
        plan.loaded.push(Module {
            name,
            content,
            optional,
        });
        Ok(())
    }

    /// A module by its name or an alias: all that go by it, as modprobe does it; nothing, if there is
    /// none.
    fn visit_optional(&self, alias: &str, plan: &mut Plan) -> Result<(), BuildError> {
        let alias = canonical(alias);
        if self.files.contains_key(&alias) {
            return self.visit(&alias, true, plan);
        }
        if self.built_in.contains(&alias) {
            return Ok(());
        }
        for name in self.aliased(&alias)? {
            self.visit(&name, true, plan)?;
        }
        Ok(())
    }

    /// The modules that go by an alias: of `modules.alias`, or where that was not made, of all that
    /// are in a folder `crypto`. What is depended on by alias are algorithms, of which each machine
    /// has its own; to unpack all modules for one would take minutes.
    fn aliased(&self, alias: &str) -> Result<Vec<String>, BuildError> {
        let mut names = Vec::new();
        if let Ok(list) = std::fs::read_to_string(self.folder.join("modules.alias")) {
            for line in list.lines() {
                let mut words = line.split_whitespace();
                if words.next() == Some("alias")
                    && words.next().map(canonical).as_deref() == Some(alias)
                {
                    names.extend(words.next().map(canonical));
                }
            }
        } else {
            let is_crypto =
                |path: &&PathBuf| path.components().any(|part| part.as_os_str() == "crypto");
            for path in self.files.values().filter(is_crypto) {
                let content = read(path)?;
                let info = modinfo(&content).unwrap_or_default();
                let mut aliases = values(&info, "alias");
                if aliases.any(|one| canonical(one) == alias) {
                    names.extend(module_name(path));
                }
            }
        }
        names.retain(|name| self.files.contains_key(name));
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// What the `.modinfo` section of a module says of others.
fn needs(module: &[u8]) -> Option<Needs> {
    let info = modinfo(module)?;
    let depends = values(&info, "depends").flat_map(|names| names.split(','));
    let depends = depends.filter(|name| !name.is_empty()).map(str::to_owned);
    let mut before = Vec::new();
    for soft in values(&info, "softdep") {
        let mut is_before = false;
        for word in soft.split_whitespace() {
            match word.strip_suffix(':') {
                Some(when) => is_before = when == "pre",
                None if is_before => before.push(word.to_owned()),
                None => {}
            }
        }
    }
    Some(Needs {
        depends: depends.collect(),
        before,
        optional: false,
    })
}

/// The `.modinfo` section: `key=value` strings, each ended by a zero byte.
fn modinfo(module: &[u8]) -> Option<Vec<&str>> {
    let header = FileHeader64::<Endianness>::parse(module).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, module).ok()?;
    let (_, section) = sections.section_by_name(endian, b".modinfo")?;
    let info = section.data(endian, module).ok()?;
    let entries = info.split(|byte| *byte == 0);
    // An author's name may be in another encoding.
    Some(
        entries
            .filter_map(|entry| std::str::from_utf8(entry).ok())
            .collect(),
    )
}

/// The values of a key.
fn values<'a>(info: &[&'a str], key: &'static str) -> impl Iterator<Item = &'a str> {
    info.iter()
        .filter_map(move |entry| entry.strip_prefix(key)?.strip_prefix('='))
}

/// A module's content, unpacked: busybox's insmod may know fewer packers than the distribution. What
/// it is packed with, its name may tell; its content does.
fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    let failed = || BuildError::io("read", path);
    let mut file = BufReader::new(File::open(path).map_err(failed())?);
    let mut content = Vec::new();
    let Some(packing) = Packing::of(file.fill_buf().map_err(failed())?) else {
        file.take(MAX_MODULE + 1)
            .read_to_end(&mut content)
            .map_err(failed())?;
        let at_most = MAX_MODULE;
        return if content.len() as u64 > at_most {
            Err(bad(path, &UnpackError::TooLong { at_most }))
        } else {
            Ok(content)
        };
    };
    packing
        .unpack(file, MAX_MODULE, &mut content)
        .map_err(|error| bad(path, &error))?;
    Ok(content)
}

fn bad(path: &Path, error: &UnpackError) -> BuildError {
    BuildError::BadModule {
        path: path.to_owned(),
        reason: error.to_string(),
    }
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
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    /// A module as the kernel's build makes it, as far as is looked at here: what it depends on, and
    /// after a space further entries, divided by `;`.
    fn module(depends: &str) -> Vec<u8> {
        let (depends, more) = depends.split_once(' ').unwrap_or((depends, ""));
        let more = more.replace(';', "\0");
        let info = format!("license=GPL\0depends={depends}\0{more}\0name=x\0");
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
        for (name, depends) in modules {
            let place = if name.contains('/') {
                "kernel"
            } else {
                "kernel/net"
            };
            let file = folder.path().join(place).join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, module(depends)).unwrap();
        }
        std::fs::write(folder.path().join("modules.builtin"), built_in).unwrap();
        folder
    }

    fn order(folder: &tempfile::TempDir, wanted: &[&str]) -> Result<Vec<String>, BuildError> {
        let optional = wanted.iter().filter_map(|name| name.strip_suffix('?'));
        let required = wanted.iter().copied().filter(|name| !name.ends_with('?'));
        let modules = ModuleFolder::open(folder.path())?.resolve(required, optional)?;
        Ok(modules
            .iter()
            .map(|module| module.line().trim_end().to_owned())
            .collect())
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
        let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&std::fs::read(&file).unwrap()).unwrap();
        let packed = packed.finish().unwrap();
        std::fs::remove_file(&file).unwrap();
        let content = |bytes: &[u8]| {
            std::fs::write(file.with_extension("ko.gz"), bytes).unwrap();
            let modules = ModuleFolder::open(folder.path()).unwrap();
            modules.resolve(["vsock"], [])
        };
        assert_eq!(content(&packed).unwrap()[0].content, module(""));
        let error = content(&packed[..packed.len() - 9]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("vsock.ko.gz: it is damaged"), "{text}");
        assert!(error.hint().contains("--reinstall"), "{}", error.hint());
    }

    /// As Linux 6.1 has them, whose erofs cannot mount anything without.
    const CRC32C: [(&str, &str); 6] = [
        ("fs/erofs.ko", "libcrc32c"),
        ("fs/ext4.ko", "crc16 softdep=pre: crypto-crc32c post: late"),
        ("lib/libcrc32c.ko", " softdep=pre: crc32c"),
        ("lib/crc16.ko", ""),
        (
            "crypto/crc32c_generic.ko",
            " alias=crypto-crc32c;alias=crc32c",
        ),
        (
            "arch/crypto/crc32c-intel.ko",
            " alias=crc32c;alias=crypto-crc32c",
        ),
    ];
    const BOTH: [&str; 2] = ["crc32c_generic optional", "crc32c_intel optional"];

    #[test]
    fn what_a_module_wants_before_it_comes_first_by_its_alias() {
        let folder = folder(&CRC32C, "");
        let listed = "# Aliases\nalias crc32c crc32c_generic\nalias crypto_crc32c crc32c_generic\n\
                      alias crypto-crc32c crc32c_intel\nalias crc32c crc32c-intel\n";
        for has_list in [false, true] {
            if has_list {
                std::fs::write(folder.path().join("modules.alias"), listed).unwrap();
            }
            let erofs = order(&folder, &["erofs"]).unwrap();
            assert_eq!(erofs, [&BOTH[..], &["libcrc32c", "erofs"]].concat());
            let ext4 = order(&folder, &["ext4"]).unwrap();
            assert_eq!(ext4, [&BOTH[..], &["crc16", "ext4"]].concat());
        }
    }

    #[test]
    fn what_is_wanted_before_may_be_built_in_or_not_be_there() {
        let folder = folder(&CRC32C[..4], "kernel/crypto/crypto-crc32c.ko\n");
        let order = order(&folder, &["ext4", "erofs"]).unwrap();
        assert_eq!(order, ["crc16", "ext4", "libcrc32c", "erofs"]);
    }

    #[test]
    fn what_a_machine_need_not_have_is_optional_unless_something_needs_it() {
        let folder = folder(
            &[
                ("atkbd.ko", "libps2,serio"),
                ("libps2.ko", "serio"),
                ("serio.ko", ""),
                ("mouse.ko", "libps2"),
                ("one.ko", " softdep=pre: other"),
                ("other.ko", " softdep=pre: one"),
            ],
            "kernel/drivers/i8042.ko\n",
        );
        let optional = order(&folder, &["i8042?", "atkbd?", "absent?"]).unwrap();
        assert_eq!(
            optional,
            ["serio optional", "libps2 optional", "atkbd optional"]
        );
        // What two need is as much wanted as the one that is wanted more.
        let needed = order(&folder, &["mouse", "atkbd?"]).unwrap();
        assert_eq!(needed, ["serio", "libps2", "mouse", "atkbd optional"]);
        let circle = order(&folder, &["one"]).unwrap();
        assert_eq!(circle, ["other optional", "one"]);
    }
}
