# mkGuest's arguments, looked at whole: every problem that there is, and the values with the defaults
# filled in.
let
  inherit (builtins)
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    hasAttr
    isAttrs
    length
    mapAttrs
    match
    stringLength
    substring
    toJSON
    ;
  fields = import ./fields.nix;
  types = import ./types.nix;
  text = import ./text.nix;

  # A key of a set that is named by whoever writes it.
  key = name: if match "[A-Za-z_][A-Za-z0-9_'-]*" name != null then name else toJSON name;

  expected = path: type: value: "${path}: ${text.shown value} is not ${type.expected}";

  # The problems of a set of fields.
  ofFields =
    path: table: value:
    let
      at = name: if path == "" then name else "${path}.${name}";
      one =
        name:
        let
          field = table.${name};
          type = types.${field.type};
        in
        if hasAttr name value then
          if type.ok value.${name} then [ ] else [ (expected (at name) type value.${name}) ]
        else if field ? default then
          [ ]
        else
          [ "${at name}: missing; ${type.expected} is asked for" ];
      unknown =
        name:
        "${at (key name)}: unknown${
          let
            near = text.suggestion name (attrNames table);
          in
          if near == "" then "; there are ${concatStringsSep ", " (attrNames table)}" else near
        }";
    in
    if !isAttrs value then
      [ (expected path types.set value) ]
    else
      concatMap one (attrNames table) ++ map unknown (filter (name: !hasAttr name table) (attrNames value));

  # The problems of commands that can be given in two ways: `…Cmd` or `command` is a shell's, `…Argv` a
  # list. The one that has to be there has no `…Cmd`.
  ofCommands =
    at: table: value:
    let
      given = name: value.${name} or null != null;
      bases = concatMap (
        name:
        let
          base = match "(.*)Argv" name;
        in
        if base == null then [ ] else base
      ) (attrNames table);
      one =
        base:
        let
          text = if hasAttr "${base}Cmd" table then "${base}Cmd" else base;
          argv = "${base}Argv";
        in
        if given text && given argv then
          [ "${at}.${argv}: ${text} is given as well: give one of the two" ]
        else if text == base && !given text && !given argv then
          [ "${at}.${text}: missing; ${types.command.expected} is asked for, or ${argv}" ]
        else
          [ ];
    in
    if !isAttrs value then [ ] else concatMap one bases;

  # The problems of a set of sets of fields, each with a name.
  ofEntries =
    path: table: nameType: entries:
    if !types.set.ok entries then
      # Told where the set itself is looked at.
      [ ]
    else
      concatMap (
        name:
        let
          at = "${path}.${key name}";
        in
        (if nameType.ok name then [ ] else [ "${at}: the name is not ${nameType.expected}" ])
        ++ ofFields at table entries.${name}
        ++ ofCommands at table entries.${name}
      ) (attrNames entries);

  # The problems of services' variables.
  ofEnv =
    services:
    concatMap (
      service:
      let
        env = sound ((sound services.${service}).env or { });
      in
      concatMap (
        name:
        let
          at = "services.${key service}.env.${key name}";
        in
        (if types.envName.ok name then [ ] else [ "${at}: the name is not ${types.envName.expected}" ])
        ++ (if types.envValue.ok env.${name} then [ ] else [ (expected at types.envValue env.${name}) ])
      ) (attrNames env)
    ) (attrNames services);

  # A good set's values with the defaults of what is left out.
  filled = table: value: mapAttrs (name: field: value.${name} or field.default) table;
  filledAll = table: mapAttrs (_: filled table);

  # The groups that image.nix gives to every guest; tty's number is that of its terminals, by sysinit.
  groups = {
    root = 0;
    tty = 5;
    nogroup = 65534;
  };

  # Whether a folder is below another.
  isWithin = outer: inner: substring 0 (stringLength outer + 1) inner == "${outer}/";

  # What makes a set of a kind, or nothing if it is none.
  sound = value: if types.set.ok value then value else { };
