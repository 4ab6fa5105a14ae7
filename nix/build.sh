# Makes the images of a guest in $out. image.nix puts the variables before it; it is run by bash.
#
# The same input gives the same bytes: names are sorted, times, owners and inode numbers come from
# nothing outside. Tools are called by path, and busybox's by name, so that it does not matter what
# the builder's PATH has.
set -e +u -o pipefail
export LC_ALL=C TZ=UTC
umask 022

fail() {
    echo "mkGuest: $1" >&2
    exit 1
}

# --- the files ----------------------------------------------------------------------------------

root=$PWD/root
$bb mkdir -p "$root"
for folder in dev mnt proc root run sys tmp var/tmp etc/mvm-init bin usr/bin lib/modules; do
    $bb mkdir -p "$root/$folder"
done
put_busybox() {
    $bb cp "$busybox/bin/busybox" "$1/bin/busybox"
    $bb chmod 755 "$1/bin/busybox"
}
put_busybox "$root"
$bb --list-full | while read -r applet; do
    case $applet in
    bin/busybox) ;;
    */*)
        [ -d "$root/${applet%/*}" ] || $bb mkdir -p "$root/${applet%/*}"
        $bb ln -s /bin/busybox "$root/$applet"
        ;;
    esac
done
# Also of a busybox that is told to know no /usr: it stands in the first line of many a script.
[ -L "$root/usr/bin/env" ] || $bb ln -s /bin/busybox "$root/usr/bin/env"
# A script that calls what busybox lacks would fail in the guest alone.
$bb --list >applets
for applet in env init poweroff sh $($bb grep -ho '\$bb [a-z_]*' "$scripts"/* | $bb sed 's/.* //'); do
    $bb grep -qx "$applet" applets || fail "this busybox has no $applet"
done
$bb cp "$agent/bin/mvm-guest-agent" "$root/usr/bin/mvm-guest-agent"
$bb chmod 755 "$root/usr/bin/mvm-guest-agent"
$bb cp -r "$written/etc" "$root/"
$bb chmod -R u+w "$root/etc"
for script in agent sysinit service shutdown ${networkPayload:+network-payload}; do
    $bb cp "$scripts/$script" "$root/etc/mvm-init/$script"
    $bb chmod 755 "$root/etc/mvm-init/$script"
done
if [ -n "$networkPayload" ]; then
    $bb cp "$scripts/network.json" "$root/etc/mvm/integrations.d/network.json"
    $bb chmod 644 "$root/etc/mvm/integrations.d/network.json"
fi
for script in load-modules processes; do
    $bb cp "$scripts/$script" "$root/etc/mvm-init/$script"
    $bb chmod 644 "$root/etc/mvm-init/$script"
done
# A service's text is one argument of its shell, which Linux caps at 128 KiB (MAX_ARG_STRLEN): it
# would fail in the guest, again and again.
for file in "$root"/etc/mvm-init/services/*/*; do
    size=0
    [ ! -e "$file" ] || size=$($bb wc -c <"$file")
    if [ "$size" -gt 131072 ]; then
        name=${file%/*}
        name=${name##*/}
        case $file in */run) what=command ;; *) what=preStart ;; esac
        fail "services.$name: its $what and env are $size bytes, and no more than 131072 fit a shell's \
command line: put the text into a file, such as one of pkgs.writeShellScript"
    fi
done
$bb ln -s /bin/busybox "$root/init"
$bb ln -s /run "$root/var/run"

# What the guest needs of the store.
put_store() {
    local path without=$2
    while read -r path; do
        if [ "$path" != "$without" ] && [ ! -e "$root$path" ]; then
            $bb mkdir -p "$root${path%/*}"
            $bb cp -dR "$path" "$root${path%/*}/"
        fi
    done <"$1/store-paths"
}
put_store "$closure" "$written"
put_store "$agentClosure" "$agent"

# The loader that an ELF program (64-bit, little-endian) asks for, or nothing if it is static.
loader_of() {
    local file=$1 at size count
    field() { echo $(($($bb od -A n -t "u$2" -j "$1" -N "$2" "$file"))); }
    at=$(field 32 8) size=$(field 54 2) count=$(field 56 2)
    while [ "$count" -gt 0 ]; do
        if [ "$(field "$at" 4)" -eq 3 ]; then # PT_INTERP
            # Without the zero byte at its end.
            $bb dd if="$file" bs=1 skip="$(field $((at + 8)) 8)" \
                count=$(($(field $((at + 32)) 8) - 1)) 2>/dev/null
            return
        fi
        at=$((at + size)) count=$((count - 1))
    done
}
is_elf() {
    local magic
    read -r -N 4 magic <"$1"
    [ "$magic" = $'\x7fELF' ]
}
if is_elf "$agent/bin/mvm-guest-agent"; then
    loader=$(loader_of "$agent/bin/mvm-guest-agent")
    [ -z "$loader" ] || [ -e "$root$loader" ] ||
        fail "$agent/bin/mvm-guest-agent takes $loader, which the guest does not have: it has to be linked statically"
