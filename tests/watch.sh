#!/usr/bin/env bash
# Tests what people and their tools see of a run, with the tools themselves: TensorBoard reads the event files back, Prometheus
# scrapes and promtool checks, headless Chromium looks at the dashboard. Ends with a line a test, and with 1 if one failed.
#
# Needs chromium, chromium-driver and prometheus, which as root come from Debian's packages, and npm; TensorBoard and axe-core
# come from PyPI and npm into .watch/, once. WATCH_ONLY="dashboard" runs only these; screenshots go to target/dashboard.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(tensorboard==2.21.0 pillow==13.0.0)
axe=4.14.1

fail() {
    printf 'watch: %s\n' "$*" >&2
    exit 1
}

# A program, and the package that it comes in.
need() {
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "watch: installing $2 with apt-get"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2"; } >/dev/null 2>&1 || true
    fi
    command -v "$1" >/dev/null || fail "no $1: install it (Debian, Ubuntu: apt-get install $2)"
}

# Packages into .watch/, unless the very same are there: a stamp is written last.
install() {
    local stamp=.watch/packages wanted="${packages[*]} axe-core@$axe" part
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "watch: installing $wanted into .watch/, once"
    rm -rf .watch
    python3 -m venv .watch || fail "python3 -m venv does not work: install Python 3.11 or later with venv (python3-venv)"
    .watch/bin/python -m pip install --quiet --disable-pip-version-check "${packages[@]}" ||
        fail "pip cannot install ${packages[*]}: it needs Python 3.11 or later and a package index within reach"
    part=$(mktemp -d)
    (cd "$part" && npm pack --silent "axe-core@$axe" >/dev/null && tar -xzf axe-core-*.tgz package/axe.min.js) ||
        fail "npm cannot fetch axe-core@$axe: it needs a registry within reach"
    mv "$part/package/axe.min.js" .watch/
    rm -rf "$part"
    echo "$wanted" >"$stamp"
}

need chromium chromium
need chromedriver chromium-driver
need prometheus prometheus
need promtool prometheus
need npm npm
install

read -ra cargoflags <<<"${CARGOFLAGS:-}"
"${CARGO:-cargo}" build --release --workspace --bins ${cargoflags[@]+"${cargoflags[@]}"}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
summary=() failed=0
run() { # name, command...
    local name=$1 started=$SECONDS result=ok
    shift
    if [ -n "${WATCH_ONLY:-}" ] && [[ " $WATCH_ONLY " != *" $name "* ]]; then
        return
    fi
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$logs/$name" || { result=FAILED failed=1; }
    summary+=("$(printf '%-12s %-7s %4d s  %s' "$name" "$result" $((SECONDS - started)) "$(tail -n 1 "$logs/$name")")")
}

run events .watch/bin/python tests/metrics/event_files.py --bin target/release
run scrape .watch/bin/python tests/metrics/scrape.py --bin target/release
run dashboard .watch/bin/python tests/dashboard/run.py --bin target/release --axe .watch/axe.min.js --out target/dashboard
[ ${#summary[@]} -gt 0 ] || fail "WATCH_ONLY names none of events, scrape and dashboard"

printf '\n== watch\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
