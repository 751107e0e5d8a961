#!/usr/bin/env bash
# Runs a command on a SLURM cluster of its own: a controller and two nodes with a (pretended) GPU each, every node
# in a network namespace with its own host name and address, all on this machine.
#
#   tests/slurm/cluster.sh COMMAND [ARGUMENT...]
#
# The command finds sbatch, squeue and the others working, and the folder of the cluster's files in $CLUSTER. When it
# ends, everything ends with it: the cluster lives in a process namespace. As root; what is missing comes from apt-get.
# Inside, `cluster.sh --node NAME` starts a node again that has died, and link-NAME is its link.
set -euo pipefail

say() { printf 'cluster: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

packages=(slurmctld slurmd slurm-client munge iproute2)

install_packages() {
    local program missing=""
    for program in slurmctld slurmd sbatch munged ip; do
        command -v "$program" >/dev/null || missing=$program
    done
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "no $missing: install SLURM and munge"
    say "installing ${packages[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "${packages[@]}"; } >/dev/null 2>&1 || die "apt-get could not install ${packages[*]}"
}

# Waits until a command succeeds; for 30 s at most.
until_true() { # what, command...
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 150 ] || { tail -n 20 "$CLUSTER"/log/* >&2 || true; die "$what"; }
        sleep 0.2
    done
}

configuration() {
    cat <<CONF
ClusterName=test
SlurmctldHost=head(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential is over.
AuthInfo=socket=$CLUSTER/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool.%n
SlurmctldPidFile=$CLUSTER/slurmctld.pid
SlurmdPidFile=$CLUSTER/slurmd.%n.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld.log
SlurmdLogFile=$CLUSTER/log/slurmd.%n.log
ProctrackType=proctrack/$proctrack
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=30
KillWait=30
MinJobAge=300
GresTypes=gpu
NodeName=node1 NodeAddr=10.77.0.11 CoresPerSocket=2 RealMemory=2000 Gres=gpu:1
NodeName=node2 NodeAddr=10.77.0.12 CoresPerSocket=2 RealMemory=2000 Gres=gpu:1
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

# Starts the daemon of a node behind a link of its own: eth0 there, link-NAME here.
node() { # name
    local address pid
    address=$(awk -v name="$1" '$2 == name { print $1 }' "$CLUSTER/hosts")
    unshare --net --uts sh -c "hostname $1; while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
        ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up
        exec slurmd -D -N $1 -f $SLURM_CONF" >"$CLUSTER/log/$1.out" 2>&1 &
    pid=$!
    # Its end is no news: a test may have switched it off.
    disown
    while [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
    ip link add "link-$1" type veth peer name eth0 netns "$pid"
    ip link set "link-$1" master switch up
}

# Inside the namespaces: brings the cluster up and runs the command.
inside() {
    export SLURM_CONF=$CLUSTER/slurm.conf TMPDIR=$CLUSTER
    hostname head
    mkdir -p "$CLUSTER"/{munge,state,log}
    printf '127.0.0.1 localhost\n10.77.0.1 head\n10.77.0.11 node1\n10.77.0.12 node2\n' >"$CLUSTER/hosts"
    mount --bind "$CLUSTER/hosts" /etc/hosts

    ip link set lo up
    ip link add switch type bridge
    ip addr add 10.77.0.1/24 dev switch
    ip link set switch up

    # As on most clusters: only a job's first processes get its signals, not what they have started. The folder of
    # its own keeps two such clusters on one machine apart.
    local proctrack=linuxproc
    if [ -n "${FREEZER:-}" ]; then
        proctrack=cgroup
        mount --bind "$FREEZER" /sys/fs/cgroup/freezer
        printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n' >"$CLUSTER/cgroup.conf"
    fi
    configuration >"$CLUSTER/slurm.conf"
    # A device has to be named, or the node is taken to have no GPU.
    printf 'NodeName=node[1-2] Name=gpu File=/dev/null\n' >"$CLUSTER/gres.conf"
    dd if=/dev/urandom of="$CLUSTER/munge/key" bs=1024 count=1 status=none
    chmod 700 "$CLUSTER/munge"
    chmod 600 "$CLUSTER/munge/key"
    # Daemons of other machines' users may use the default places.
    munged --foreground --force --key-file="$CLUSTER/munge/key" --socket="$CLUSTER/munge/socket" \
        --pid-file="$CLUSTER/munge/pid" --log-file="$CLUSTER/munge/log" --seed-file="$CLUSTER/munge/seed" \
        >"$CLUSTER/log/munged.out" 2>&1 &
    until_true "munged does not answer" munge --socket="$CLUSTER/munge/socket" --no-input
    slurmctld -D -f "$SLURM_CONF" >"$CLUSTER/log/slurmctld.out" 2>&1 &
    node node1
    node node2
    # shellcheck disable=SC2016
    until_true "the nodes do not come up" sh -c '[ "$(sinfo --noheader --Node --format=%T | sort -u)" = idle ]'
    local code=0
    "$@" || code=$?
    scancel --user root 2>/dev/null || true
    return "$code"
}

case ${1:-} in
    --inside)
        shift
        inside "$@"
        exit
        ;;
    --node)
        node "$2"
        exit
        ;;
esac
[ $# -gt 0 ] || die "usage: tests/slurm/cluster.sh COMMAND [ARGUMENT...]"
[ "$(id -u)" = 0 ] || die "namespaces and munge want root"
install_packages
CLUSTER=$(mktemp -d "${TMPDIR:-/tmp}/slurm-test.XXXXXX")
export CLUSTER
if [ -d /sys/fs/cgroup/freezer ]; then
    FREEZER=/sys/fs/cgroup/freezer/$(basename "$CLUSTER")
    if mkdir "$FREEZER" 2>/dev/null; then export FREEZER; else unset FREEZER; fi
fi
code=0
unshare --net --uts --mount --pid --fork --kill-child --mount-proc "${BASH_SOURCE[0]}" --inside "$@" || code=$?
if [ "$code" -ne 0 ] && [ -n "${CI:-}" ]; then tail -n 30 "$CLUSTER"/log/*.log >&2 || true; fi
rm -rf "$CLUSTER"
# From the deepest: only an empty one can be removed.
if [ -n "${FREEZER:-}" ]; then find "$FREEZER" -depth -type d -exec rmdir {} \; 2>/dev/null || true; fi
exit "$code"
