# NixOS: the agent as a service, with its checks and probes. The options are those of mkGuest, from
# the same table, and the files are written by the same renderer.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (builtins) mapAttrs removeAttrs;
  inherit (lib) mkIf mkOption types;
  check = import ./check.nix;
  fields = import ./fields.nix;
  render = import ./render.nix;
  fieldTypes = import ./types.nix;
  cfg = config.services.mvm-guest-agent;

  option =
    name: field:
    mkOption (
      {
        type = fieldTypes.${field.type}.option types;
        description = "${name}: ${field.what}.";
      }
      // (if field ? default then { inherit (field) default; } else { })
    );
  optionsOf = table: mapAttrs option table;
  entries =
    table: description:
    mkOption {
      inherit description;
      default = { };
      type = types.attrsOf (types.submodule { options = optionsOf table; });
    };

  problems = check.dropIns { inherit (cfg) healthChecks probes; };
  settings = cfg.settings // {
    inherit (cfg) port;
  };
  # As packaging/systemd/journald.json. Who has one of this name has it in its place.
  journald = mapAttrs (_: field: field.default) fields.healthCheck // {
    restoreCmd = "exec /bin/sh ${../packaging/systemd/journald-machine-id}";
    critical = false;
  };
  etc = render.etc {
    inherit pkgs settings;
    name = "mvm-guest-agent";
    agent = cfg.package;
    healthChecks = { inherit journald; } // cfg.healthChecks;
    inherit (cfg) probes;
  };
in
{
  options.services.mvm-guest-agent = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this guest's host can ask about its health, load and probes over vsock.";
    };
    package = mkOption {
      type = types.package;
      default = (import ./package.nix pkgs).mvm-guest-agent;
      defaultText = "the agent of the repository that this module is from";
      description = "The agent. Its dev build serves exec, put and get too.";
    };
    port = option "port" fields.agent.port;
    healthChecks = entries fields.healthCheck "What the host asks of a service, by name.";
    probes = entries fields.probe "Figures that the host wants to see, by name.";
    settings = mkOption {
      default = { };
      description = "The agent's other settings.";
      type = types.submodule { options = optionsOf (removeAttrs fields.agent [ "port" ]); };
    };
  };

  config = mkIf cfg.enable {
    assertions = map (problem: {
      assertion = false;
      message = "services.mvm-guest-agent.${problem}";
    }) problems;

    boot.kernelModules = [ "vmw_vsock_virtio_transport" ];

    environment.etc = {
      "mvm/agent.json".source = "${etc}/agent.json";
      "mvm/integrations.d".source = "${etc}/integrations.d";
      "mvm/probes.d".source = "${etc}/probes.d";
    };

    systemd.services.mvm-guest-agent = {
      description = "mvm guest agent";
      wantedBy = [ "multi-user.target" ];
      after = [ "systemd-modules-load.service" ];
      # Drop-ins are read anew on SIGHUP; settings at the start alone.
      reloadTriggers = [ etc ];
      restartTriggers = [ (render.settingsFile settings) ];
      # Checks find what an administrator would.
      path = [
        "/run/wrappers"
        "/run/current-system/sw"
      ];
      unitConfig.StartLimitIntervalSec = 0;
      # As in packaging/mvm-guest-agent.service, which says why; a test compares the two. Checks run
      # as children of the agent and may do what the image's builder wrote, so that nothing is here
      # that they would inherit: no file system, capability or system call is taken away.
      serviceConfig = {
        Type = "notify";
        ExecStart = "${cfg.package}/bin/mvm-guest-agent";
        ExecReload = "/bin/sh -c 'kill -HUP $MAINPID'";
        Restart = "always";
        RestartSec = 1;
        KillMode = "mixed";
        Slice = "mvm.slice";
        RuntimeDirectory = "mvm";
        RuntimeDirectoryPreserve = "yes";
        Delegate = "yes";
        OOMScoreAdjust = -997;
      };
    };
  };
}
