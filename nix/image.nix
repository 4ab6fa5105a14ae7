# The guest's files, and the images made of them: build.sh puts them together.
#
# The layout is that of `mvmctl image build` (crates/mvm-vmm/src/build/guest.rs), from the same
# scripts (packaging/guest); a test compares the two.
pkgs:
{ guest, agent }:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    ;
  render = import ./render.nix;
  text = import ./text.nix;
  scripts = ../packaging/guest;
  bb = "${pkgs.pkgsStatic.busybox}/bin/busybox";
  lines = all: concatStringsSep "" (map (line: "${line}\n") all);
  each = set: make: map (name: make name set.${name}) (attrNames set);

  # Variables go through files as well: into `sh -c` with the command.
  exports =
    env:
    lines (
      each env (
        name: value:
        "export ${name}=${
          text.shellWord (if builtins.isInt value then toString value else "${value}")
        }"
      )
    );

  init = "/etc/mvm-init";
  services = each guest.services (
    name: service:
    let
      folder = "${init}/services/${name}";
      env = exports service.env;
      before = render.command service.preStart;
    in
    {
      "${folder}/run" = "${env}${render.command service.command}\n";
      "${folder}/user" = "${service.user}\n";
    }
    // (if before == "" then { } else { "${folder}/pre-start" = "${env}${before}\n"; })
  );

  # Paths and contents, but for /etc/mvm.
  files = builtins.foldl' (all: more: all // more) {
    "/etc/hostname" = "${guest.hostname}\n";
    "/etc/hosts" = "127.0.0.1 localhost ${guest.hostname}\n";
    "/etc/passwd" =
      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
      + lines (
        each guest.users (
          name: user: "${name}:x:${toString user.uid}:${toString user.gid}:${name}:${user.home}:/bin/sh"
        )
      );
    "/etc/group" =
      "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
      + lines (each guest.users (name: user: "${name}:x:${toString user.gid}:"));
    "/etc/inittab" = lines (
      [
        "# What init runs: see its scripts."
        "::sysinit:${init}/sysinit"
        "::respawn:${init}/agent"
      ]
      ++ each guest.services (name: _: "::respawn:${init}/service ${name}")
      ++ [
        # A package may have another `poweroff`.
        "::ctrlaltdel:/bin/busybox poweroff"
        "::shutdown:${init}/shutdown"
      ]
    );
    "${init}/folders" = lines (
      each guest.users (
        _: user: "${toString user.uid}:${toString user.gid} 700 ${user.home}"
      )
    );
  } services;

  etcMvm = render.etc {
    inherit pkgs agent;
    inherit (guest) name healthChecks probes;
    settings = guest.agent;
  };

  # All that is written here, as one store path. What it refers to is what the guest needs of the
  # store; it itself is copied to where it belongs.
  written = pkgs.runCommand "${guest.name}-files" { } ''
    ${lines (
      each files (
        path: content:
        "${bb} mkdir -p $out${dirOf path} && ${bb} cp ${pkgs.writeText (baseNameOf path) content} $out${path}"
      )
    )}
    ${bb} mkdir -p $out/etc
    ${bb} cp -r ${etcMvm} $out/etc/mvm
  '';

  # Paths are copied to the store by this.
  packages = map (package: "${package}") guest.packages;

  # nixpkgs calls `pkgs.system` an alias; a small package set need not have all of `stdenv`.
  system = pkgs.stdenv.hostPlatform.system or pkgs.system;

  kernel = guest.kernel;
  # Uncompressed where there is one: Firecracker takes no other on x86.
  kernelFiles =
    (if system == "x86_64-linux" && kernel ? dev then [ "${kernel.dev}/vmlinux" ] else [ ])
    ++ map (name: "${kernel}/${name}") [
      "vmlinux"
      "bzImage"
      "Image"
      "vmlinuz"
    ];
in
pkgs.runCommand "${guest.name}-guest"
  {
    preferLocalBuild = true;
    passthru = { inherit guest; };
  }
  (
    lines (
      each {
        inherit bb written;
        agent = "${agent}";
        busybox = pkgs.pkgsStatic.busybox;
        scripts = builtins.path {
          path = scripts;
          name = "mvm-guest-scripts";
        };
        closure = pkgs.closureInfo { rootPaths = [ written ] ++ packages; };
        # Of the agent what it refers to, which is nothing if it is static; it itself is copied.
        agentClosure = pkgs.closureInfo { rootPaths = [ "${agent}" ]; };
        packages = concatStringsSep " " packages;
        kernelFiles = concatStringsSep " " kernelFiles;
        # Newer nixpkgs have the modules in an output of their own.
        kernelModules = "${kernel.modules or kernel}";
        moreModules = concatStringsSep " " guest.kernelModules;
        optionalModules = concatStringsSep " " guest.optionalModules;
        networkPayload = if guest.networkPayload then "1" else "";
        port = toString guest.agent.port;
        formats = concatStringsSep " " guest.formats;
        cpio = "${pkgs.cpio}/bin/cpio";
        gzip = "${pkgs.gzip}/bin/gzip";
        # For a kernel that has its modules packed by it.
        zstd = if pkgs ? zstd then "${pkgs.zstd.bin or pkgs.zstd}/bin/zstd" else "";
        mke2fs = if builtins.elem "ext4" guest.formats then "${pkgs.e2fsprogs}/bin/mke2fs" else "";
        debugfs = if builtins.elem "ext4" guest.formats then "${pkgs.e2fsprogs}/bin/debugfs" else "";
        mkfsErofs =
          if builtins.elem "erofs" guest.formats then "${pkgs.erofs-utils}/bin/mkfs.erofs" else "";
      } (name: value: "${name}=${text.shellWord "${value}"}")
    )
    + builtins.readFile ./build.sh
  )
