//! The images of a guest, read: what is in them, and that it is the same each time.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Entry, Files, Nix, sha256};
use mvm_vmm::build::{Build, Service, build};
use mvm_vmm::image::Image;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const STORY: &str = "mkGuest story";

/// The files that the agent reads, byte for byte.
const AGENT_FILES: [(&str, &str); 4] = [
    (
        "etc/mvm/agent.json",
        r#"{
  "listen": ["vsock:52"],
  "allow_vsock": false,
  "busy_signals": ["cpu","inhibit"],
  "busy_threshold": 0.5,
  "exec": true,
  "expose": [],
  "freeze": "workload",
  "freeze_exempt": [],
  "max_concurrent_checks": 32,
  "max_connections": 512,
  "sample_interval_secs": 1
}
"#,
    ),
    (
        "etc/mvm/integrations.d/web.json",
        r#"{
  "name": "web",
  "checkpoint_timeout_secs": 30,
  "critical": true,
  "failure_threshold": 1,
  "health_cmd": "wget -q -O - 'http://127.0.0.1:8080/' | grep -q \"It works\" && [ '$HOME' != \"$HOME\" ]",
  "health_interval_secs": 0.5,
  "health_timeout_secs": 5,
  "personalize_timeout_secs": 30,
  "restore_timeout_secs": 30,
  "startup_grace_secs": 60,
  "success_threshold": 1
}
"#,
    ),
    (
        "etc/mvm/probes.d/text-of-probe.json",
        r#"{
  "name": "text-of-probe",
  "command": "printf %s 'it'\\''s \"quoted\" $HOME `id` \\ ünï 🦀'",
  "interval_secs": 86400,
  "output": "text",
  "timeout_secs": 10
}
"#,
    ),
    (
        "etc/mvm/probes.d/as-user.json",
        r#"{
  "name": "as-user",
  "command": "id -un",
  "interval_secs": 86399.75,
  "output": "text",
  "timeout_secs": 10,
  "user": "other"
}
"#,
    ),
];

/// Names and what is there, without what formats differ in: modules, and device nodes; and without
/// the sticky bit, which debugfs does not take out of an image.
fn comparable(files: &Files) -> BTreeMap<String, (u32, Vec<u8>)> {
    let of_guest = |path: &str| !path.starts_with("lib/modules") && !path.starts_with("dev");
    let entries = files
        .0
        .iter()
        .filter(|(path, _)| of_guest(path) && *path != "etc/mvm-init/modules");
    entries
        .map(|(path, entry)| (path.clone(), (entry.mode & !0o1000, entry.content.clone())))
        .collect()
}

