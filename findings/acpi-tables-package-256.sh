#!/bin/sh
# acpi_tables 0.2.1 (crates.io), and ACPICA 20200925 (Debian 12's acpica-tools 20200925-8), whose interpreter is
# the Linux kernel's.
#
# Seen:     aml::Package writes the count of its elements as one byte, and all elements. With 256 elements the
#           count is 0, with 300 it is 44: no error, no panic. ACPICA loads the table and believes the count:
#           the package is empty, or has its first 44 elements.
# Guessed:  a panic, or the opcode for packages of variable length (the crate has VarPackageTerm), as the
#           crate refuses names and paths that AML cannot have.
# Matters:  a _PRT has four entries for each slot: with 64 slots and more, a VMM's interrupt routing is cut.
#           The table's length and checksum are right.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install acpica-tools=20200925-8 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "table"
version = "0.0.0"
edition = "2021"
[dependencies]
acpi_tables = "=0.2.1"
[workspace]
TOML
cat >src/main.rs <<'RUST'
use acpi_tables::{aml, sdt::Sdt, Aml};

fn main() {
    for count in [255, 256, 300] {
        let elements = vec![7u8; count];
        let package = aml::Package::new(elements.iter().map(|element| element as &dyn Aml).collect());
        let mut bytes = Vec::new();
        aml::Name::new("PACK".into(), &package).to_aml_bytes(&mut bytes);
        let mut table = Sdt::new(*b"DSDT", 36, 2, *b"SOMEID", *b"SOMETABL", 1);
        table.append_slice(&bytes);
        std::fs::write(format!("{count}.aml"), table.as_slice()).unwrap();
    }
}
RUST
CARGO_TARGET_DIR=$dir/target cargo run --quiet
acpica() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu "$@"
}
acpica root/usr/bin/acpiexec -v 2>&1 | grep -o 'version [0-9]*'
seen=$(for count in 255 256 300; do
    loaded=$(acpica root/usr/bin/acpiexec -b 'evaluate PACK; evaluate PACK' $count.aml 2>&1)
    cut=$(echo "$loaded" | sed -n 's/.*\(Actual Package.*\)/, \1/p' | head -n 1)
    echo "$count elements: package of $(echo "$loaded" | sed -n 's/.*\[Package\].*Contains \([0-9]*\) Elements.*/\1/p' | sort -u)$cut"
done)
echo "$seen"
[ "$seen" = "255 elements: package of 255
256 elements: package of 0, Actual Package length (256) is larger than NumElements field (0), truncated
300 elements: package of 44, Actual Package length (300) is larger than NumElements field (44), truncated" ]
