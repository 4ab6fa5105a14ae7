#!/bin/sh
# pzstd and zstd 1.5.4 (Debian 12's zstd 1.5.4+dfsg2-5+deb12u1) as writers, zstandard 0.25.0 and pyzstd 0.20.0
# (PyPI) and the crate ruzstd 0.9.1 as readers.
#
# Seen:     pzstd puts a skippable frame before each frame, also the first. Of its file, zstandard's
#           `decompress` is an error ("decompressed 0 bytes; expected 4"), and its `decompressobj` gives no
#           bytes, without an error, and says that it is at the end. ruzstd's decoder refuses it (SkipFrame).
#           zstd itself and pyzstd read all of it; and all read what zstd has written.
# Guessed:  a .zst is a .zst: pzstd is in zstd's own package, as its parallel variant.
# Matters:  an image or initrd that was compressed with pzstd on a machine with many cores is an empty one to
#           who unpacks it by such a library.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    zstd=1.5.4+dfsg2-5+deb12u1 | awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
run() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu "$dir/root/usr/bin/$@"
}
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check zstandard==0.25.0 pyzstd==0.20.0
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "unpack"
version = "0.0.0"
edition = "2021"
[dependencies]
ruzstd = "=0.9.1"
[workspace]
TOML
cat >src/main.rs <<'RUST'
use std::io::Read;

fn main() {
    let packed = std::fs::read(std::env::args().nth(1).unwrap()).unwrap();
    let mut bytes = Vec::new();
    match ruzstd::decoding::StreamingDecoder::new(&packed[..]) {
        Ok(mut decoder) => println!("ruzstd {}", decoder.read_to_end(&mut bytes).unwrap()),
        Err(error) => println!("ruzstd {error:?}"),
    }
}
RUST
CARGO_TARGET_DIR=$dir/target cargo build --quiet
cat >unpack.py <<'PYTHON'
import sys
import pyzstd
import zstandard

packed = open(sys.argv[1], "rb").read()
try:
    print("decompress", len(zstandard.ZstdDecompressor().decompress(packed)))
except zstandard.ZstdError as error:
    print("decompress", error)
stream = zstandard.ZstdDecompressor().decompressobj()
print("decompressobj", len(stream.decompress(packed)), "at its end" if stream.eof else "")
print("pyzstd", len(pyzstd.decompress(packed)))
PYTHON
seq 100000 >text
run zstd -q text -o zstd.zst
run pzstd -q text -o pzstd.zst
readers() {
    echo "zstd $(run zstd -dc "$1" | wc -c)"
    venv/bin/python unpack.py "$1"
    target/debug/unpack "$1"
}
ordinary=$(readers zstd.zst)
parallel=$(readers pzstd.zst)
run zstd --version
echo "a text of $(wc -c <text) bytes, by zstd:"
echo "$ordinary"
echo "by pzstd, which begins with the bytes $(od -An -tx1 -N4 pzstd.zst):"
echo "$parallel"
[ "$ordinary" = "zstd 588895
decompress 588895
decompressobj 588895 at its end
pyzstd 588895
ruzstd 588895" ]
[ "$parallel" = "zstd 588895
decompress decompression error: decompressed 0 bytes; expected 4
decompressobj 0 at its end
pyzstd 588895
ruzstd ReadFrameHeaderError(SkipFrame { magic_number: 407710288, length: 4 })" ]
