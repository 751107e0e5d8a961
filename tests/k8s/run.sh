#!/usr/bin/env bash
# Checks the Kubernetes objects against their schemas, then runs their pods as processes. Needs kubectl, and root for
# the pods' mounts. The packages with the schemas come from PyPI into .k8s/, once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(kubernetes-validate==1.37.0 kubeflow-trainer-api==2.3.0)

fail() {
    printf 'k8s: error: %s\n' "$*" >&2
    exit 1
}

command -v kubectl >/dev/null || fail "no kubectl, which puts the overlays together: install it"
# A stamp is written last.
if [ "$(cat .k8s/packages 2>/dev/null)" != "${packages[*]}" ]; then
    echo "k8s: installing ${packages[*]} into .k8s/, once"
    rm -rf .k8s
    python3 -m venv .k8s || fail "python3 -m venv does not work: install Python 3 with venv (python3-venv)"
    .k8s/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}" ||
        fail "pip cannot install ${packages[*]}"
    printf '%s' "${packages[*]}" >.k8s/packages
fi
.k8s/bin/python tests/k8s/validate.py target/release/coordinator

# A network of their own, since pods listen at the ports that their templates name.
# shellcheck disable=SC2086
unshare --net --mount --pid --fork --kill-child --mount-proc sh -euc 'ip link set lo up; exec "$@"' sh \
    ${CARGO:-cargo} test --release --package relabel-tests --test k8s ${CARGOFLAGS:-} -- --include-ignored --test-threads=1
