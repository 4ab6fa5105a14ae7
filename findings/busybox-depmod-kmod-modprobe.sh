#!/bin/sh
# busybox 1.35.0's depmod (Debian 12's busybox-static 1:1.35.0-4+deb12u1+b1) and kmod 30's modprobe
# (kmod 30+20221128-1), on the modules of linux-image-6.1.0-48-cloud-amd64 6.1.172-1.
#
# Seen:     busybox depmod writes modules.dep, modules.alias and modules.symbols, as text. kmod's modprobe
#           reads only modules.dep.bin and says of a module that modules.dep names "not found in
#           directory", exit code 1. After kmod's own depmod the same call lists the module and what it
#           depends on.
# Guessed:  modules.dep is what the two programs of that name have in common.
# Matters:  an image that is put together with a static busybox, and whose guest has kmod (a Debian root
#           file system, say), finds none of its modules, and the message sends one to look for a file
#           that is there.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install kmod=30+20221128-1 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages busybox-static=1:1.35.0-4+deb12u1+b1 \
    linux-image-6.1.0-48-cloud-amd64=6.1.172-1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
release=6.1.0-48-cloud-amd64
index=$dir/root/lib/modules/$release
mkdir programs
ln -s "$dir/root/bin/kmod" programs/modprobe
ln -s "$dir/root/bin/kmod" programs/depmod
kmod() {
    name=$1
    shift
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu "programs/$name" "$@"
}
show() {
    kmod modprobe -d "$dir/root" -S "$release" --show-depends vsock_loopback 2>&1 || echo "exit code $?"
}

root/bin/busybox depmod -b "$dir/root" "$release"
[ -s "$index/modules.dep" ]
[ ! -e "$index/modules.dep.bin" ]
named=$(grep -c '^[^:]*vsock_loopback.ko:' "$index/modules.dep")
after_busybox=$(show)
kmod depmod -b "$dir/root" "$release"
after_kmod=$(show)
echo "modules.dep of busybox has $named line for vsock_loopback; kmod's modprobe then:"
echo "$after_busybox"
echo "after kmod's depmod:"
echo "$after_kmod"
[ "$named" = 1 ]
[ "$after_busybox" = "modprobe: FATAL: Module vsock_loopback not found in directory $index
exit code 1" ]
[ "$(echo "$after_kmod" | grep -c '^insmod ')" = 3 ]
