{
  description = "mvm guest agent: health, load and probes of microVMs over vsock";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach =
        make:
        builtins.listToAttrs (
          map (system: {
            name = system;
            value = make system nixpkgs.legacyPackages.${system};
          }) systems
        );
      packages = import ./nix/package.nix;
      mkGuest =
        pkgs:
        let
          inherit (packages pkgs) mvm-guest-agent mvm-guest-agent-dev;
        in
        import ./nix/mk-guest.nix {
          inherit pkgs;
          agent = mvm-guest-agent;
          agentDev = mvm-guest-agent-dev;
          kernel = pkgs.linux;
        };
    in
    {
      lib = forEach (_: pkgs: { mkGuest = mkGuest pkgs; });

      packages = forEach (_: pkgs: packages pkgs);

      # Imported rather than named: Nix 2.8 takes a path for no module.
      nixosModules.mvm-guest-agent = {
        _file = ./nix/module.nix;
        imports = [ ./nix/module.nix ];
      };

      overlays.default = final: _: packages final // { mkGuest = mkGuest final; };

      templates.default = {
        path = ./nix/template;
        description = "A microVM with a web server, its health check and a probe";
      };

      checks = forEach (
        system: pkgs: {
          smallest-guest = mkGuest pkgs { name = "smallest"; };
          inherit (packages pkgs) mvm-guest-agent mvmctl;
        }
      );
    };
}