fi

# Programs of packages are found before busybox's of the same name; but not before its shell, which
# init's scripts are written for.
for package in $packages; do
    for program in "$package"/bin/* "$package"/sbin/*; do
        name=${program##*/}
        [ -e "$program" ] && [ "$name" != sh ] && [ "$name" != busybox ] || continue
        if [ "$name" = mvm-guest-agent ]; then
            $bb cmp -s "$program" "$root/usr/bin/$name" && continue
            fail "packages: $program is another agent than the guest's; without it there is one already"
        fi
        for folder in bin sbin usr/bin usr/sbin; do
            if [ -L "$root/$folder/$name" ]; then
                case $($bb readlink "$root/$folder/$name") in
                /bin/busybox) $bb rm "$root/$folder/$name" ;;
                *) continue 2 ;; # of a package that is named before this one
                esac
            fi
        done
        $bb ln -s "$program" "$root/usr/bin/$name"
    done
done

# --- kernel and modules -------------------------------------------------------------------------

$bb mkdir -p "$out"
kernel=
for file in $kernelFiles; do
    if [ -e "$file" ]; then
        kernel=vmlinuz
        # Such is an uncompressed kernel.
        if is_elf "$file"; then kernel=vmlinux; fi
        $bb cp "$file" "$out/$kernel"
        break
    fi
done
[ -n "$kernel" ] || fail "there is no kernel among $kernelFiles"

