#!/bin/sh
# Slurm 22.05.8 (Debian 12's 22.05.8-4+deb12u3): `sbatch --dependency=singleton`, and a node that does not
# answer.
#
# Seen:     a job that is cancelled on a node that does not answer is COMPLETING, and runs on. The next job
#           of its name and user does not wait for it: it begins at once on another node, and both run.
# Guessed:  it waits: "this job can begin execution after any previously launched jobs sharing the same job
#           name and user have terminated" (sbatch(1)).
# Matters:  whoever takes `singleton` for the promise that what has a name runs once, such as a VM or
#           whatever writes to one place, has it twice after the `scancel` of a lost node's job.
#
# A slurmd that is stopped (SIGSTOP) stands for a node that does not answer. Loopback alone, ports 16817 to
# 16819; as root, as which Slurm's daemons run.
set -eu
folder=$(mktemp -d)
slurm=$folder/root
pids=
end() {
    for pid in $pids; do kill -CONT "$pid" 2>/dev/null && kill -KILL "$pid"; done
    # The jobs, and what looks after each.
    while read -r _ job parent; do kill -KILL "$parent" "$job" || :; done <"$folder/job" 2>/dev/null
    sleep 1
    rm -rf "$folder"
}
trap end EXIT

touch "$folder/job"
mkdir "$folder/debs" "$folder/munge" "$folder/state" "$folder/spool-a" "$folder/spool-b" "$folder/no-cgroups"
chmod 755 "$folder"
version=22.05.8-4+deb12u3
# The programs with all that they need, unpacked here; nothing is installed.
packages=$(apt-get -s -o Dir::State::status=/dev/null --no-install-recommends install \
    "slurmd=$version" "slurmctld=$version" "slurm-client=$version" |
    awk '/^Inst/ { gsub(/[()]/, "", $3); print $2 "=" $3 }' |
    grep -E '^(slurm|munge|libmunge|libhwloc|liblua)')
# shellcheck disable=SC2086
(cd "$folder/debs" && apt-get -q download -o APT::Sandbox::User=root $packages >/dev/null 2>&1)
for package in "$folder"/debs/*.deb; do dpkg -x "$package" "$slurm"; done
libraries=$slurm/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH="$libraries:$libraries/slurm-wlm" SLURM_CONF="$folder/slurm.conf"
export PATH="$slurm/usr/sbin:$slurm/usr/bin:$PATH"
cat >"$SLURM_CONF" <<END
ClusterName=finding
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
AuthInfo=socket=$folder/munge/socket
PluginDir=$libraries/slurm-wlm
StateSaveLocation=$folder/state
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdSpoolDir=$folder/spool-%n
SlurmdPidFile=$folder/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
NodeName=a NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=16818 CPUs=2
NodeName=b NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=16819 CPUs=2
PartitionName=all Nodes=a,b Default=YES
END
printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=%s/no-cgroups\n' "$folder" >"$folder/cgroup.conf"
head -c 128 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --foreground --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" >"$folder/log-munged" 2>&1 &
pids="$pids $!"
slurmctld-wlm -D >"$folder/log-ctld" 2>&1 &
pids="$pids $!"
for node in a b; do
    slurmd-wlm -D -N $node -d "$slurm/usr/sbin/slurmstepd-wlm" >"$folder/log-$node" 2>&1 &
    slurmd_b=$!
    pids="$pids $slurmd_b"
done

# until TEXT COMMAND…: waits a minute for a command to print just that.
until_is() {
    text=$1
    shift
    for _ in $(seq 60); do
        [ "$("$@" 2>/dev/null)" != "$text" ] || return 0
        sleep 1
    done
    echo "not \"$text\": $("$@" 2>&1)"
    exit 1
}
cat >"$folder/script" <<END
#!/bin/sh
echo "\$SLURMD_NODENAME \$\$ \$PPID" >>$folder/job
exec sleep 1000
END
job() { sbatch --parsable --job-name=one --dependency=singleton --output=/dev/null "$@" "$folder/script"; }

until_is "a idle
b idle" sinfo -h -N -o '%N %t'
slurmctld-wlm -V
first=$(job --nodelist=b)
until_is "$first one RUNNING b" squeue -h -o '%i %j %T %N'
until_is 1 grep -c . "$folder/job"
kill -STOP "$slurmd_b"
scancel "$first"
second=$(job)
until_is "$first COMPLETING b
$second RUNNING a" sh -c "squeue -h -o '%i %T %N' | sort"
until_is 2 grep -c . "$folder/job"
squeue -o '%i %j %T %N'
while read -r node pid _; do
    kill -0 "$pid" || { echo "the job on $node does not run: it is no longer so"; exit 1; }
    echo "on $node the job \`one\` runs: $(cat /proc/$pid/comm)"
done <"$folder/job"
