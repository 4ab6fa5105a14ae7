#!/bin/sh
# mke2fs 1.47.0 (Debian 12's e2fsprogs 1.47.0-2+b2): `-d FOLDER` with the feature inline_data.
#
# Seen:     a file of 2 MiB with two bytes at its begin and a hole up to its end is 1024 bytes long in the
#           image; with the bytes at its end it is 2 MiB. mke2fs exits 0 without a word, and e2fsck finds
#           nothing wrong. Without inline_data both are 2 MiB, and so is a file that is one hole.
# Guessed:  inline_data is about where a small file's bytes are, and no file's length depends on it.
# Matters:  preallocated files (a database's log, a disk image, a swap file) end in a hole as a rule, after a
#           `cp --sparse` at the latest, and reach the guest cut to their last block with data.
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
mkdir files
printf ab >files/begin
truncate -s 2M files/begin files/hole files/end
printf ab | dd of=files/end bs=1 seek=2097150 conv=notrunc status=none
mke2fs -V 2>&1 | head -n 1
# sizes FEATURE…: the lengths of the files in an image, and what e2fsck exits with.
sizes() {
    truncate -s 16M disk
    mke2fs -q -F -t ext4 "$@" -d files disk 2>errors
    [ ! -s errors ]
    checked=0
    e2fsck -fn disk >report 2>&1 || checked=$?
    for name in begin hole end; do
        echo "$name $(debugfs -R "stat $name" disk 2>/dev/null | sed -n 's/.* Size: //p' | head -n 1)"
    done
    echo "e2fsck $checked"
    rm disk
}
plain=$(sizes -O ^inline_data)
inline=$(sizes -O inline_data)
echo "in the folder:"
stat -c '%n %s' files/begin files/hole files/end
echo "in the image, without inline_data:"
echo "$plain"
echo "with inline_data:"
echo "$inline"
[ "$plain" = "begin 2097152
hole 2097152
end 2097152
e2fsck 0" ]
[ "$inline" = "begin 1024
hole 2097152
end 2097152
e2fsck 0" ]
