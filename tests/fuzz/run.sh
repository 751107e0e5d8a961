#!/usr/bin/env bash
# Fuzzes what reads files, peers and options, one target after the other, with libFuzzer on a stable toolchain:
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]     60 seconds for each of all targets
#   tests/fuzz/run.sh replay TARGET FILE        one input, with the backtrace of its fault
#
# What is found grows from run to run in target/fuzz/corpus; what is committed is in tests/fuzz/corpus. Exits with 1
# where a target failed, and says how to replay it. FUZZ_JOBS=N runs N processes of a target at a time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

targets=(label_map pickle jpeg packed journal config frames wire)
fuzz_version=0.13.2
tool=.tools/cargo-fuzz/bin/cargo-fuzz
out=target/fuzz

die() { printf 'fuzz: error: %s\n' "$*" >&2; exit 2; }

# Folders of files to begin with: the committed corpus, and test data that the target names.
seeds() {
    printf '%s\n' "tests/fuzz/corpus/$1"
    grep -o 'seeds: &\[[^]]*\]' "tests/fuzz/targets/src/$1.rs" | grep -o '"[^"]*"' | tr -d '"' || true
}

build() {
    if [ "$("$tool" --version 2>/dev/null)" != "cargo-fuzz $fuzz_version" ]; then
        CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install cargo-fuzz --version "$fuzz_version" --locked --quiet --root .tools/cargo-fuzz ||
            die "cargo-fuzz could not be installed"
    fi
    # A cmake that has libjpeg-turbo say where it has been (coverage.c); CFLAGS would reach the build scripts as well.
    local real=${CMAKE:-$PWD/.tools/bin/cmake} flags='-O2 -DNDEBUG -fsanitize-coverage=trace-pc'
    cat > "$out/cmake" << EOF
#!/bin/sh
[ "\$1" = --build ] && exec "$real" "\$@"
exec "$real" "\$@" "-DCMAKE_C_FLAGS_RELEASE=$flags" "-DCMAKE_C_FLAGS_RELWITHDEBINFO=$flags" \
    "-DCMAKE_EXE_LINKER_FLAGS=$PWD/$out/coverage.o -Wl,--wrap=__sanitizer_cov_trace_pc"
EOF
    chmod +x "$out/cmake"
    # The programs that come with it want what it calls, too.
    "${CC:-cc}" -c -O1 tests/fuzz/coverage.c -o "$out/coverage.o"
    # Without a sanitizer there is nothing that a stable toolchain lacks: all but a few blocks of the code is safe
    # Rust, whose faults are panics.
    CMAKE=$PWD/$out/cmake "$tool" fuzz build --fuzz-dir tests/fuzz --sanitizer none --target-dir "$out" \
        2> "$out/build.log" || { tail -n 40 "$out/build.log" >&2; die "the targets do not build"; }
}

program() { printf '%s\n' "$out"/*/release/"$1" | head -n 1; }

# A limit on memory in MB beside the targets' own count: that of C code, and of libtorch, which they do not see.
limits=(-timeout=20 -rss_limit_mb=4096)

fuzz() { # target, seconds
    local target=$1 seconds=$2 corpus=$out/corpus/$1 log=$out/$1.log extra=()
    mkdir -p "$corpus" "$out/artifacts/$target"
    mapfile -t extra < <(seeds "$target")
    if [ "${FUZZ_JOBS:-1}" -gt 1 ]; then extra+=("-fork=$FUZZ_JOBS" -ignore_crashes=0); fi
    "$(program "$target")" "$corpus" "${extra[@]}" "${limits[@]}" -max_total_time="$seconds" -max_len=16384 \
        -artifact_prefix="$out/artifacts/$target/" -print_final_stats=1 > "$log" 2>&1
}

if [ "${1:-}" = replay ]; then
    [ $# -eq 3 ] || die "wanted: replay TARGET FILE"
    mkdir -p "$out"
    build
    RUST_BACKTRACE=1 exec "$(program "$2")" "${limits[@]}" "$3"
fi

seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "SECONDS is $seconds, but it takes a whole number of at least 1"
if [ $# -gt 1 ]; then
    known=" ${targets[*]} "
    targets=("${@:2}")
    for target in "${targets[@]}"; do
        [[ $known == *" $target "* ]] || die "there is no target $target, but these:$known"
    done
fi

mkdir -p "$out"
started=$SECONDS
build
printf 'built in %d s\n%-10s %12s %10s %8s %8s\n' $((SECONDS - started)) target inputs inputs/s corpus crashes
failed=()
for target in "${targets[@]}"; do
    touch "$out/.began"
    fuzz "$target" "$seconds" && crashed=0 || crashed=1
    found=$(find "$out/artifacts/$target" -type f -newer "$out/.began" | sort)
    inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$target.log" | tail -n 1)
    rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$out/$target.log" | tail -n 1)
    # A run that ends at once, as one whose seed is a fault, has no statistics.
    printf '%-10s %12s %10s %8d %8d\n' "$target" "${inputs:-?}" "${rate:-?}" \
        "$(find "$out/corpus/$target" -type f | wc -l)" "$(grep -c . <<< "$found" || true)"
    if [ "$crashed" = 1 ] || [ -n "$found" ]; then failed+=("$target"); fi
done

for target in "${failed[@]}"; do
    printf '\nfuzz: FAILED: %s; from %s:\n' "$target" "$out/$target.log" >&2
    grep -E -A 3 "panicked at|ERROR: libFuzzer|memory allocation of|overflow" "$out/$target.log" | head -n 12 >&2 || true
    find "$out/artifacts/$target" -type f | while read -r file; do
        printf 'replay: tests/fuzz/run.sh replay %s %s\n' "$target" "$file" >&2
    done
done
[ ${#failed[@]} -eq 0 ]
