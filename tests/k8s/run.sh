#!/usr/bin/env bash
# Holds the objects of deploy/k8s and of `coordinator submit k8s` to the schemas of Kubernetes, JobSet and Kubeflow
# Trainer, then runs their pods as processes. As root; kubectl comes from apt-get where it is missing, the schemas from
# PyPI into .k8s/, once. `make k8s-test`, after `make build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(kubernetes-validate==1.37.0 kubeflow-trainer-api==2.3.0 pyyaml==6.0.4)

if ! command -v kubectl >/dev/null || ! command -v ip >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        kubernetes-client iproute2; } >/dev/null 2>&1 || { echo "k8s: error: no kubectl or no ip: install kubernetes-client and iproute2" >&2; exit 1; }
fi
if [ "$(cat .k8s/packages 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf .k8s
    python3 -m venv .k8s
    .k8s/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" >.k8s/packages
fi
.k8s/bin/python tests/k8s/validate.py target/release/coordinator
read -ra cargoflags <<<"${CARGOFLAGS:-}"
# All pods share one network, and the ports in the objects may be taken in this machine's.
runner='["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]'
"${CARGO:-cargo}" test --release --workspace ${cargoflags[@]+"${cargoflags[@]}"} --test k8s \
    --config "target.'cfg(all())'.runner = $runner" -- --include-ignored --test-threads=1
