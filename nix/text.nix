# Text: how names, values and problems are written.
let
  inherit (builtins)
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    head
    length
    replaceStrings
    sort
    stringLength
    substring
    toJSON
    typeOf
    ;
  lower = [ "a" "b" "c" "d" "e" "f" "g" "h" "i" "j" "k" "l" "m" "n" "o" "p" "q" "r" "s" "t" "u" "v" "w" "x" "y" "z" ];
  upper = [ "A" "B" "C" "D" "E" "F" "G" "H" "I" "J" "K" "L" "M" "N" "O" "P" "Q" "R" "S" "T" "U" "V" "W" "X" "Y" "Z" ];
  min = a: b: if a < b then a else b;
  cut = text: if stringLength text > 60 then "${substring 0 57 text}..." else text;

  # Levenshtein's: how many letters have to be put in, taken out or changed.
  distance =
    a: b:
    let
      letters = text: genList (at: substring at 1 text) (stringLength text);
      first = genList (n: n) (stringLength b + 1);
      # The row of the table for one letter more of `a`.
      next =
        row: letter:
        foldl' (
          new: at:
          let
            changed = elemAt row at + (if substring at 1 b == letter then 0 else 1);
          in
          new ++ [ (min changed (1 + min (elemAt row (at + 1)) (elemAt new at))) ]
        ) [ (head row + 1) ] (genList (n: n) (stringLength b));
      last = foldl' next first (letters a);
    in
    elemAt last (stringLength b);
in
rec {
  # healthIntervalSecs → health_interval_secs
  snakeCase = replaceStrings upper (map (letter: "_${letter}") lower);

  # One word for a shell, whatever is in it.
  shellWord = text: "'${replaceStrings [ "'" ] [ "'\\''" ] text}'";

  # A number with all of its digits: Nix itself writes six.
  number =
    value:
    let
      size = if value < 0 then 0 - value else value;
      whole = builtins.floor size;
      # So many digits after the point.
      written =
        digits:
        let
          one = foldl' (all: _: all * 10) 1 (genList (n: n) digits);
          rest = builtins.floor ((size - whole) * one + 0.5);
          carried = if rest >= one then 1 else 0;
          padded = substring 1 digits (toString (one + rest - carried * one));
          trimmed = builtins.match "([0-9]*[1-9])0*" padded;
        in
        "${if value < 0 then "-" else ""}${toString (whole + carried)}${
          if trimmed == null then "" else ".${head trimmed}"
        }";
      # The last digits of a float are noise: the fewest that are read back as the same.
      exact = filter (text: builtins.fromJSON text == value) (map written [ 3 6 9 ]);
    in
    # What is smaller or larger, or no number, Nix writes with an exponent, or in letters.
    if builtins.isInt value || size < 0.001 || !(size < 1.0e15) then
      toJSON value
    else if exact == [ ] then
      written 12
    else
      head exact;

  # A value as it is shown in a message.
  shown =
    value:
    let
      type = typeOf value;
      text = toJSON (builtins.unsafeDiscardStringContext value);
    in
    if type == "string" then
      cut text
    else if type == "list" then
      cut (concatStringsSep " " ([ "[" ] ++ map shown value ++ [ "]" ]))
    else if type == "set" then
      if value ? type && value.type == "derivation" then "a derivation" else "a set"
    else if type == "path" then
      "a path"
    else if type == "lambda" then
      "a function"
    # 5.0 is no whole number, though JSON has it as one.
    else if type == "float" then
      if builtins.match "-?[0-9]+" (number value) != null then "${number value}.0" else number value
    else
      toJSON value;

  # " did you mean `x`?", if one of the known words is near enough.
  suggestion =
    word: known:
    let
      far = 1 + stringLength word / 3;
      # Of two that are equally near, the one that begins alike: `wbe` is `web` rather than `db`.
      rated = map (name: rec {
        inherit name;
        off = distance word name;
        rank = 2 * off + (if substring 0 1 name == substring 0 1 word then 0 else 1);
      }) (if stringLength word > 64 then [ ] else known);
      near = sort (a: b: a.rank < b.rank) (filter (one: one.off <= far) rated);
    in
    if near == [ ] then "" else "; did you mean `${(head near).name}`?";

  # All problems in one message; `value` if there is none.
  orThrow =
    who: problems: value:
    if problems == [ ] then
      value
    else
      throw (
        "${who}: ${toString (length problems)} ${if length problems == 1 then "problem" else "problems"}\n"
        + concatStringsSep "\n" (map (one: "  ${one}") problems)
      );
}
