#!/bin/sh
# qemu-img 7.2.22 (Debian 12's qemu-utils 1:7.2+dfsg-7+deb12u18+b3): raw images whose length is no multiple of
# 512.
#
# Seen:     `convert` of a raw file of 1000 bytes to qcow2 and back is 1024 bytes, and so is what `create -f raw
#           FILE 1000` makes ("size=1000"). `info` says of the file of 1000 that its size is 1024, and
#           `compare` that the two are identical; `resize FILE 1500` makes 1500 bytes.
# Guessed:  raw is the bytes as they are, and what cannot be kept is an error.
# Matters:  the digest of a raw image does not survive a qcow2, and what is looked for at the end of the file
#           (a signature, a footer, a hash tree) is no longer at its end; the tool to compare images sees
#           no difference.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    qemu-utils=1:7.2+dfsg-7+deb12u18+b3 | awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
qemu_img() {
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu root/usr/bin/qemu-img "$@"
}
head -c 1000 /dev/urandom >raw
qemu_img --version | head -n 1
qemu_img convert -f raw -O qcow2 raw qcow2
qemu_img convert -f qcow2 -O raw qcow2 back
seen=$(
    echo "back from qcow2: $(stat -c %s back) bytes, $(cmp -s raw back && echo same || echo other)"
    echo "compare: $(qemu_img compare -f raw -F raw raw back)"
    echo "info: $(qemu_img info -f raw --output=json raw | sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p' | head -n 1)"
    echo "create: $(qemu_img create -f raw made 1000 | grep -o 'size=.*'), $(stat -c %s made) bytes"
    qemu_img resize -q -f raw made 1500
    echo "resize to 1500: $(stat -c %s made) bytes"
)
echo "$seen"
[ "$seen" = "back from qcow2: 1024 bytes, other
compare: Images are identical.
info: 1024
create: size=1000, 1024 bytes
resize to 1500: 1500 bytes" ]
