#!/bin/sh
# qemu-ga 7.2.22 (Debian 12's qemu-guest-agent 1:7.2+dfsg-7+deb12u18+b3): guest-exec and what a command
# leaves behind.
#
# Seen:     with "capture-output", a command that exits at once and leaves a child with its standard
#           output is "exited": false until that child has closed it, 2 s later; then its exit code is
#           there, and for one answer alone: the same question asked again is an "Invalid parameter".
# Guessed:  "exited" is about the command, as its name says, and an answer can be asked for again.
# Matters:  `service nginx start` by guest-exec seems to run for as long as nginx does; and a host that
#           loses one answer never learns how the command ended.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# The program with all that it needs, unpacked here; nothing is installed.
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    qemu-guest-agent=1:7.2+dfsg-7+deb12u18+b3 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
cat >ask.py <<'PYTHON'
import json, os, socket, subprocess, sys, time

agent = subprocess.Popen(sys.argv[1:] + ["-m", "unix-listen", "-p", os.getcwd() + "/socket", "-t", os.getcwd()])
while not os.path.exists("socket"):
    time.sleep(0.05)
host = socket.socket(socket.AF_UNIX)
host.connect("socket")
lines = host.makefile("rw")


def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    return json.loads(lines.readline())


def run(script):
    began = time.monotonic()
    argv = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
    pid = ask("guest-exec", **argv)["return"]["pid"]
    while not (answer := ask("guest-exec-status", pid=pid))["return"]["exited"]:
        time.sleep(0.02)
    took = "at once" if time.monotonic() - began < 1.5 else "2 s later"
    again = ask("guest-exec-status", pid=pid)
    print(took, answer["return"]["exitcode"], again["error"]["desc"])


print(ask("guest-info")["return"]["version"])
run("exit 3")
run("sleep 2 & exit 3")
run("sleep 2 >/dev/null 2>&1 & exit 3")
agent.terminate()
agent.wait()
PYTHON
seen=$(python3 ask.py env "LD_LIBRARY_PATH=$libraries" "$dir/root/usr/sbin/qemu-ga")
echo "$seen"
[ "$seen" = "7.2.22
at once 3 Invalid parameter 'pid'
2 s later 3 Invalid parameter 'pid'
at once 3 Invalid parameter 'pid'" ]
