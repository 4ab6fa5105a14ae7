#!/bin/sh
# cloud-init 22.4.2 (Debian 12's 22.4.2-1+deb12u4, with its python3-yaml 6.0-3+b2), and the npm package
# yaml 2.9.1 and the crate serde_yaml 0.9.34 as writers.
#
# Seen:     52:54:00:12:34:56, the address that QEMU gives to a VM's first card, is the number 41135085296 to
#           PyYAML: six groups of two digits, all but the first below 60, are a number of base 60 in
#           YAML 1.1. cloud-init's net-convert takes a network configuration with it, says nothing, exits 0
#           and writes MACAddress=41135085296. The other two write it without quotes, since it is a string
#           to YAML 1.2. An address with a letter, or a group of 60 or more, is a string to all.
# Guessed:  a MAC address is a string.
# Matters:  of the addresses 52:54:00:…, one in 78 is such a number by chance: the same template works for
#           the others. With QEMU's default it never does, and the card has no address in the guest.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    cloud-init=22.4.2-1+deb12u4 | awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }' |
    grep -E '^(cloud-init|python3|lib(python3|yaml|expat|ffi|ssl|sqlite|crypt1|lzma|bz2)|zlib)')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
python() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu \
        PYTHONDONTWRITEBYTECODE=1 PYTHONHOME=$dir/root/usr PYTHONPATH=$dir/root/usr/lib/python3/dist-packages \
        root/usr/bin/python3.11 "$@"
}
# The writers.
npm install --silent --no-audit --no-fund --prefix node yaml@2.9.1 >/dev/null
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "write"
version = "0.0.0"
edition = "2021"
[dependencies]
serde_yaml = "=0.9.34"
[workspace]
TOML
cat >src/main.rs <<'RUST'
fn main() {
    let address = std::env::args().nth(1).unwrap();
    print!("{}", serde_yaml::to_string(&std::collections::BTreeMap::from([("macaddress", address)])).unwrap());
}
RUST
CARGO_TARGET_DIR=$dir/target cargo build --quiet
npm_yaml() { (cd node && node -e 'process.stdout.write(require("yaml").stringify({ macaddress: process.argv[1] }))' "$1"); }

# convert LINE: what cloud-init makes of a card with that line, for systemd-networkd.
convert() {
    rm -rf out
    cat >network.yaml <<END
network:
  version: 2
  ethernets:
    lan:
      match:
        $1
      set-name: lan0
      addresses: [192.0.2.2/24]
END
    python root/usr/bin/cloud-init devel net-convert -p network.yaml -k yaml -D debian -O networkd -d out >log 2>&1
    cat out/etc/systemd/network/* | grep MACAddress
}
python root/usr/bin/cloud-init --version 2>&1
default=52:54:00:12:34:56
seen=$(
    echo "yaml (npm) writes: $(npm_yaml $default)"
    echo "serde_yaml writes: $(target/debug/write $default)"
    echo "cloud-init reads that as: $(convert "$(npm_yaml $default)")"
    echo "with a letter: $(convert "$(npm_yaml 52:54:00:12:34:5a)")"
    echo "with a group above 59: $(convert "$(npm_yaml 52:54:00:12:34:60)")"
    echo "in quotes: $(convert "macaddress: '$default'")"
)
echo "$seen"
[ "$seen" = "yaml (npm) writes: macaddress: 52:54:00:12:34:56
serde_yaml writes: macaddress: 52:54:00:12:34:56
cloud-init reads that as: MACAddress=41135085296
with a letter: MACAddress=52:54:00:12:34:5a
with a group above 59: MACAddress=52:54:00:12:34:60
in quotes: MACAddress=52:54:00:12:34:56" ]
