#!/bin/sh
# bsdtar 3.6.2 (Debian 12's libarchive-tools 3.6.2-1+deb12u5) writes a file with a hole; busybox 1.35.0
# (busybox-static 1:1.35.0-4+deb12u1+b1), the crate tar 0.4.46 and GNU tar 1.34 (1.34+dfsg-1.2+deb12u1) read it.
#
# Seen:     without any option bsdtar writes a file with a hole as a "sparse" one of the pax format. busybox
#           and the crate unpack it as the regular file GNUSparseFile.0/disk.img, which begins with the map
#           of the holes as text and has the blocks behind it; busybox exits 0, and the crate's unpack is Ok.
#           The file `disk.img` is not there. GNU tar unpacks it as it was.
# Guessed:  holes are written only on demand, as GNU tar's -S; and who does not know them says so.
# Matters:  a disk image is what has holes. The same command makes an archive that all can read of the
#           image without holes, and one that unpacks to another file, in another folder, of the same image
#           after `fallocate -d` or a copy.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    libarchive-tools=3.6.2-1+deb12u5 tar=1.34+dfsg-1.2+deb12u1 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
mkdir src in in/whole in/hole
cat >Cargo.toml <<'TOML'
[package]
name = "unpack"
version = "0.0.0"
edition = "2021"
[dependencies]
tar = "=0.4.46"
[workspace]
TOML
cat >src/main.rs <<'RUST'
fn main() -> std::io::Result<()> {
    tar::Archive::new(std::io::stdin().lock()).unpack(".")
}
RUST
CARGO_TARGET_DIR=$dir/target cargo build --quiet
# 4 MiB, all zeros but the last block: written out, and as a hole.
truncate -s 4M in/hole/disk.img
printf 'the last block' | dd of=in/hole/disk.img bs=4096 seek=1023 conv=notrunc status=none
cp --sparse=never in/hole/disk.img in/whole/disk.img
LD_LIBRARY_PATH=$libraries root/usr/bin/bsdtar --version
for kind in whole hole; do
    LD_LIBRARY_PATH=$libraries root/usr/bin/bsdtar -C in/$kind -cf $kind.tar disk.img
done
# unpack KIND COMMAND…: what came out, and whether it is what went in.
unpack() {
    archive=$dir/$1.tar
    shift
    mkdir out
    code=0
    (cd out && LD_LIBRARY_PATH=$libraries "$@" <"$archive" 2>/dev/null) || code=$?
    path=$(cd out && find . -type f)
    same=$(cmp -s "out/$path" in/hole/disk.img && echo same || echo other)
    echo "$path, $(stat -c %s "out/$path") bytes, $same, exit code $code"
    rm -r out
}
seen=$(for kind in whole hole; do
    echo "$kind, GNU tar: $(unpack $kind "$dir/root/bin/tar" -xf -)"
    echo "$kind, busybox: $(unpack $kind "$dir/root/bin/busybox" tar -xf -)"
    echo "$kind, crate tar: $(unpack $kind "$dir/target/debug/unpack")"
done)
echo "$seen"
[ "$seen" = "whole, GNU tar: ./disk.img, 4194304 bytes, same, exit code 0
whole, busybox: ./disk.img, 4194304 bytes, same, exit code 0
whole, crate tar: ./disk.img, 4194304 bytes, same, exit code 0
hole, GNU tar: ./disk.img, 4194304 bytes, same, exit code 0
hole, busybox: ./GNUSparseFile.0/disk.img, 4608 bytes, other, exit code 0
hole, crate tar: ./GNUSparseFile.0/disk.img, 4608 bytes, other, exit code 0" ]
