#!/bin/sh
# Nix 2.8.0 (Debian 12's nix-bin 2.8.0-1.1+b1): builtins.toJSON and floats.
#
# Seen:     builtins.toJSON 86399.75 is 86399.8, and builtins.toJSON (1.0e308 * 10) is inf.
# Guessed:  as many digits as it takes to read the same number again, as other writers of JSON do, and
#           an error for what JSON has no word for.
# Matters:  whoever passes a timeout or a limit through toJSON gets another one, without a word; what
#           reads `inf` refuses the whole file.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# The program with all that it needs, unpacked here; nothing is installed.
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install nix-bin=2.8.0-1.1+b1 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu:$dir/root/usr/lib/nix
evaluate() {
    HOME=$dir LD_LIBRARY_PATH=$libraries "$dir/root/usr/bin/nix-instantiate" --store dummy:// --eval -E "$1"
}
evaluate '"Nix ${builtins.nixVersion}"'
digits=$(evaluate 'builtins.toJSON [ 86399.75 1234567.5 0.1 ]')
infinite=$(evaluate 'builtins.toJSON (1.0e308 * 10)')
echo "toJSON [ 86399.75 1234567.5 0.1 ] is $digits"
echo "toJSON (1.0e308 * 10) is $infinite"
[ "$digits" = '"[86399.8,1.23457e+06,0.1]"' ]
[ "$infinite" = '"inf"' ]
