#!/bin/sh
# busybox 1.35.0 (Debian 12's busybox-static 1:1.35.0-4+deb12u1+b1): df and long names of devices.
#
# Seen:     without -P, df writes a name of more than 20 characters on a line of its own, also into a
#           pipe: the last line has five columns, and its fifth is the mount point.
# Guessed:  one line for each file system, as GNU df writes since coreutils 8.11.
# Matters:  `df DIR | tail -1 | awk '{print $5}'` is what many health checks in small images are. It is
#           the percentage for /dev/vda, and the mount point for /dev/disk/by-id/….
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -q download busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1
dpkg -x busybox-static_*.deb root
mkdir mounted
busybox=$dir/root/bin/busybox
"$busybox" | head -n 1
in_a_namespace() {
    unshare -m sh -c "mount -t tmpfs -o size=1m $1 $dir/mounted && $2"
}
value="$busybox df $dir/mounted | tail -n 1 | awk '{ print \$5 }'"
short=$(in_a_namespace /dev/vda "$value")
long=$(in_a_namespace /dev/disk/by-id/virtio-data "$value")
posix=$(in_a_namespace /dev/disk/by-id/virtio-data "$busybox df -P $dir/mounted | awk 'NR == 2 { print \$5 }'")
echo "the fifth column of the last line: $short for /dev/vda, $long for /dev/disk/by-id/virtio-data"
echo "with -P, of the second line: $posix"
[ "$short" = 0% ]
[ "$long" = "$dir/mounted" ]
[ "$posix" = 0% ]
