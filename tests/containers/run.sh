#!/usr/bin/env bash
# Builds the images of deploy/containers and trains in containers made of them (test.py). As root, after `make build`;
# podman, buildah and mmdebstrap come from apt-get where they are missing.
#
#   IMAGE_BUILD=outside  (the default) takes the programs from target/release, onto a base image made by mmdebstrap: no
#                        image registry is needed
#   IMAGE_BUILD=inside   has the recipes build them, on base images from a registry (DEBIAN=, RUST= name others)
#   IMAGE_CUDA=1         builds the worker's image for GPUs as well: 3 GB to fetch, 12 GB of disk
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf 'images: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

how=${IMAGE_BUILD:-outside}
case $how in inside | outside) ;; *) die "IMAGE_BUILD is inside or outside, not $how" ;; esac
[ "$(id -u)" = 0 ] || die "it wants root"
packages=(podman buildah runc catatonit mmdebstrap iproute2 python3-venv)
for program in podman buildah runc mmdebstrap ip; do
    command -v "$program" >/dev/null && continue
    say "installing ${packages[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "${packages[@]}"; } >/dev/null 2>&1 || die "apt-get could not install ${packages[*]}"
    break
done
schema=cyclonedx-python-lib[json-validation]==11.12.0
if [ "$(cat .image/packages 2>/dev/null)" != "$schema" ]; then
    mkdir -p .image
    python3 -m venv .image/python
    .image/python/bin/python -m pip install --quiet --disable-pip-version-check "$schema"
    echo "$schema" >.image/packages
fi

scratch=$(mktemp -d)
network=relabel-image-$$
tidy() {
    # Containers of a failed test, then what was made for it.
    podman ps --all --quiet --filter "label=relabel-test=$network" | xargs -r podman rm --force --time=0 >/dev/null 2>&1 || true
    ip netns delete "$network" 2>/dev/null || true
    rm -rf "$scratch" target/image
}
trap tidy EXIT
# No bridge, no iptables, no systemd: a container runs in the network that it is given, with modest limits.
cat >"$scratch/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
export CONTAINERS_CONF=$scratch/containers.conf

# A file system with nothing but a small Debian, once.
if [ "$how" = outside ]; then
    DEBIAN=localhost/relabel-debian:bookworm
    if [ ! -f .image/base.tar ]; then
        say "making a small Debian"
        mmdebstrap --quiet --format=tar --variant=minbase bookworm .image/base.tar.part
        mv .image/base.tar.part .image/base.tar
    fi
    podman image exists "$DEBIAN" || podman import --quiet .image/base.tar "$DEBIAN" >/dev/null

    # What the recipes' stage `inside` leaves in /out.
    rm -rf target/image
    mkdir -p target/image/coordinator target/image/worker/torch
    for program in coordinator worker; do
        package=$program
        [ "$program" = coordinator ] || package=relabel-worker
        install --strip "target/release/$program" "target/image/$program/$program"
        python3 deploy/containers/sbom.py "$package" >"target/image/$program/$program.cdx.json"
    done
    libtorch=$(realpath "${LIBTORCH:-.libtorch/torch}")
    cp -rL "$libtorch/lib" target/image/worker/torch/lib
    cp -rL "$libtorch/../nvidia" target/image/worker/nvidia
fi

build() { # image, recipe, arguments...
    local image=$1 recipe=$2 started=$SECONDS
    shift 2
    # Health checks are Docker's: the other format has none.
    buildah bud --quiet --layers --format docker --isolation chroot ${pull[@]+"${pull[@]}"} \
        --build-arg "IMAGE_BUILD=$how" ${DEBIAN:+--build-arg "DEBIAN=$DEBIAN"} ${RUST:+--build-arg "RUST=$RUST"} \
        --file "deploy/containers/$recipe.Dockerfile" --tag "$image" "$@" . >/dev/null
    say "built $image in $((SECONDS - started)) s"
}
pull=()
[ "$how" = inside ] || pull=(--pull-never)
build localhost/relabel-coordinator:test coordinator
build localhost/relabel-worker:test worker --target cpu
[ "${IMAGE_CUDA:-0}" = 0 ] || build localhost/relabel-worker-cuda:test worker --target cuda

ip netns add "$network"
ip -n "$network" link set lo up
.image/python/bin/python tests/containers/test.py "$network" "$scratch"
