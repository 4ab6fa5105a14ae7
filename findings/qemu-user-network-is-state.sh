#!/bin/sh
# QEMU 7.2.22 (Debian 12's qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3): a saved VM and another back end of
# its network card.
#
# Seen:     the state of a VM whose card has `-netdev user` can be loaded only where there is a
#           `-netdev user` again: elsewhere "Unknown savevm section or instance 'slirp'", and QEMU exits.
#           The other way round, and between any two others (hubport, socket), it is loaded.
# Guessed:  a back end is the host's side: the same device with any back end takes the state, as with
#           `-chardev` and `-serial`.
# Matters:  a snapshot taken on a developer's machine, where user networking needs no privilege, cannot be
#           restored on a host with bridges; not even to a card that is not connected.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# The program with all that it needs, unpacked here; nothing is installed.
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 | awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
qemu() {
    end=$1
    shift
    LD_LIBRARY_PATH=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu \
        "$dir/root/usr/bin/qemu-system-x86_64" -L "$dir/root/usr/share/qemu" -L "$dir/root/usr/share/seabios" \
        -M q35 -accel tcg -m 32 -nodefaults -display none -S -qmp stdio \
        -netdev "$end,id=net" -device virtio-net-pci,netdev=net,romfile= "$@"
}
# Writes a VM with that back end to a file.
save() {
    {
        echo '{"execute":"qmp_capabilities"}'
        echo "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"exec:cat >$2\"}}"
        while [ ! -e answers ] || ! grep -q '"status": "completed"' answers; do
            echo '{"execute":"query-migrate"}'
            sleep 0.1
        done
        echo '{"execute":"quit"}'
    } | qemu "$1" >answers
    rm answers
}
# Loads it with that back end, and prints what became of it.
load() {
    {
        echo '{"execute":"qmp_capabilities"}'
        echo "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"exec:cat $2\"}}"
        while ! grep -q '"status": "completed"\|"SHUTDOWN"' answers 2>/dev/null && [ ! -s errors ]; do
            echo '{"execute":"query-migrate"}' || break
            sleep 0.1
        done
        echo '{"execute":"quit"}'
    } 2>/dev/null | qemu "$1" -incoming defer >answers 2>errors || true
    if [ -s errors ]; then sed -n 's/^qemu-system-x86_64: \([^.]*\)\..*/\1/p' errors | head -n 1; else echo loaded; fi
    rm -f answers errors
}
save user user.state
save hubport,hubid=0 hub.state
results=$(
    echo "user -> user: $(load user user.state)"
    echo "user -> hubport: $(load hubport,hubid=0 user.state)"
    echo "hubport -> user: $(load user hub.state)"
    echo "hubport -> socket: $(load socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0 hub.state)"
)
echo "$results"
[ "$results" = "user -> user: loaded
user -> hubport: Unknown savevm section or instance 'slirp' 0
hubport -> user: loaded
hubport -> socket: loaded" ]
