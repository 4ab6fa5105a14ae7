# mkGuest: a microVM's guest with the agent in it. docs/mkguest.md is its guide.
#
#     mk-guest    this function
#     fields      its arguments, and what they are without being given      types, text
#     check       every problem with them at once
#     render      the agent's files                                         shared with module.nix
#     image       the guest's files, and the images made of them            build.sh
#
# Of `pkgs` it takes runCommand, writeText, closureInfo, pkgsStatic.busybox, e2fsprogs, erofs-utils,
# cpio, gzip, stdenv.hostPlatform.system (or system, without that) and, where there is one, zstd: so a
# test can hand in a small one.
{
  pkgs,
  # A derivation or path with bin/mvm-guest-agent; and of the dev build.
  agent,
  agentDev ? null,
  # The kernel of guests that name none.
  kernel ? null,
}:
let
  check = import ./check.nix;
  text = import ./text.nix;
  image = import ./image.nix pkgs;
  known = {
    inherit kernel;
    agentDev = agentDev != null;
  };
in
args:
let
  checked = check.guest known args;
  who =
    if builtins.isAttrs args && builtins.isString (args.name or null) then
      "mkGuest ${text.shown args.name}"
    else
      "mkGuest";
  guest = text.orThrow who checked.problems checked.value;
in
image {
  inherit guest;
  agent = if guest.dev then agentDev else agent;
}
