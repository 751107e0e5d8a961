#!/usr/bin/env bash
# Compares the worker with PyTorch and its packages, live: builds what is compared, then runs every tests/parity/*.py.
# Ends with a line a script, and with 1 if one of them failed.
#
# The packages come from PyPI into .parity/, once: 3 GB, for torch brings CUDA along. PARITY_PYTHON=/path/to/python
# takes another Python that has them instead. PARITY_ONLY="labels models" runs only these, PARITY_QUICK=1 compares
# one network of each family in place of all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(torch==2.11.0 torchvision==0.26.0 timm==1.0.31 adamp==0.3.0 numpy==2.4.6 pillow==13.0.0 safetensors==0.8.0)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

fail() {
    printf 'parity: %s\n' "$*" >&2
    exit 1
}

# Installs into .parity/ unless the very same packages are there: a stamp is written last.
install() {
    local stamp=.parity/packages wanted=${packages[*]}
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "parity: installing ${packages[*]} into .parity/, once"
        rm -rf .parity
        python3 -m venv .parity || fail "python3 -m venv does not work: install Python 3.11 or later with venv (python3-venv)"
        .parity/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}" ||
            fail "pip cannot install ${packages[*]}: it needs Python 3.11 or later and a package index within reach;" \
                "or set PARITY_PYTHON to a Python that has them"
        echo "$wanted" >"$stamp"
    fi
}

if [ -n "${PARITY_PYTHON:-}" ]; then
    python=$PARITY_PYTHON
else
    install
    python=.parity/bin/python
fi
"$python" -c 'import torch, torchvision, timm, adamp, numpy, PIL, safetensors' ||
    fail "$python lacks one of ${packages[*]}; leave PARITY_PYTHON out to have them installed"

# One call, so that the features of the dependencies are the same as in the other targets.
read -ra cargoflags <<<"${CARGOFLAGS:-}"
"${CARGO:-cargo}" build --release --workspace --bins --example parity ${cargoflags[@]+"${cargoflags[@]}"}

summary=() failed=0
for script in tests/parity/*.py; do
    name=$(basename "$script" .py)
    if [ -n "${PARITY_ONLY:-}" ] && [[ " $PARITY_ONLY " != *" $name "* ]]; then
        continue
    fi
    printf '\n== %s\n' "$name"
    started=$SECONDS
    result=ok
    archs=()
    if [ -n "${PARITY_QUICK:-}" ]; then
        case $name in
        models) archs=(--archs resnet18 resnext50_32x4d efficientnet_b0 rexnet_100 script) ;;
        weights) archs=(--archs resnet18) ;;
        esac
    fi
    "$python" "$script" ${archs[@]+"${archs[@]}"} --worker target/release/worker --program target/release/examples/parity 2>&1 |
        tee "$logs/$name" || { result=FAILED failed=1; }
    summary+=("$(printf '%-12s %-7s %4d s  %s' "$name" "$result" $((SECONDS - started)) "$(tail -n 1 "$logs/$name")")")
done
[ ${#summary[@]} -gt 0 ] || fail "PARITY_ONLY names none of tests/parity/*.py"

printf '\n== parity\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
