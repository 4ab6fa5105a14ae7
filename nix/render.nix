# The agent's files, from values with their defaults: for mkGuest and for the NixOS module.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    listToAttrs
    removeAttrs
    toJSON
    ;
  fields = import ./fields.nix;
  types = import ./types.nix;
  text = import ./text.nix;

  # A line for each key, so that a problem's line number says something.
  object =
    pairs:
    let
      json = value: if builtins.isFloat value then text.number value else toJSON value;
      lines = map (pair: "  ${toJSON pair.name}: ${json pair.value}") pairs;
    in
    "{\n${concatStringsSep ",\n" lines}\n}\n";

  # What is null is left out: there the agent has no default to be written down.
  pairs =
    table: value:
    map
      (name: {
        name = text.snakeCase name;
        value = written table.${name}.type value.${name};
      })
      (filter (name: value.${name} != null) (attrNames table));

  written =
    type: value:
    if type == "argvOrNull" then
      map command value
    else if type == "command" || type == "commandOrNull" || type == "script" then
      command value
    else
      value;

  # A derivation is the program that it is, or has as its main one.
  command =
    value:
    if types.isDerivation value && value ? meta.mainProgram then
      "${value}/bin/${value.meta.mainProgram}"
    else
      "${value}";

  folder =
    table: entries:
    listToAttrs (
      map (name: {
        name = "${name}.json";
        value = object (
          [
            {
              name = "name";
              value = name;
            }
          ]
          ++ pairs table entries.${name}
        );
      }) (attrNames entries)
    );
in
rec {
  inherit command;

  # The text of agent.json.
  settingsFile =
    settings:
    let
      listen = {
        name = "listen";
        value = [ "vsock:${toString settings.port}" ];
      };
    in
    object ([ listen ] ++ pairs (removeAttrs fields.agent [ "port" ]) settings);

  # File names and texts of integrations.d and probes.d.
  integrationFiles = folder fields.healthCheck;
  probeFiles = folder fields.probe;

  # The folder /etc/mvm, with which the agent that will read it has found no fault.
  etc =
    {
      pkgs,
      name,
      agent,
      settings,
      healthChecks,
      probes,
    }:
    let
      bb = "${pkgs.pkgsStatic.busybox}/bin/busybox";
      put =
        folder: files:
        concatMap (file: [
          "${bb} cp ${pkgs.writeText file files.${file}} $out/${folder}${file}"
        ]) (attrNames files);
    in
    pkgs.runCommand "${name}-etc-mvm" { } ''
      ${bb} mkdir -p $out/integrations.d $out/probes.d
      ${concatStringsSep "\n" (
        put "" { "agent.json" = settingsFile settings; }
        ++ put "integrations.d/" (integrationFiles healthChecks)
        ++ put "probes.d/" (probeFiles probes)
      )}
      ${agent}/bin/mvm-guest-agent --check-config $out || {
        code=$?
        # Found and not executable, or its loader not found.
        [ $code -lt 126 ] ||
          echo "${agent}/bin/mvm-guest-agent cannot be run: for a guest it has to be linked statically" >&2
        exit $code
      }
    '';
}
