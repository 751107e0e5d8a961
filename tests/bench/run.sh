#!/usr/bin/env bash
# Builds what is timed, installs the peers into .bench/, once, and runs bench.py with the arguments given, or growth.py
# where the first of them is --growth.
# BENCH_PYTHON=/path/to/python takes another Python that has the packages.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

packages=(torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 pillow==13.0.0 nvidia-dali-cuda130==2.4.0 simplejpeg==1.9.0
    scikit-image==0.26.0 matplotlib==3.11.2)

# Installs unless the very same packages are there: a stamp is written last.
install() {
    local stamp=.bench/packages wanted=${packages[*]}
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "bench: installing ${packages[*]} into .bench/, once"
        rm -rf .bench
        python3 -m venv .bench
        .bench/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}"
        echo "$wanted" >"$stamp"
    fi
}

if [ -z "${BENCH_PYTHON:-}" ]; then
    install
    BENCH_PYTHON=.bench/bin/python
fi
# One call, so that the features of the dependencies are the same as in the other targets.
read -ra cargoflags <<<"${CARGOFLAGS:-}"
"${CARGO:-cargo}" build --release --workspace --bins --example bench --example all_reduce \
    ${cargoflags[@]+"${cargoflags[@]}"}
if [ "${1:-}" = --growth ]; then
    exec "$BENCH_PYTHON" tests/bench/growth.py "${@:2}"
fi
exec "$BENCH_PYTHON" tests/bench/bench.py "$@"
