# As much of nixpkgs' lib as the module takes, and a module system for one module: types are checked,
# defaults filled in, what is no option refused, in nixpkgs' words.
let
  inherit (builtins)
    all
    any
    attrNames
    concatMap
    elem
    filter
    hasAttr
    isAttrs
    isBool
    isFloat
    isInt
    isList
    isString
    mapAttrs
    ;
  type = description: check: { inherit description check; };
  # What the configuration has as a value of that type; a type's own `value` may fill in and look
  # deeper.
  valueOf =
    type: path: value:
    if type ? value then
      type.value path value
    else if type.check value then
      value
    else
      throw "A definition for option `${path}' is not of type `${type.description}'.";
  deeper = base: value: base // { inherit value; };

  types = rec {
    str = type "string" isString;
    bool = type "boolean" isBool;
    number = type "integer or floating point number" (v: isInt v || isFloat v);
    path = type "absolute path" (
      v: builtins.isPath v || (isString v && builtins.substring 0 1 v == "/")
    );
    package = type "package" (v: isAttrs v && v ? type && v.type == "derivation");
    ints.between =
      low: high:
      type "integer between ${toString low} and ${toString high} (both inclusive)" (
        v: isInt v && v >= low && v <= high
      );
    enum = known: type "one of ${builtins.toJSON known}" (v: elem v known);
    nullOr =
      inner:
      deeper (type "null or ${inner.description}" (v: v == null || inner.check v)) (
        path: v: if v == null then null else valueOf inner path v
      );
    oneOf = several: type "one of several types" (v: any (one: one.check v) several);
    addCheck = inner: check: inner // { check = v: inner.check v && check v; };
    listOf = inner: type "list of ${inner.description}" (v: isList v && all inner.check v);
    nonEmptyListOf =
      inner: type "non-empty list of ${inner.description}" (v: isList v && v != [ ] && all inner.check v);
    attrsOf =
      inner:
      deeper (type "attribute set of ${inner.description}" isAttrs) (
        path: mapAttrs (name: valueOf inner "${path}.${name}")
      );
    submodule =
      { options }: deeper (type "submodule" isAttrs) (path: evaluated path options);
  };

  evaluated =
    path: options: given:
    let
      unknown = filter (name: !hasAttr name options) (attrNames given);
    in
    if unknown != [ ] then
      throw "The option `${path}.${builtins.head unknown}' does not exist."
    else
      mapAttrs (
        name: option:
        if hasAttr name given then
          valueOf option.type "${path}.${name}" given.${name}
        else if option ? default then
          valueOf option.type "${path}.${name}" option.default
        else
          throw "The option `${path}.${name}' is used but not defined."
      ) options;
in
{
  inherit types;
  mkOption = option: option;
  mkIf = condition: content: if condition then content else { };
  licenses.asl20 = "asl20";
  platforms.linux = [ ];

  # A module's configuration, of values for its service's options.
  evalService =
    {
      module,
      pkgs,
      values,
    }:
    let
      self = module {
        inherit pkgs;
        lib = import ./lib.nix;
        config.services.mvm-guest-agent = service;
      };
      service =
        evaluated "services.mvm-guest-agent" self.options.services.mvm-guest-agent
          values;
      failed = filter (one: !one.assertion) (self.config.assertions or [ ]);
    in
    # Each value is looked at, as NixOS does when it writes its configuration.
    if failed != [ ] then
      throw "Failed assertions: ${builtins.concatStringsSep "; " (map (one: one.message) failed)}"
    else
      builtins.deepSeq (removeAttrs service [ "package" ]) (self.config // { inherit service; });
}
