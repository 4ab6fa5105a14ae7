#!/bin/sh
# bsdtar 3.6.2 (Debian 12's libarchive-tools 3.6.2-1+deb12u5), from tar to an initramfs; GNU cpio 2.13
# (2.13+dfsg-7.1) and busybox 1.35.0 (busybox-static 1:1.35.0-4+deb12u1+b1) read it.
#
# Seen:     `bsdtar --format newc -cf OUT @IN.tar` writes each hard link of the tar as an entry without a
#           type in its mode (0644 for 0100644), without data, and with one link. It exits 0. GNU cpio says
#           "unknown file type", leaves them out and exits 0; busybox stops there; bsdcpio makes empty
#           files of them. From the folder itself bsdtar writes the links as they are.
# Guessed:  links, or copies, or an error: both formats have hard links, and one library reads and writes.
# Matters:  a container's tar of busybox is one program and some 400 hard links to it. The initramfs has the
#           program under one name, and no `sh` or `mount`.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    libarchive-tools=3.6.2-1+deb12u5 cpio=2.13+dfsg-7.1 |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }')
# shellcheck disable=SC2086
apt-get -q download $packages busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/x86_64-linux-gnu:$dir/root/lib/x86_64-linux-gnu
with() { LD_LIBRARY_PATH=$libraries "$@"; }
mkdir bin
echo program >bin/one
ln bin/one bin/two
ln bin/one bin/three
tar --sort=name -cf files.tar bin
with root/usr/bin/bsdtar --version
with root/usr/bin/bsdtar --format newc -cf from-tar.cpio @files.tar
with root/usr/bin/bsdtar --format newc -cf from-folder.cpio bin

# The modes that are in the headers (newc: 6 digits of magic, 8 of the inode, 8 of the mode).
modes() { grep -ao '070701[0-9A-Fa-f]\{16\}' "$1" | cut -c 15-22 | sort | uniq -c | awk '{ print $2 " " $1 }'; }
# unpack NAME ARCHIVE COMMAND…: what came out, and the exit code.
unpack() {
    mkdir "$1"
    name=$1
    archive=$dir/$2
    shift 2
    code=0
    (cd "$name" && with "$@" <"$archive" 2>"$dir/errors") || code=$?
    echo "$(cd "$name" && find . -type f -printf '%f %s bytes, %n links\n' | sort)
exit code $code"
}
tar_modes=$(modes from-tar.cpio)
folder=$(unpack a from-folder.cpio "$dir/root/bin/cpio" -idm --quiet)
gnu=$(unpack b from-tar.cpio "$dir/root/bin/cpio" -idm --quiet)
said=$(grep -c 'unknown file type' errors)
busybox=$(unpack c from-tar.cpio "$dir/root/bin/busybox" cpio -idm)
bsd=$(unpack d from-tar.cpio "$dir/root/usr/bin/bsdcpio" -idm)
echo "modes in the headers, from the tar: $(echo "$tar_modes" | tr '\n' ';')"
echo "from the folder, GNU cpio: $folder"
echo "from the tar, GNU cpio ($said of unknown type): $gnu"
echo "from the tar, busybox: $busybox"
echo "from the tar, bsdcpio: $bsd"
[ "$tar_modes" = "00000000 1
000001a4 2
000041ed 1
000081a4 1" ]
[ "$folder" = "one 8 bytes, 3 links
three 8 bytes, 3 links
two 8 bytes, 3 links
exit code 0" ]
[ "$gnu" = "one 8 bytes, 1 links
exit code 0" ]
[ "$said" = 2 ]
[ "$busybox" = "one 8 bytes, 1 links
exit code 1" ]
[ "$bsd" = "one 8 bytes, 1 links
three 0 bytes, 1 links
two 0 bytes, 1 links
exit code 0" ]
