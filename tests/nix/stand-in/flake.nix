{
  outputs = _: {
    lib = import ./lib.nix;
    legacyPackages = builtins.listToAttrs (
      map
        (system: {
          name = system;
          value = import ./pkgs.nix {
            inherit system;
            parts = ./parts;
          };
        })
        [
          "x86_64-linux"
          "aarch64-linux"
        ]
    );
  };
}
