# The types of fields: what is expected, in words; whether a value is that; and the type of the NixOS
# option.
let
  inherit (builtins)
    all
    elem
    isAttrs
    isBool
    isFloat
    isInt
    isList
    isPath
    isString
    match
    stringLength
    ;
  # The regular expressions know no newline in a class, and `.` is none: text is matched by what it
  # must not be.
  isNumber = v: isInt v || isFloat v;
  isDerivation = v: isAttrs v && v ? type && v.type == "derivation";
  isText = v: isString v || isPath v || isDerivation v;
  isBlank = v: isString v && match "[ \t\n\r]*" v != null;
  matches = form: v: isString v && match form v != null;
  between = low: high: v: isInt v && v >= low && v <= high;
  orNull =
    type: without:
    type
    // {
      expected = "${type.expected}, or null ${without}";
      ok = v: v == null || type.ok v;
      option = types: types.nullOr (type.option types);
    };

  # An option's type that says in its messages what is expected, the range included.
  checked =
    type:
    type
    // {
      option = types: types.addCheck types.number type.ok // { description = type.expected; };
    };

  # Folders that others use as they are, and those of which nothing below is anybody's home either.
  shared = "home|media|mnt|opt|(var/)?run(/mvm|/mvm-init)?|srv|tmp|var|var/(cache|empty|lib|local|lock|log|mail|opt|run|spool|tmp)";
  systems = "bin|boot|dev|etc|init|lib|lib32|lib64|nix|proc|root|sbin|sys|usr";
  knownFormats = [
    "initrd"
    "erofs"
    "ext4"
  ];
  knownSignals = [
    "loadavg"
    "cpu"
    "pressure"
    "session"
    "inhibit"
  ];
  knownFreezes = [
    "workload"
    "off"
  ];
  oneOf = known: "one of ${builtins.concatStringsSep ", " (map builtins.toJSON known)}";
  isListOf = known: v: isList v && v != [ ] && all (one: elem one known) v;

  self = rec {
    command = {
      expected = "a shell command that is not blank: text, a path or a derivation";
      ok = v: isText v && !isBlank v;
      option =
        types:
        types.oneOf [
          types.str
          types.path
          types.package
        ];
    };
    commandOrNull = orNull command "for none";
    argv = {
      expected = "a list of a program, by its absolute path or as a derivation, and its arguments, as text, paths or derivations";
      ok =
        v:
        isList v
        && v != [ ]
        && all isText v
        && (!isString (builtins.head v) || matches "/(.|\n)*" (builtins.head v));
      option =
        types:
        types.nonEmptyListOf (
          types.oneOf [
            types.str
            types.path
            types.package
          ]
        );
    };
    argvOrNull = orNull argv "for none";
    script = {
      expected = "shell commands, or \"\" for none: text, a path or a derivation";
      ok = isText;
    };
    secs = checked {
      expected = "a number over 0 and at most 86400 (seconds)";
      ok = v: isNumber v && v > 0 && v <= 86400;
    };
    grace = checked {
      expected = "a number, 0 or more and at most 1e18 (seconds)";
      ok = v: isNumber v && v >= 0 && v <= 1.0e18;
    };
    positive = checked {
      expected = "a number over 0, and finite";
      # No float is larger.
      ok = v: isNumber v && v > 0 && v <= 1.7976931348623157e308;
    };
    count = {
      expected = "a whole number, 1 or more";
      ok = between 1 4294967295;
      option = types: types.ints.between 1 4294967295;
    };
    bool = {
      expected = "true or false";
      ok = isBool;
      option = types: types.bool;
    };
    # As the agent has it (crates/mvm-protocol/src/drop_in.rs).
    user = {
      expected = "a user's name or number: 1 to 64 bytes, no ':' or space among them";
      ok = matches "[^[:space:][:cntrl:]:]{1,64}";
      option = types: types.str;
    };
    userOrNull = orNull user "for root";
    output = {
      expected = oneOf [
        "text"
        "json"
      ];
      ok =
        v:
        elem v [
          "text"
          "json"
        ];
      option =
        types:
        types.enum [
          "text"
          "json"
        ];
    };
    # The last number is vsock's word for any.
    port = {
      expected = "a vsock port: a whole number from 1 to 4294967294";
      ok = between 1 4294967294;
      option = types: types.ints.between 1 4294967294;
    };
    portOrNull = orNull port "for none";
    signals = {
      expected = "a list of ${oneOf knownSignals}";
      ok = isListOf knownSignals;
      option = types: types.nonEmptyListOf (types.enum knownSignals);
    };
    freeze = {
      expected = oneOf knownFreezes;
      ok = v: elem v knownFreezes;
      option = types: types.enum knownFreezes;
    };
    # As the agent has it (crates/mvm-guest-agent/src/config.rs).
    cgroups = {
      expected = "a list of paths of cgroups below the root, such as \"/services/web\"";
      ok = v: isList v && all (one: matches "/?[^/]+(/[^/]+)*" one && !matches "(.*/)?[.]{1,2}(/.*)?" one) v;
      option = types: types.listOf types.str;
    };
    ports = {
      expected = "a list of TCP ports: whole numbers from 1 to 65535";
      ok = v: isList v && all (between 1 65535) v;
      option = types: types.listOf (types.ints.between 1 65535);
    };
    # What is in it is looked at one by one: see check.nix.
    env = {
      expected = "a set of variables";
      ok = v: isAttrs v && !isDerivation v;
    };
    envName = {
      expected = "A-Z, a-z, 0-9 and '_', no digit first";
      ok = matches "[A-Za-z_][A-Za-z0-9_]*";
    };
    envValue = {
      expected = "text, a whole number, a path or a derivation";
      ok = v: isText v || isInt v;
    };
    uid = {
      expected = "a whole number from 1 to 65533";
      ok = between 1 65533;
    };
    gidOrNull = orNull uid "for the uid";
    # It is given to the user at boot: the system's own would be lost to all others.
    folderOrNull = orNull {
      expected = "an absolute path of A-Z, a-z, 0-9, '.', '_', '-' and '/', no part of it dots alone, and no folder of the system's";
      ok =
        v:
        matches "(/[A-Za-z0-9._-]+)+" v
        && !matches "(.*/)?[.]+(/.*)?" v
        && !matches "/(${shared}|(${systems})(/.*)?)" v;
    } "for /var/lib/NAME";
    hostname = {
      expected = "1 to 64 of A-Z, a-z, 0-9, '.' and '-', a letter or digit first";
      ok = matches "[A-Za-z0-9][A-Za-z0-9.-]{0,63}";
    };
    hostnameOrNull = orNull hostname "for the guest's name";
    set = {
      expected = "a set";
      ok = v: isAttrs v && !isDerivation v;
    };
    packages = {
      expected = "a list of derivations";
      ok = v: isList v && all (one: isDerivation one || isPath one) v;
    };
    modules = {
      expected = "a list of names of kernel modules";
      ok = v: isList v && all (matches "[A-Za-z0-9_-]+") v;
    };
    kernelOrNull = {
      expected = "a kernel as nixpkgs makes them, or null for the default";
      ok = v: v == null || isDerivation v || (isAttrs v && v ? outPath);
    };
    formats = {
      expected = "a list of ${oneOf knownFormats}, each once";
      ok =
        v:
        isListOf knownFormats v
        && all (one: builtins.length (builtins.filter (other: other == one) v) == 1) v;
    };
    # Keys of services, healthChecks, probes.
    entryName = {
      expected = "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', no '.' first";
      ok = v: matches "[A-Za-z0-9_-][A-Za-z0-9._-]*" v && stringLength v <= 64;
    };
    userName = {
      expected = "1 to 32 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or '_' first";
      ok = matches "[A-Za-z_][A-Za-z0-9._-]{0,31}";
    };
  };
in
self // { inherit isDerivation; }
