# A nixpkgs as small as mkGuest takes it, of files of this machine. `parts` is a folder that the
# tests fill (src/parts.rs): busybox, bash, tools/NAME/{bin,lib}, kernel, agent, agent-dev.
{
  parts,
  system ? builtins.currentSystem,
}:
let
  part =
    path: name:
    builtins.path {
      path = parts + path;
      inherit name;
    };
  bash = part "/bash" "bash";

  runCommand =
    name: env: buildCommand:
    let
      drv = derivation (
        removeAttrs env [ "passthru" ]
        // {
          inherit name system buildCommand;
          builder = bash;
          args = [
            "-e"
            "-c"
            ''eval "$buildCommand"''
          ];
        }
      );
    in
    drv // (env.passthru or { });

  writeText =
    name: text:
    derivation {
      inherit name system text;
      passAsFile = [ "text" ];
      builder = bash;
      args = [
        "-c"
        ''${bb} cp "$textPath" "$out"''
      ];
    };

  # Debian's takes the store path's name for an applet's: it is called by another.
  pkgsStatic.busybox = runCommand "busybox" { busybox = part "/busybox" "busybox"; } ''
    (exec -a busybox $busybox mkdir -p $out/bin)
    (exec -a busybox $busybox cp $busybox $out/bin/busybox)
    (exec -a busybox $busybox chmod 755 $out/bin/busybox)
  '';
  bb = "${pkgsStatic.busybox}/bin/busybox";

  # Programs with their loader and libraries.
  tools =
    name:
    let
      files = part "/tools/${name}" name;
    in
    runCommand name { } ''
      ${bb} mkdir -p $out/bin
      for program in ${files}/bin/*; do
        printf '#!%s\nexec %s/lib/ld-linux-x86-64.so.2 --library-path %s/lib %s "$@"\n' \
          ${bash} ${files} ${files} "$program" >$out/bin/''${program##*/}
        ${bb} chmod 755 $out/bin/''${program##*/}
      done
    '';

  # A program of a text.
  writeShellScript =
    name: text:
    runCommand name { } ''
      ${bb} cp ${writeText name "#!${bash}\n${text}\n"} $out
      ${bb} chmod 755 $out
    '';
  # The same in a package.
  writeShellScriptBin =
    name: text:
    runCommand name { passthru.meta.mainProgram = name; } ''
      ${bb} mkdir -p $out/bin
      ${bb} cp ${writeShellScript name text} $out/bin/${name}
    '';

  # Only in evaluation: Rust cannot be had here, and what it would build is there already.
  built =
    pname:
    runCommand pname { passthru.meta.mainProgram = pname; } ''
      ${bb} mkdir -p $out/bin
      ${bb} cp ${
        part (if pname == "mvm-guest-agent-dev" then "/agent-dev/bin/mvm-guest-agent" else "/agent/bin/mvm-guest-agent") "mvm-guest-agent"
      } $out/bin/mvm-guest-agent
    '';
in
{
  # As nixpkgs has it since 25.11, where aliases are not allowed.
  system = throw "pkgs.system is an alias of pkgs.stdenv.hostPlatform.system";
  stdenv.hostPlatform = { inherit system; };
  inherit
    runCommand
    writeText
    writeShellScript
    writeShellScriptBin
    pkgsStatic
    ;
  lib = import ./lib.nix;
  e2fsprogs = tools "e2fsprogs";
  erofs-utils = tools "erofs-utils";
  cpio = tools "cpio";
  gzip = tools "gzip";
  zstd = tools "zstd";

  # For documents and the template, which name programs that a guest could have.
  curl = writeShellScriptBin "curl" "exit 1";
  darkhttpd = writeShellScriptBin "darkhttpd" "exit 1";
  python3 = writeShellScriptBin "python3" "exit 1";
  postgresql = writeShellScriptBin "pg_isready" "exit 1";

  # As nixpkgs has it, without what nobody here reads.
  closureInfo =
    { rootPaths }:
    runCommand "closure-info"
      {
        exportReferencesGraph = builtins.concatLists (
          builtins.genList (at: [
            "closure-${toString at}"
            (builtins.elemAt rootPaths at)
          ]) (builtins.length rootPaths)
        );
      }
      ''
        ${bb} mkdir -p $out
        for graph in closure-*; do
          while read -r path; do
            echo "$path"
            read -r _deriver
            read -r references
            while [ "$references" -gt 0 ]; do
              read -r _
              references=$((references - 1))
            done
          done <$graph
        done | ${bb} sort -u >$out/store-paths
      '';

  linux = {
    type = "derivation";
    name = "linux";
    outPath = part "/kernel" "linux";
  };

  glibc.static = runCommand "glibc-static" { } "echo >$out";

  # Takes no argument that nixpkgs' does not, as far as it is known here.
  rustPlatform.buildRustPackage =
    {
      pname,
      version,
      src,
      cargoLock,
      cargoBuildFlags,
      buildFeatures,
      doCheck,
      meta,
      buildInputs ? [ ],
      env ? { },
      buildType ? "release",
    }:
    assert builtins.pathExists cargoLock.lockFile;
    built pname
    // {
      inherit
        pname
        version
        src
        cargoBuildFlags
        buildFeatures
        env
        buildType
        meta
        ;
    };
}
