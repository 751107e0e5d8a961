#!/usr/bin/env bash
# Makes sure of what the build needs and cargo cannot fetch: libtorch, cmake and nasm.
# Idempotent: a second run only checks, in a second. What it fetches lands in .libtorch/ and .tools/ of
# this checkout; as root, cmake and nasm may also come from apt-get.
#
#   LIBTORCH=/path   a libtorch or torch package folder of your own; it is checked and used
#   PYTHON=/path     the Python whose pip is used (default: python3)
set -euo pipefail

torch_version=2.11.0
cudart_version=13.0.96   # what the torch wheel was linked against; only these two CUDA wheels are
cupti_version=13.0.85    # needed to load libtorch_cpu, the other 2.5 GB only on a GPU

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}

# Where pip has no such option yet it ignores its variable.
export PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# The version of the torch package or libtorch archive unpacked at $1, without its +cu130 suffix.
version_at() {
    local found=""
    if [ -f "$1/version.py" ]; then
        found=$(sed -n "s/^__version__ = '\([^']*\)'.*/\1/p" "$1/version.py")
    elif [ -f "$1/build-version" ]; then
        found=$(cat "$1/build-version")
    fi
    printf '%s' "${found%%+*}"
}

check_libtorch() { # folder, where it came from
    local found
    [ -f "$1/lib/libtorch_cpu.so" ] || die "$2: there is no lib/libtorch_cpu.so in $1"
    found=$(version_at "$1")
    [ "$found" = "$torch_version" ] ||
        die "$2: $1 holds libtorch ${found:-of an unknown version}; this project needs $torch_version" \
            "(unset LIBTORCH to have it fetched, or: pip install torch==$torch_version)"
}

need_compiler() {
    [ "$(uname -s)" = Linux ] || die "this is built and tested on Linux alone, not on $(uname -s)"
    command -v cargo >/dev/null || die "no cargo: install a Rust toolchain (https://rustup.rs)"
    local compiler
    for compiler in "${CC:-cc}" "${CXX:-c++}"; do
        # Split on purpose: CXX may be "ccache c++".
        # shellcheck disable=SC2086
        command -v ${compiler%% *} >/dev/null ||
            die "no ${compiler%% *}: install a C++ compiler (Debian, Ubuntu: apt-get install build-essential)"
    done
    # A compiler without the C++ library's headers is a common half-installation.
    # shellcheck disable=SC2086
    printf '#include <string>\nint main() { return std::string().size(); }\n' |
        ${CXX:-c++} -x c++ - -o /dev/null 2>/dev/null ||
        die "${CXX:-c++} cannot build a C++ program: install its headers and linker" \
            "(Debian, Ubuntu: apt-get install build-essential)"
    command -v make >/dev/null || die "no make: install it (Debian, Ubuntu: apt-get install build-essential)"
}

need_pip() {
    "$python" -m pip --version >/dev/null 2>&1 ||
        die "$python has no pip: install it (Debian, Ubuntu: apt-get install python3-pip)"
}

libtorch() {
    if [ -n "${LIBTORCH:-}" ] && [ "$(realpath -m "$LIBTORCH")" != "$(realpath -m "$root/.libtorch/torch")" ]; then
        case $LIBTORCH in /*) ;; *) die "LIBTORCH: $LIBTORCH is not an absolute path, which the build needs" ;; esac
        check_libtorch "$LIBTORCH" "LIBTORCH"
        say "libtorch $torch_version: yours, at $LIBTORCH"
        return
    fi
    local here="$root/.libtorch"
    if [ -e "$here/torch/lib/libtorch_cpu.so" ]; then
        [ "$(version_at "$here/torch")" = "$torch_version" ] && return
        say ".libtorch holds libtorch $(version_at "$here/torch"), not $torch_version: making it again"
    fi
    command -v "$python" >/dev/null ||
        die "no $python: install Python 3 with pip (Debian, Ubuntu: apt-get install python3 python3-pip)"

    # A full PyTorch of the right version in this Python serves as it is. Its metadata is read
    # rather than the package imported: that would take seconds and run its code.
    local installed
    installed=$("$python" -c 'import importlib.metadata as m, sys
try:
    d = m.distribution("torch")
except m.PackageNotFoundError:
    sys.exit()
if d.version.split("+")[0] == sys.argv[1]:
    print(d.locate_file("torch"))' "$torch_version")
    rm -rf "$here"
    mkdir -p "$here"
    if [ -n "$installed" ] && [ -f "$installed/lib/libtorch_cpu.so" ]; then
        ln -s "$installed" "$here/torch"
        say "libtorch $torch_version: the PyTorch of $python"
        return
    fi

    need_pip
    say "fetching libtorch $torch_version from the torch wheel (530 MB)"
    local part="$here.part"
    rm -rf "$part"
    # Only the libraries in the wheel are used, so it does not matter that it is another Python's: naming
    # one makes every Python with a pip serve.
    "$python" -m pip install --quiet --no-deps --no-compile --target "$part" \
        --python-version 3.12 --only-binary=:all: \
        "torch==$torch_version" "nvidia-cuda-runtime==$cudart_version" "nvidia-cuda-cupti==$cupti_version" || {
        rm -rf "$part"
        die "pip could not fetch torch $torch_version: its lines above say why. Where the package index is out of" \
            "reach, unpack libtorch $torch_version yourself and set LIBTORCH to it"
    }
    rmdir "$here"
    mv "$part" "$here"
    check_libtorch "$here/torch" ".libtorch"
}

# Puts cmake into .tools/bin, where .cargo/config.toml looks for it: the system's, else pip's, else apt's.
cmake_tool() {
    local bin="$root/.tools/bin" packages="$root/.tools/python" path
    "$bin/cmake" --version >/dev/null 2>&1 && return
    mkdir -p "$bin"
    rm -f "$bin/cmake"
    if path=$(command -v cmake); then
        ln -s "$path" "$bin/cmake"
        return
    fi
    say "fetching cmake"
    if "$python" -m pip install --quiet --target "$packages" cmake 2>/dev/null && [ -x "$packages/bin/cmake" ]; then
        # pip's launcher finds its package only with PYTHONPATH set.
        printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" "$@"\n' "$packages" "$packages/bin/cmake" >"$bin/cmake"
        chmod +x "$bin/cmake"
        return
    fi
    apt_install cmake && ln -s "$(command -v cmake)" "$bin/cmake"
}

apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $1 with apt-get"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$1"; } >/dev/null 2>&1 || true
    command -v "$1" >/dev/null
}

need_compiler
libtorch
cmake_tool || die "no cmake, which builds libjpeg-turbo: install it (Debian, Ubuntu: apt-get install cmake)"
# libjpeg-turbo's build finds nasm on the PATH, and does without where it isn't.
[ "$(uname -m)" != x86_64 ] || command -v nasm >/dev/null || apt_install nasm ||
    say "warning: no nasm, so JPEG decoding is built without SIMD and is about three times slower" \
        "(Debian, Ubuntu: apt-get install nasm, then: cargo clean --release -p turbojpeg-sys)"
