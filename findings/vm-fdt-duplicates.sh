#!/bin/sh
# vm-fdt 0.3.0 (crates.io) and dtc 1.6.1 (Debian 12's device-tree-compiler 1.6.1-4+b1): names that occur
# twice.
#
# Seen:     FdtWriter refuses a phandle that occurs twice (DuplicatePhandle), and a property after a
#           subnode, but takes a second property and a second subnode of the same name: `finish` is Ok.
#           dtc then reads the blob and refuses it for the node (duplicate_node_names).
#           fdtget, which uses libfdt as firmware does, takes the first one without a word.
# Guessed:  an error from the writer, as for the phandle.
# Matters:  a VMM that writes a default first and the user's value after it has the default in force; it
#           reads back as written only with tools that do not use libfdt.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    device-tree-compiler=1.6.1-4+b1 | awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
dtc() {
    name=$1
    shift
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu \
        "root/usr/bin/$name" "$@" 2>&1
}
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "blob"
version = "0.0.0"
edition = "2021"
[dependencies]
vm-fdt = "=0.3.0"
[workspace]
TOML
cat >src/main.rs <<'RUST'
use vm_fdt::{Error, FdtWriter};

fn main() -> Result<(), Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", "console=ttyS0")?;
    fdt.property_string("bootargs", "console=ttyS0 debug")?;
    fdt.property_phandle(1)?;
    println!("a phandle again: {:?}", fdt.property_phandle(1));
    fdt.end_node(chosen)?;
    for _ in 0..2 {
        let node = fdt.begin_node("memory")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(root)?;
    let blob = fdt.finish();
    println!("finish: {:?}", blob.as_ref().map(Vec::len));
    std::fs::write("blob.dtb", blob?).expect("the folder is ours");
    Ok(())
}
RUST
writer=$(CARGO_TARGET_DIR=$dir/target cargo run --quiet)
reader=$(dtc dtc -I dtb -O dts blob.dtb || echo "exit code $?")
first=$(dtc fdtget blob.dtb /chosen bootargs)
echo "$writer"
echo "$reader"
echo "fdtget: $first"
[ "$writer" = "a phandle again: Err(DuplicatePhandle)
finish: Ok(213)" ]
[ "$(echo "$reader" | grep -c 'ERROR (duplicate_node_names): /memory')" = 1 ]
[ "$(echo "$reader" | tail -n 1)" = "exit code 2" ]
[ "$first" = "console=ttyS0" ]