in
{
  # The drop-ins alone, as the NixOS module has them: their options have checked all but the names.
  dropIns =
    { healthChecks, probes }:
    ofEntries "healthChecks" fields.healthCheck types.entryName healthChecks
    ++ ofEntries "probes" fields.probe types.entryName probes;

  # { problems, value }; the value is good if there is no problem. `known` says what this mkGuest was
  # given.
  guest =
    known: args:
    let
      given = sound args;
      part = name: sound (given.${name} or { });
      services = part "services";
      users = part "users";
      healthChecks = part "healthChecks";
      probes = part "probes";

      userNames = [
        "root"
        "nobody"
      ]
      ++ attrNames users;
      # A number is a user for the agent, whether it has a name or not. The last is no user's: it is
      # the kernel's word for "as it is".
      isNumber =
        user:
        let
          digits = match "0*([1-9][0-9]{0,9}|0)" user;
        in
        digits != null && builtins.fromJSON (builtins.head digits) < 4294967295;
      userIsKnown =
        path: entries: numbers:
        concatMap (
          name:
          let
            user = (sound entries.${name}).user or null;
            fine = elem user userNames || (numbers && isNumber user);
          in
          if types.user.ok user && !fine then
            [
              "${path}.${key name}.user: there is no user ${toJSON user} in users${text.suggestion user userNames}"
            ]
          else
            [ ]
        ) (attrNames entries);

      taken = concatMap (
        name:
        if name == "nobody" || hasAttr name groups then
          [ "users.${name}: every guest has it already" ]
        else
          [ ]
      ) (attrNames users);

      # One line for each number that several have.
      withUid = filter (name: types.uid.ok ((sound users.${name}).uid or null)) (attrNames users);
      duplicate = concatMap (
        name:
        let
          uid = users.${name}.uid;
          all = filter (other: users.${other}.uid == uid) withUid;
        in
        if length all > 1 && builtins.head all == name then
          [
            "users.${key name}.uid: ${toString uid} is also that of ${
              concatStringsSep ", " (filter (other: other != name) all)
            }"
          ]
        else
          [ ]
      ) withUid;

      # The group has the user's name, and its number is no other group's of every guest.
      takenGroup = concatMap (
        name:
        let
          user = sound users.${name};
          isDefault = user.gid or null == null;
          gid = if isDefault then user.uid or null else user.gid;
        in
        map (
          group:
          "users.${key name}.gid: ${toString gid}${
            if isDefault then ", its uid," else ""
          } is also that of ${group}, a group that every guest has"
        ) (filter (group: types.uid.ok gid && groups.${group} == gid) (attrNames groups))
      ) (attrNames users);

      # Homes are owned by their users (mode 700): nobody else can have one, or reach what is in it.
      withHome = filter (
        name:
        types.userName.ok name
        && types.set.ok users.${name}
        && types.folderOrNull.ok (users.${name}.home or null)
      ) (attrNames users);
      homeOf =
        name: if users.${name}.home or null == null then "/var/lib/${name}" else users.${name}.home;
      # Where it is: /var/run is a link to /run.
      placeOf =
        name:
        let
          linked = match "/var(/run/.*)" (homeOf name);
        in
        if linked == null then homeOf name else builtins.head linked;
      sharedHome = concatMap (
        name:
        let
          all = filter (other: placeOf other == placeOf name) withHome;
          around = filter (other: isWithin (placeOf other) (placeOf name)) withHome;
          problem =
            how: others:
            "users.${key name}.home: ${toJSON (homeOf name)} is ${how} that of ${concatStringsSep ", " others}";
        in
        # One line for each folder that several have, and for each user in somebody else's.
        (
          if length all > 1 && builtins.head all == name then
            [ (problem "also" (filter (other: other != name) all)) ]
          else
            [ ]
        )
        ++ (if around == [ ] then [ ] else [ (problem "within" around) ])
      ) withHome;

      # The integration that networkPayload adds.
      twice =
        if (given.networkPayload or false) == true && healthChecks ? network then
          [ "healthChecks.network: networkPayload adds one of that name" ]
        else
          [ ];

      missing =
        (
          if (given.dev or false) == true && !known.agentDev then
            [ "dev: true takes the agent's dev build, which this mkGuest was made without (agentDev)" ]
          else
            [ ]
        )
        ++ (
          if (given.kernel or null) == null && known.kernel == null then
            [ "kernel: missing; this mkGuest was made without a default" ]
          else
            [ ]
        );
    in
    {
      problems =
        if !types.set.ok args then
          [ "its argument: ${text.shown args} is not a set" ]
        else
          concatLists [
            (ofFields "" fields.guest args)
            (ofFields "agent" fields.agent (part "agent"))
            (ofEntries "services" fields.service types.entryName services)
            (ofEnv services)
            (ofEntries "healthChecks" fields.healthCheck types.entryName healthChecks)
            (ofEntries "probes" fields.probe types.entryName probes)
            (ofEntries "users" fields.user types.userName users)
            (userIsKnown "services" services false)
            (userIsKnown "healthChecks" healthChecks true)
            (userIsKnown "probes" probes true)
            taken
            duplicate
            takenGroup
            sharedHome
            twice
            missing
          ];
      value =
        let
          all = filled fields.guest args;
        in
        all
        // {
          hostname = if all.hostname == null then all.name else all.hostname;
          kernel = if all.kernel == null then known.kernel else all.kernel;
          agent = filled fields.agent all.agent;
          services = filledAll fields.service all.services;
          healthChecks = filledAll fields.healthCheck all.healthChecks;
          # Where there is such a module.
          optionalModules = if all.networkPayload then [ "virtio_net" ] else [ ];
          probes = filledAll fields.probe all.probes;
          users = mapAttrs (
            name: given:
            let
              user = filled fields.user given;
            in
            user
            // {
              gid = if user.gid == null then user.uid else user.gid;
              home = if user.home == null then "/var/lib/${name}" else user.home;
            }
          ) all.users;
        };
    };
}