#[test]
fn the_images_have_the_same_files_with_the_same_bytes() {
    let Some(nix) = Nix::find() else { return };
    let image = nix.build(STORY);
    let initrd = Files::of_initrd(&image.join("initrd"));
    let erofs = Files::of_erofs(&image.join("rootfs.erofs"));
    let ext4 = Files::of_ext4(&image.join("rootfs.ext4"));

    for (path, expected) in AGENT_FILES {
        assert_eq!(initrd.text(path), expected, "{path}");
    }
    let all = comparable(&initrd);
    for (format, files) in [("erofs", &erofs), ("ext4", &ext4)] {
        let other = comparable(files);
        let differ: Vec<_> = all
            .iter()
            .filter(|(path, entry)| other.get(*path) != Some(*entry))
            .map(|(path, _)| path)
            .chain(other.keys().filter(|path| !all.contains_key(*path)))
            .collect();
        assert!(
            differ.is_empty(),
            "initrd and {format} differ in {differ:?}"
        );
    }
    for (format, files) in [("initrd", &initrd), ("erofs", &erofs), ("ext4", &ext4)] {
        for (path, entry) in &files.0 {
            assert_eq!(entry.owner, (0, 0), "{format}: {path}");
            // Debugfs does not take the times of links out of an image.
            let is_link = entry.mode & 0o170_000 == 0o120_000;
            assert!(
                entry.mtime == 1 || (format == "ext4" && is_link),
                "{format}: {path}"
            );
        }
    }
    let mode = |path: &str| initrd.0[path].mode;
    assert_eq!(
        (mode("tmp"), mode("root"), mode("etc")),
        (0o041_777, 0o040_700, 0o040_755)
    );
    assert_eq!(
        (mode("dev/console"), mode("dev/null")),
        (0o020_600, 0o020_666)
    );

    // What the guest needs of the store, and nothing else.
    let store: Vec<_> = initrd
        .paths()
        .into_iter()
        .filter_map(|path| path.strip_prefix("nix/store/")?.split('/').next())
        .filter_map(|name| name.split_once('-').map(|(_, name)| name.to_owned()))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(
        store,
        [
            "bash", "busybox", "greet", "logger", "poweroff", "restore", "tool"
        ]
    );
    // A program of a package takes the place of busybox's.
    assert!(
        initrd
            .text("usr/bin/logger")
            .ends_with("-logger/bin/logger")
    );
    assert!(initrd.text("usr/bin/greet").ends_with("-greet/bin/greet"));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let Some(nix) = Nix::find() else { return };
    nix.build_again(STORY).unwrap();
    // And another derivation with the same guest in it.
    let all = nix.build(STORY);
    for format in ["erofs", "ext4"] {
        let alone = nix.build(&format!(
            r#"mkGuest (story // {{ formats = [ "{format}" ]; }})"#
        ));
        for file in [format!("rootfs.{format}"), format!("initrd-{format}")] {
            assert_eq!(
                sha256(&alone.join(&file)),
                sha256(&all.join(&file)),
                "{file}"
            );
        }
        assert!(!alone.join("initrd").exists());
    }
}

#[test]
fn the_manifest_names_the_first_format() {
    let Some(nix) = Nix::find() else { return };
    let image = Image::open(&nix.build(STORY)).unwrap().manifest;
    assert_eq!(
        (image.initrd.as_deref(), &image.rootfs),
        (Some("initrd"), &None)
    );
    assert_eq!((&*image.agent.profile, image.agent.port), ("prod", 52));
    let folder = nix.build(
        r#"mkGuestOf { inherit agentDev; }
          {
            name = "other";
            formats = [ "erofs" ];
            dev = true;
            agent.port = 5252;
            kernelModules = [ "virtio-net" ];
            # As nixpkgs' kernels are: the uncompressed one in an output of its own.
            kernel = pkgs.linux // {
              dev = pkgs.runCommand "dev" { } ''
                ${pkgs.pkgsStatic.busybox}/bin/busybox mkdir $out
                printf '\177ELF and so on' >$out/vmlinux
              '';
            };
          }"#,
    );
    let other = Image::open(&folder).unwrap();
    let manifest = &other.manifest;
    assert_eq!(manifest.initrd.as_deref(), Some("initrd-erofs"));
    assert_eq!(manifest.kernel, "vmlinux");
    let stage1 = Files::of_initrd(&folder.join("initrd-erofs"));
    let modules = stage1.text("etc/mvm-init/modules");
    for module in ["vsock", "virtio_blk", "erofs", "overlay", "virtio_net"] {
        assert!(modules.lines().any(|line| line == module), "{modules}");
        let file = &stage1.0[&format!("lib/modules/{module}.ko")];
        // Packed or not in the kernel's package.
        assert!(file.content.starts_with(b"\x7fELF"), "{module}");
    }
    assert_eq!(other.rootfs(), Some(folder.join("rootfs.erofs")));
    assert_eq!(manifest.cmdline, "init_on_free=1");
    assert_eq!(
        (&*manifest.agent.version, &*manifest.agent.profile),
        (&*image.agent.version, "dev")
    );
    assert_eq!(manifest.agent.port, 5252);
    let files = Files::of_erofs(&folder.join("rootfs.erofs"));
    let agent = &files.0["usr/bin/mvm-guest-agent"].content;
    assert!(*agent == fs::read(&nix.parts.dev_agent).unwrap());
    assert!(
        files
            .text("etc/mvm/agent.json")
            .contains(r#""listen": ["vsock:5252"]"#)
    );
}

