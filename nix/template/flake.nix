{
  description = "A microVM with a web server";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Where the repository of the agent is: git+file:///…, or git+https://… of its server.
    mvm.url = "git+file:///srv/mvm";
    mvm.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, mvm, ... }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      inherit (mvm.lib.${system}) mkGuest;
    in
    {
      # nix build && mvmctl vm start web --image ./result
      packages.${system}.default = mkGuest {
        name = "web";
        services.web = {
          command = "exec ${pkgs.darkhttpd}/bin/darkhttpd /var/lib/web --port 8080";
          preStart = "echo 'It works' >/var/lib/web/index.html";
          user = "web";
        };
        users.web.uid = 1000;
        healthChecks.web = {
          healthCmd = "wget -q -O /dev/null http://127.0.0.1:8080/";
          healthIntervalSecs = 5;
          startupGraceSecs = 30;
        };
        probes.memory = {
          command = "free -m | awk '/^Mem/ { print $7 }'";
          intervalSecs = 60;
        };
      };
    };
}
