#!/bin/sh
# busybox 1.35.0 (Debian 12's busybox-static 1:1.35.0-4+deb12u1+b1): what `timeout` exits with.
#
# Seen:     the exit status is the command's own: 143 of a command that TERM ended, and 0 of one that takes
#           TERM as a request to end in order. That its time was up cannot be told from it.
# Guessed:  124 in either case, as GNU coreutils' timeout exits with (its 9.1 is run beside it).
# Matters:  `timeout 5 my-client --ping` is what many health checks are. In an image with busybox a client
#           that hung, and ends in order when it is asked to, has passed the check.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -q download busybox-static=1:1.35.0-4+deb12u1+b1 coreutils=9.1-1 >/dev/null 2>&1
dpkg -x busybox-static_*.deb root
dpkg -x coreutils_*.deb root
"$dir/root/bin/busybox" | head -n 1
"$dir/root/usr/bin/timeout" --version | head -n 1
cat >in-order.sh <<'SCRIPT'
trap 'kill $child; exit 0' TERM
sleep 30 &
child=$!
wait
SCRIPT
status() {
    code=0
    "$@" 2>/dev/null || code=$?
    echo "$code"
}
busybox_ended=$(status "$dir/root/bin/busybox" timeout 1 sleep 30)
busybox_in_order=$(status "$dir/root/bin/busybox" timeout 1 sh in-order.sh)
gnu_ended=$(status "$dir/root/usr/bin/timeout" 1 sleep 30)
gnu_in_order=$(status "$dir/root/usr/bin/timeout" 1 sh in-order.sh)
echo "of a command that TERM ends: busybox $busybox_ended, GNU $gnu_ended"
echo "of a command that ends in order on TERM: busybox $busybox_in_order, GNU $gnu_in_order"
[ "$busybox_ended" = 143 ]
[ "$busybox_in_order" = 0 ]
[ "$gnu_ended" = 124 ]
[ "$gnu_in_order" = 124 ]