/// The drop-ins are read by the agent that will read them in the guest: what mkGuest does not know
/// to be wrong fails the build.
#[test]
fn the_agent_checks_its_files_in_the_build() {
    let Some(nix) = Nix::find() else { return };
    let long = r#"builtins.concatStringsSep "" (builtins.genList (_: "xxxxxxxx") 8200)"#;
    let check = format!(r#"mkGuest {{ name = "x"; probes.long.command = {long}; }}"#);
    let said = nix.try_build(&check, &[]).unwrap_err();
    assert!(said.contains("probes.d/long.json"), "{said}");
    assert!(said.contains("larger than 65536 bytes"), "{said}");
    let modules = r#"mkGuest { name = "x"; kernelModules = [ "no_such_module" ]; }"#;
    let said = nix.try_build(modules, &[]).unwrap_err();
    assert!(said.contains("no module no_such_module"), "{said}");
}

/// `mvmctl image build` and mkGuest make the same guest: the same paths, modes and contents.
#[test]
fn mvmctl_builds_the_same_guest() {
    let Some(nix) = Nix::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path().join("etc");
    fs::create_dir_all(etc.join("integrations.d")).unwrap();
    fs::create_dir_all(etc.join("probes.d")).unwrap();
    let image = nix.build(
        r#"mkGuest {
          name = "same";
          services.web.command = "exec httpd -f -h /www";
          healthChecks.web.healthCmd = "true";
          networkPayload = true;
        }"#,
    );
    let nixs = Files::of_initrd(&image.join("initrd"));
    for file in ["agent.json", "integrations.d/web.json"] {
        fs::write(etc.join(file), nixs.text(&format!("etc/mvm/{file}"))).unwrap();
    }
    let out = folder.path().join("image");
    build(&Build {
        dev: false,
        out: out.clone(),
        agent: Some(nix.parts.agent.clone()),
        kernel: Some(nix.parts.kernel.clone()),
        modules: Some(nix.parts.modules.clone()),
        more_modules: Vec::new(),
        busybox: Some(nix.parts.busybox.clone()),
        etc: Some(etc),
        services: vec![Service::parse("web=exec httpd -f -h /www").unwrap()],
        add: Vec::new(),
        network_payload: true,
        hostname: "same".into(),
    })
    .unwrap();
    let ours = Files::of_initrd(&out.join("initrd"));
    assert_eq!(nixs.paths(), ours.paths());
    let differ: Vec<(&String, &Entry)> = nixs
        .0
        .iter()
        // In the order of another resolver.
        .filter(|(path, _)| *path != "etc/mvm-init/modules")
        .filter(|(path, entry)| ours.0[*path] != **entry)
        .collect();
    assert!(
        differ.is_empty(),
        "{:?}",
        differ
            .iter()
            .map(|(path, e)| (path, e.mode))
            .collect::<Vec<_>>()
    );
    let manifest = |folder: &Path| fs::read_to_string(folder.join("manifest.json")).unwrap();
    assert_eq!(manifest(&image), manifest(&out));
}

/// The goal of the smallest guest: 4 MB without kernel modules.
#[test]
fn the_smallest_guest_is_small() {
    let Some(nix) = Nix::find() else { return };
    let image = nix.build(r#"mkGuest { name = "smallest"; }"#);
    let files = Files::of_initrd(&image.join("initrd"));
    let without_modules: usize = files
        .0
        .iter()
        .filter(|(path, _)| !path.starts_with("lib/modules"))
        .map(|(_, entry)| entry.content.len())
        .sum();
    eprintln!(
        "initrd: {} bytes, unpacked without modules {without_modules} bytes",
        fs::metadata(image.join("initrd")).unwrap().len()
    );
    assert!(without_modules < 4_000_000, "{without_modules}");
}
