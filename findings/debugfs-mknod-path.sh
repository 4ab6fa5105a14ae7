#!/bin/sh
# debugfs 1.47.0 (Debian 12's e2fsprogs 1.47.0-2+b2): `mknod` and a path.
#
# Seen:     `write`, `mkdir` and `symlink` take a path in the image, /dev/x. `mknod /dev/console c 5 1` makes an
#           entry with the name "/dev/console" in the root folder instead, which no guest can open and e2fsck
#           calls an error. debugfs exits 0 and prints the same line as otherwise. After `cd /dev`, `mknod
#           console c 5 1` is in /dev. Its mode is 0 in either case.
# Guessed:  a path is a path in each command that makes a file.
# Matters:  an image that is made without root gets its /dev/console, without which its init has no
#           output, from this command; and the image is one that e2fsck refuses to leave alone.
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
echo text >text
debugfs -V 2>&1 | head -n 1
# image COMMAND…: an image with these commands' files, which it prints with their modes, and what e2fsck says.
image() {
    rm -f disk
    truncate -s 8M disk
    mke2fs -q -t ext4 disk
    for command in 'mkdir /dev' 'write text /dev/text' 'mkdir /dev/pts' 'symlink /dev/fd /proc/self/fd' "$@"; do
        echo "$command"
    done >commands
    code=0
    debugfs -w -f commands disk >/dev/null 2>errors || code=$?
    checked=0
    e2fsck -fn disk >report 2>&1 || checked=$?
    for folder in / /dev; do
        debugfs -R "ls -p $folder" disk 2>/dev/null |
            sed -n 's|^/[0-9]*/\([0-9]*\)/[0-9]*/[0-9]*/\(.*\)/[0-9]*/$|\1 \2|p' | sed "s|^|in $folder: |" | grep -v ' \.*$\|lost+found'
    done
    echo "debugfs $code, e2fsck $checked"
    grep 'illegal characters' report || :
}
path=$(image 'mknod /dev/console c 5 1')
folder=$(image 'cd /dev' 'mknod console c 5 1')
echo "mknod with a path:"
echo "$path"
echo "after cd:"
echo "$folder"
[ "$path" = "in /: 040755 dev
in /: 020000 /dev/console
in /dev: 100644 text
in /dev: 040755 pts
in /dev: 120777 fd
debugfs 0, e2fsck 4
Entry '/dev/console' in / (2) has illegal characters in its name." ]
[ "$folder" = "in /: 040755 dev
in /dev: 100644 text
in /dev: 040755 pts
in /dev: 120777 fd
in /dev: 020000 console
debugfs 0, e2fsck 0" ]
