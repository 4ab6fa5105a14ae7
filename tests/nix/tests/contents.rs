//! What comes into an image, and what is refused.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Files, Nix, read};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What would fail in the guest alone fails the build, and says what to do.
#[test]
fn what_no_guest_could_run_fails_the_build() {
    let Some(nix) = Nix::find() else { return };
    let long = r#"builtins.concatStringsSep "" (builtins.genList (_: "xxxxxxxx") 8192)"#;
    // With the quotes and the names of the two variables, just over the 128 KiB.
    let env = format!(
        r#"mkGuest {{ name = "x"; services.app = {{ command = "true"; env = {{ A = {long}; B = {long}; }}; }}; }}"#
    );
    let dynamic = r#"mkGuestOf {
        agent = pkgs.runCommand "agent" { program = builtins.path { path = /bin/true; name = "true"; }; } ''
          ${pkgs.pkgsStatic.busybox}/bin/busybox mkdir -p $out/bin
          ${pkgs.pkgsStatic.busybox}/bin/busybox cp $program $out/bin/mvm-guest-agent
        '';
      } { name = "x"; }"#;
    let other_agent = r#"mkGuest { name = "x"; packages = [ agentDev ]; }"#;
    let no_zstd = r#"mkGuestOf { pkgs = removeAttrs pkgs [ "zstd" ]; }
        { name = "x"; formats = [ "erofs" ]; }"#;
    let no_list = r#"mkGuest { name = "x"; kernel = pkgs.runCommand "kernel" { } ''
          ${pkgs.pkgsStatic.busybox}/bin/busybox mkdir -p $out/lib/modules/6.1.0/kernel
          echo >$out/bzImage
        ''; }"#;
    for (guest, expected) in [
        (no_list, "6.1.0/modules.dep, which depmod makes"),
        (
            &*env,
            "services.app: its command and env are 131101 bytes, and no more than",
        ),
        (
            dynamic,
            "cannot be run: for a guest it has to be linked statically",
        ),
        (other_agent, "is another agent than the guest's"),
        (
            no_zstd,
            "erofs.ko.zst takes zstd to unpack, which this package set does not have",
        ),
    ] {
        let said = nix.try_build(guest, &[]).unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
}

/// An agent whose loader only this machine has could be run in a build without a sandbox, and fails in
/// the guest.
#[test]
fn a_program_tells_its_loader() {
    let Some(nix) = Nix::find() else { return };
    let script = read("nix/build.sh");
    let begin = script.find("loader_of() {").unwrap();
    let end = begin + script[begin..].find("\n}\n").unwrap() + 3;
    let loader_of = |program: &Path| {
        let told = Command::new("bash")
            .args(["-euo", "pipefail", "-c"])
            .arg(format!("{}loader_of \"$program\"", &script[begin..end]))
            .env("bb", &nix.parts.busybox)
            .env("program", program)
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stdout).unwrap()
    };
    let own = std::env::current_exe().unwrap();
    assert_eq!(loader_of(&own), "/lib64/ld-linux-x86-64.so.2");
    assert_eq!(loader_of(&nix.parts.agent), "");
}

/// The kernel of a package, and its modules, which depend on each other in all ways that there are.
const KERNEL: &str = r#"pkgs.runCommand "kernel" { } ''
    bb=${pkgs.pkgsStatic.busybox}/bin/busybox
    modules=$out/lib/modules/6.1.0
    $bb mkdir -p $modules
    echo >$out/bzImage
    for module in virtio_pci vsock vmw_vsock_virtio_transport virtio_blk overlay ext4 erofs \
      libcrc32c crc16 crc32c_generic crc32c-intel atkbd libps2; do
      echo $module >$modules/$module.ko
      case $module in
        vmw*) echo "$module.ko: vsock.ko" ;;
        ext4) echo "$module.ko: crc16.ko" ;;
        erofs) echo "$module.ko: libcrc32c.ko" ;;
        atkbd) echo "$module.ko: libps2.ko" ;;
        *) echo "$module.ko:" ;;
      esac
    done >$modules/modules.dep
    echo kernel/drivers/input/serio/i8042.ko >$modules/modules.builtin
    printf '%s\n' '# Soft dependencies' 'softdep ext4 pre: crypto-crc32c post: vsock' \
      'softdep libcrc32c pre: crc32c absent' 'softdep crc32c-intel pre: libcrc32c' \
      >$modules/modules.softdep
    printf 'alias %s\n' 'crc32c crc32c_generic' 'crypto-crc32c crc32c_generic' \
      'crypto-crc32c crc32c-intel' 'crc32c crc32c-intel' 'crc32 atkbd' >$modules/modules.alias
  ''"#;

