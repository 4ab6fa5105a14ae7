#!/bin/sh
# QEMU 7.2.22 (Debian 12's qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3): `migrate` to `exec:COMMAND`.
#
# Seen:     a command that reads the whole state and then exits 1 makes a migration that `query-migrate`
#           calls "completed", without an error. QEMU waits for the command's end, and does not look at
#           how it ended. A command that stops reading early does make it "failed" (broken pipe).
# Guessed:  "failed": the documentation gives the pipe to a compressor as the use of exec:.
# Matters:  a compressor, or a copy over a network, that cannot store its last block says so by its exit
#           code alone. The snapshot is "completed", and whoever then ends the VM has lost it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# The program with all that it needs, unpacked here; nothing is installed.
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
cat >ask.py <<'PYTHON'
import json, os, socket, subprocess, sys, time

qemu = subprocess.Popen(sys.argv[2:] + [
    "-M", "q35", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-S",
    "-qmp", "unix:qmp,server=on,wait=off"])
while not os.path.exists("qmp"):
    time.sleep(0.05)
monitor = socket.socket(socket.AF_UNIX)
monitor.connect("qmp")
lines = monitor.makefile("rw")
version = json.loads(lines.readline())["QMP"]["version"]["qemu"]


def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while True:
        answer = json.loads(lines.readline())
        if "return" in answer:
            return answer["return"]


ask("qmp_capabilities")
ask("migrate", uri=sys.argv[1])
while True:
    state = ask("query-migrate")
    if state.get("status") in ("completed", "failed"):
        break
    time.sleep(0.05)
print(version["major"], version["minor"], version["micro"], state["status"], state.get("error-desc"))
ask("quit")
qemu.wait()
PYTHON
migrate() {
    python3 ask.py "$1" env "LD_LIBRARY_PATH=$libraries" \
        "$dir/root/usr/bin/qemu-system-x86_64" \
        -L "$dir/root/usr/share/qemu" -L "$dir/root/usr/share/seabios"
}
whole=$(migrate 'exec:cat >state; exit 1')
part=$(migrate 'exec:dd bs=1k count=1 of=part status=none')
echo "a command that reads all and exits 1: $whole ($(wc -c <state) bytes written)"
echo "a command that reads 1 KiB and exits 0: $part"
[ "$whole" = "7 2 22 completed None" ]
[ "$part" = "7 2 22 failed Unable to write to command: Broken pipe" ]
[ -s state ]
