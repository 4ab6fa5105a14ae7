# What the tests' expressions, and the documents', have at hand.
{ repository, parts }:
rec {
  pkgs = import ./pkgs.nix { inherit parts; };
  lib = import ./lib.nix;
  packages = import (repository + "/nix/package.nix") pkgs;
  agent = packages.mvm-guest-agent;
  agentDev = packages.mvm-guest-agent-dev;
  mkGuestOf =
    given:
    import (repository + "/nix/mk-guest.nix") (
      {
        inherit pkgs agent;
        kernel = pkgs.linux;
      }
      // given
    );
  mkGuest = mkGuestOf { };
  module = import (repository + "/nix/module.nix");
  # What is wrong with an expression, which has to be something.
  fields = import (repository + "/nix/fields.nix");
  text = import (repository + "/nix/text.nix");
  render = import (repository + "/nix/render.nix");
  story = import ../guests/story.nix { inherit pkgs; };
}