/// Linux 6.1 mounts neither erofs nor ext4 without an algorithm that no symbol leads to.
#[test]
fn modules_come_with_what_they_want_before_them() {
    let Some(nix) = Nix::find() else { return };
    let image = nix.build(&format!(
        r#"mkGuest {{ name = "x"; formats = [ "initrd" "erofs" "ext4" ]; kernel = {KERNEL}; }}"#
    ));
    let every = [
        "virtio_pci",
        "vsock",
        "vmw_vsock_virtio_transport",
        "libps2 optional",
        "atkbd optional",
    ];
    let (generic, intel) = ("crc32c_generic optional", "crc32c_intel optional");
    let erofs = [
        "virtio_blk",
        generic,
        intel,
        "libcrc32c",
        "erofs",
        "overlay",
    ];
    // Intel's wants libcrc32c before it, which does not begin a circle.
    let ext4 = [
        "virtio_blk",
        generic,
        "libcrc32c optional",
        intel,
        "crc16",
        "ext4",
        "overlay",
    ];
    for (initrd, more) in [
        ("initrd", &[][..]),
        ("initrd-erofs", &erofs),
        ("initrd-ext4", &ext4),
    ] {
        let files = Files::of_initrd(&image.join(initrd));
        let listed = files.text("etc/mvm-init/modules");
        let lines: Vec<_> = listed.lines().collect();
        assert_eq!(lines, [&every[..], more].concat(), "{initrd}");
        for line in lines {
            let name = line.split(' ').next().unwrap();
            assert!(
                files.0.contains_key(&format!("lib/modules/{name}.ko")),
                "{name}"
            );
        }
    }
}

/// Programs of packages do not take the place of what init and its scripts run.
#[test]
fn packages_do_not_replace_what_init_runs() {
    let Some(nix) = Nix::find() else { return };
    // The guest's own agent is no other; and busybox as it is built to know no /usr.
    let image = nix.build(
        r#"mkGuestOf {
          pkgs = pkgs // {
            pkgsStatic.busybox = pkgs.writeShellScriptBin "busybox" ''
              busybox=${pkgs.pkgsStatic.busybox}/bin/busybox
              [ "$1" != --list-full ] || exec $busybox sh -c "$busybox --list-full | $busybox sed s,^usr/,,"
              exec $busybox "$@"
            '';
          };
        } {
          name = "x";
          packages = [ agent ] ++ map (name: pkgs.writeShellScriptBin name "exit 1") [ "poweroff" "init" "sh" ];
        }"#,
    );
    let files = Files::of_initrd(&image.join("initrd"));
    for (link, to) in [
        ("init", "/bin/busybox"),
        ("bin/sh", "/bin/busybox"),
        ("usr/bin/env", "/bin/busybox"),
    ] {
        assert_eq!(files.text(link), to, "{link}");
    }
    assert!(
        files
            .text("usr/bin/poweroff")
            .ends_with("-poweroff/bin/poweroff")
    );
    assert!(
        !files.0.contains_key("sbin/poweroff"),
        "it would be found before the package's"
    );
    let agent = &files.0["usr/bin/mvm-guest-agent"].content;
    assert!(*agent == fs::read(&nix.parts.agent).unwrap());
    for line in files
        .text("etc/inittab")
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let program = line.rsplit(':').next().unwrap().split(' ').next().unwrap();
        assert!(
            program == "/bin/busybox"
                || program == "/usr/bin/mvm-guest-agent"
                || program.starts_with("/etc/mvm-init/"),
            "a package may have another {program}"
        );
    }
}
