#!/bin/sh
# debugfs 1.47.0 (Debian 12's e2fsprogs 1.47.0-2+b2): files that do not fit.
#
# Seen:     `debugfs -w -R "write FILE NAME"` of 20 MB into a file system of 8 MiB prints one line on
#           standard error and exits 0. The file has its whole size, and a hole where there was no room:
#           e2fsck finds nothing wrong, and whoever reads it gets zeros. With `-f SCRIPT` the next
#           commands go on, and it exits 0 as well.
# Guessed:  an exit code other than 0, and no file, or a short one.
# Matters:  debugfs is how an image is filled without a mount, and so without root. A program that was cut
#           in this way is found out when the guest runs it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install e2fsprogs=1.47.0-2+b2 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
export LD_LIBRARY_PATH="$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu"
PATH=$dir/root/sbin:$PATH
truncate -s 8M disk
mke2fs -q -F -t ext4 disk
head -c 20000000 /dev/urandom >large
written=0
debugfs -w -R 'write large large' disk 2>errors || written=$?
checked=0
e2fsck -fn disk >report 2>&1 || checked=$?
debugfs -R 'dump large copy' disk 2>/dev/null
size=$(wc -c <copy)
zeros=$(cmp -n 1000000 -i 19000000 copy /dev/zero && echo zeros || echo data)
echo "debugfs: exit code $written, $(tail -n 1 errors)"
echo "e2fsck: exit code $checked; the file has $size bytes, and at its end $zeros"
[ "$written" = 0 ] && [ "$checked" = 0 ]
[ "$size" = 20000000 ]
[ "$zeros" = zeros ]
