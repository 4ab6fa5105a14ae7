# The agent, its dev build and mvmctl, from this repository, with nixpkgs' Rust: it has to be at least
# the `rust-version` of Cargo.toml.
pkgs:
let
  inherit (pkgs) lib;
  workspace = (builtins.fromTOML (builtins.readFile ../Cargo.toml)).workspace.package;

  # What cargo reads: the workspace with all its members, and files that crates include. Listed, so
  # that a change elsewhere builds nothing anew, and no folder that somebody builds in is copied. A
  # test has cargo read it.
  parts = [
    ".cargo"
    "Cargo.lock"
    "Cargo.toml"
    "benches"
    "crates"
    "packaging"
    "tests"
    "xtask"
  ];
  # By its place below the root: `tests/nix` is a member, whatever else is called `nix`.
  root = toString ../.;
  isPart = path: dirOf path != root || builtins.elem (baseNameOf path) parts;

  build =
    {
      pname,
      program,
      description,
      features ? [ ],
      extra ? { },
    }:
    pkgs.rustPlatform.buildRustPackage (
      {
        inherit pname;
        inherit (workspace) version;
        src = builtins.path {
          path = ../.;
          name = "mvm-source";
          filter = path: _: isPart path;
        };
        cargoLock.lockFile = ../Cargo.lock;
        cargoBuildFlags = [
          "--package"
          program
        ];
        buildFeatures = features;
        # They boot microVMs: `cargo xtask test` runs them.
        doCheck = false;
        meta = {
          inherit description;
          mainProgram = program;
          license = lib.licenses.asl20;
          platforms = lib.platforms.linux;
        };
      }
      // extra
    );

  # Without libraries, since the guest need not have any.
  agent =
    pname: description: features:
    build {
      inherit pname description features;
      program = "mvm-guest-agent";
      extra = {
        buildInputs = [ pkgs.glibc.static ];
        env.RUSTFLAGS = "-C target-feature=+crt-static";
      };
    };
in
{
  mvm-guest-agent = agent "mvm-guest-agent" "Agent in a microVM: health, load and probes over vsock" [ ];
  mvm-guest-agent-dev =
    agent "mvm-guest-agent-dev" "The same with exec, put and get, for development"
      [ "dev" ];
  mvmctl = build {
    pname = "mvmctl";
    program = "mvmctl";
    description = "Starts microVMs and asks their agents";
    extra.buildType = "dist-host";
  };
}