declare -A module_file module_needs module_before built_in
aliases=
# Into the variable $name: `kernel/lib/libcrc32c.ko.xz` is libcrc32c, and `-` the same as `_`.
canonical() {
    name=${1##*/}
    name=${name%%.ko*}
    name=${name//-/_}
}
for folder in "$kernelModules"/lib/modules/*; do
    if [ ! -e "$folder/modules.dep" ]; then
        [ ! -d "$folder/kernel" ] || fail "there is no $folder/modules.dep, which depmod makes: \
the guest would get none of these modules"
        continue
    fi
    aliases=$folder/modules.alias
    while IFS=': ' read -r file needs; do
        canonical "$file"
        module_file[$name]=$folder/$file
        module_needs[$name]=$needs
    done <"$folder/modules.dep"
    while read -r file; do
        canonical "$file"
        built_in[$name]=1
    done <"$folder/modules.builtin"
    # `softdep NAME pre: A B post: C`: what has to be there before, though no symbol of it is used.
    if [ -e "$folder/modules.softdep" ]; then
        while read -r word file words; do
            [ "$word" = softdep ] || continue
            canonical "$file"
            when=
            for word in $words; do
                case $word in
                *:) when=$word ;;
                *) [ "$when" != pre: ] || module_before[$name]="${module_before[$name]} $word" ;;
                esac
            done
        done <"$folder/modules.softdep"
    fi
done

# Adds a module to $loaded, after what it depends on, unless the kernel has it built in. With
# `optional` as the second argument the guest does without if it cannot be loaded.
declare -A wanted
load() {
    local name file optional=$2 again=
    canonical "$1"
    [ -z "${built_in[$name]}" ] || return 0
    case ${wanted[$name]} in
    '') ;;
    # In its place already, and now wanted for good.
    optional) if [ -n "$optional" ]; then return 0; else again=1; fi ;;
    *) return 0 ;;
    esac
    [ -n "${module_file[$name]}" ] || [ -z "$optional" ] || return 0
    [ -n "${module_file[$name]}" ] || fail "the kernel has no module $name, neither as a file nor built in"
    wanted[$name]=${optional:-required}
    for file in ${module_before[$name]}; do
        load_optional "$file"
    done
    for file in ${module_needs[$name]}; do
        load "$file" "$optional"
    done
    [ -n "$again" ] || loaded="$loaded $name"
}
# A module by its name or an alias, such as `crypto-crc32c`: all that go by it, as modprobe does it;
# nothing, if there is none.
load_optional() {
    local name one
    canonical "$1"
    if [ -n "${module_file[$name]}" ]; then
        load "$name" optional
        return
    fi
    [ -e "$aliases" ] && [ -z "${built_in[$name]}" ] || return 0
    for one in $($bb awk -v "name=$name" \
        '$1 == "alias" { gsub("-", "_", $2); if ($2 == name) print $3 }' "$aliases"); do
        load "$one" optional
    done
}
# Puts modules into a folder, in the order in which they are to be loaded.
put_modules() {
    local into=$1 name one file optional
    shift
    loaded= wanted=()
    for one in "$@"; do
        case $one in
        optional:*) load_optional "${one#optional:}" ;;
        *) load "$one" ;;
        esac
    done
    $bb mkdir -p "$into/lib/modules" "$into/etc/mvm-init"
    : >"$into/etc/mvm-init/modules"
    for name in $loaded; do
        file=${module_file[$name]}
        case $file in
        *.ko) $bb cat "$file" ;;
        *.ko.xz) $bb xzcat "$file" ;;
        *.ko.gz) $bb zcat "$file" ;;
        *.ko.zst)
            [ -n "$zstd" ] || fail "$file takes zstd to unpack, which this package set does not have"
            "$zstd" -dcq "$file"
            ;;
        *) fail "$file is packed in a way that is not known here: xz, gz and zst are" ;;
        esac >"$into/lib/modules/$name.ko"
        optional=
        [ "${wanted[$name]}" = required ] || optional=' optional'
        echo "$name$optional" >>"$into/etc/mvm-init/modules"
    done
}
# As in crates/mvm-vmm/src/build/modules.rs. A kernel without modules has all it needs built in.
if [ ${#module_file[@]} -gt 0 ]; then
    every="virtio_pci vmw_vsock_virtio_transport $moreModules"
    every="$every optional:virtio_mmio optional:i8042 optional:atkbd"
    for name in $optionalModules; do
        every="$every optional:$name"
    done
else
    [ -z "$moreModules" ] || fail "the kernel has no modules, and these are asked for: $moreModules"
    every=
fi

# --- the images ---------------------------------------------------------------------------------

# An entry without content of an initrd: path, mode, links, major, minor. The builder may not make
# device nodes, and so none that cpio could read.
initrd_node() {
    local length=$((${#1} + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        $((0x7fff0000 + $4 * 256 + $5)) "$2" 0 0 "$3" 1 0 0 0 "$4" "$5" "$length" 0
    printf '%s\0' "$1"
    while [ $(((110 + length) % 4)) -ne 0 ]; do
        printf '\0'
        length=$((length + 1))
    done
}
# Modes, whatever the builder made of them, and times.
settle() {
    $bb find "$1" -type d -exec $bb chmod 755 {} +
    (cd "$1" && for folder in proc sys; do [ ! -e $folder ] || $bb chmod 555 $folder; done)
    (cd "$1" && for folder in tmp var/tmp; do [ ! -e $folder ] || $bb chmod 1777 $folder; done)
    [ ! -e "$1/root" ] || $bb chmod 700 "$1/root"
    $bb find "$1" -exec $bb touch -h -d @1 {} +
}
initrd() {
    settle "$1"
    {
        initrd_node dev $((0040755)) 2 0 0
        initrd_node dev/console $((0020600)) 1 5 1
        initrd_node dev/null $((0020666)) 1 1 3
        (cd "$1" && $bb find . -mindepth 1 ! -path ./dev | $bb sed 's,^\./,,' | $bb sort |
            "$cpio" --quiet -o -H newc --reproducible -R +0:+0)
    } | "$gzip" -n -9 >"$2"
}
# The small initrd that mounts a root file system of that type and hands over to it.
stage1() {
    local type=$1 stage=$PWD/stage1-$1
    $bb mkdir -p "$stage"/{bin,dev,etc/mvm-init,mnt/image,mnt/memory,mnt/root}
    put_busybox "$stage"
    $bb ln -s busybox "$stage/bin/sh"
    $bb cp "$scripts/stage1" "$stage/init"
    $bb chmod 755 "$stage/init"
    $bb cp "$scripts/load-modules" "$stage/etc/mvm-init/load-modules"
    $bb chmod 644 "$stage/etc/mvm-init/load-modules"
    echo "$type" >"$stage/etc/mvm-init/rootfs"
    # shellcheck disable=SC2086
    put_modules "$stage" ${every:+$every virtio_blk $type overlay}
    initrd "$stage" "$out/initrd-$type"
}
erofs() {
    "$mkfsErofs" --quiet -zlz4hc -T1 -U "$uuid" --all-root "$out/rootfs.erofs" "$1"
}
# Without a journal, since it is never written in a guest.
#
# By debugfs, one file after the other: mke2fs -d numbers the inodes as the builder's own file
# system happens to list them, and takes over its owners and times.
ext4_features=extent,filetype,dir_index,sparse_super,large_file,huge_file,dir_nlink,extra_isize,64bit
ext4() {
    local mode size path name folder target blocks=0 inodes=64 at=/
    # Mode in hexadecimal, size, and PATH, or of a link 'PATH' -> 'TARGET'.
    (cd "$1" && $bb find . -mindepth 1 -print0 | $bb sort -z |
        $bb xargs -0 "$bb" stat -c '%f %s %N') >files
    while read -r mode size _; do
        inodes=$((inodes + 1))
        case $((0x$mode & 0170000)) in
        $((0100000))) ;;
        # A short link is in its inode.
        $((0120000))) size=$((size < 60 ? 0 : 1)) ;;
        *) size=1 ;;
        esac
        blocks=$((blocks + (size + 4095) / 4096))
    done <files
    # A name takes up to 264 bytes of its folder; then there are the file system's own blocks.
    blocks=$((blocks + blocks / 32 + inodes / 8 + 64))
    # None of the builder's own defaults.
    printf '[fs_types]\next4 = {\ninode_size = 256\n}\nsmall = {\ninode_size = 256\n}\n' >mke2fs.conf
    export E2FSPROGS_FAKE_TIME=1 MKE2FS_CONFIG=$PWD/mke2fs.conf
    : >"$out/rootfs.ext4"
    "$mke2fs" -q -F -t ext4 -b 4096 -I 256 -N "$inodes" -m 0 -U "$uuid" \
        -E "hash_seed=$uuid,root_owner=0:0" -O none,$ext4_features "$out/rootfs.ext4" "$blocks"
    while read -r mode _ path; do
        case $path in *[\"\\]*) fail "a name that debugfs cannot take: $path" ;; esac
        target=
        case $path in
        "'"*) target=${path##*"' -> '"} path=${path#\'} path=${path%%"' -> '"*} target=${target%\'} ;;
        esac
        path=${path#.}
        name=${path##*/} folder=${path%/*}/
        # Names alone: a path with one slash is not taken for one from the root.
        [ "$at" = "$folder" ] || echo "cd \"$folder\""
        at=$folder
        case $((0x$mode & 0170000)) in
        $((0120000)))
            echo "symlink \"$name\" \"$target\""
            continue
            ;;
        $((0040000))) echo "mkdir \"$name\"" ;;
        *) echo "write \"$1$path\" \"$name\"" ;;
        esac
        printf 'set_inode_field "%s" mode 0%o\n' "$name" $((0x$mode))
    done <files >commands
    "$debugfs" -w -f commands "$out/rootfs.ext4" >said 2>&1 || fail "debugfs: $($bb cat said)"
    # It goes on after an error, and ends well.
    if $bb grep -vE '^(debugfs|Allocated inode)' said >&2; then fail 'debugfs failed, see above'; fi
}

uuid=6d766d00-6775-4573-8000-000000000001
first_initrd= first_rootfs=null
for format in $formats; do
    case $format in
    initrd)
        # shellcheck disable=SC2086
        put_modules "$root" $every
        initrd "$root" "$out/initrd"
        $bb rm -r "$root/lib/modules"
        ;;
    *)
        stage1 "$format"
        put_modules "$root"
        settle "$root"
        "$format" "$root"
        ;;
    esac
    if [ -z "$first_initrd" ]; then
        case $format in
        initrd) first_initrd=initrd ;;
        *)
            first_initrd=initrd-$format
            first_rootfs="{
    \"file\": \"rootfs.$format\",
    \"type\": \"$format\"
  }"
            ;;
        esac
    fi
done

# --- the manifest, as `mvmctl image build` writes it ----------------------------------------------

read -r _ version profile <<<"$("$agent/bin/mvm-guest-agent" --version)"
profile=${profile#(}
cat_manifest() {
    printf '{\n  "version": 1,\n  "kernel": "%s",\n  "initrd": "%s",\n' "$kernel" "$first_initrd"
    printf '  "rootfs": %s,\n  "cmdline": "init_on_free=1",\n' "$first_rootfs"
    printf '  "agent": {\n    "version": "%s",\n    "profile": "%s",\n    "port": %s\n  }\n}\n' \
        "$version" "${profile%)}" "$port"
}
cat_manifest >"$out/manifest.json"
