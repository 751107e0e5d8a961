#!/usr/bin/env bash
# What can only be checked on a machine with an NVIDIA GPU: `make gpu-check`. A line a check: ok, FAILED, or not run and why.
# Ends with 1 if something that could run has failed.
#
# Nothing is built here: on a machine without Rust the programs that were built elsewhere are run as they are, from
# target/release or BIN=FOLDER. libtorch is the one that they were built with, or that of the Python environment with
# torch 2.11.0+cu130 in PYTHON (python3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=${BIN:-target/release}
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

say() { # word, check, what was found
    printf '%-7s  %s: %s\n' "$1" "$2" "$3"
    if [ "$1" = FAILED ]; then failed=1; fi
}

for program in worker coordinator examples/gpu_check; do
    if [ ! -x "$bin/$program" ]; then
        echo "gpu-check: $bin/$program is not there: build it with make gpu-check on a machine with Rust, or say BIN=FOLDER" >&2
        exit 2
    fi
done

# The programs find the libtorch of the machine that built them; elsewhere, that of Python.
if ! "$bin/worker" --version >/dev/null 2>&1; then
    torch=$("$python" -c 'import torch; print(torch.__path__[0])' 2>/dev/null) || torch=
    if [ -z "$torch" ]; then
        echo "gpu-check: neither the libtorch that the programs were built with nor $python -c 'import torch' is there" >&2
        exit 2
    fi
    export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    "$bin/worker" --version >/dev/null || exit 2
fi

# One GPU against the CPU. (With --cpu this program tries its checks where there is none.)
CUBLAS_WORKSPACE_CONFIG=:4096:8 "$bin/examples/gpu_check" | tee "$scratch/check"
if [ "${PIPESTATUS[0]}" -ne 0 ]; then failed=1; fi
say "not run" "label pooling on the GPU" "label maps are pooled on the CPU"

several=("two ranks on one GPU by NCCL" "a rank of two is killed")
if grep -q '^not run  20 steps' "$scratch/check"; then
    reason=$(sed -n 's/^not run  20 steps in fp32: //p' "$scratch/check")
    for check in "${several[@]}"; do say "not run" "$check" "$reason"; done
    exit "$failed"
fi
if grep -q '^not run  NCCL' "$scratch/check"; then
    reason=$(sed -n 's/^not run  NCCL: //p' "$scratch/check")
    for check in "${several[@]}"; do say "not run" "$check" "$reason"; done
    exit "$failed"
fi

"$bin/worker" synth "$scratch/data" --classes 4 --size 64x48 --train 512 --val 32 >/dev/null || exit 1

# A run of two ranks that share GPU 0; "$1" names it, "$2" is a number of steps after which rank 1 is killed, or empty.
two_ranks() {
    local run=$scratch/$1 port lost=$2 workers=()
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || echo 47470)
    "$bin/coordinator" --workers 2 --min-workers 1 --listen "127.0.0.1:$port" --run-dir "$run" \
        --data.data_path "$scratch/data" --data.relabel.use true --data.relabel.path "$scratch/data/labels" \
        --data.image_size 32 --model.arch resnet18 --optim.batch_size 16 --optim.epochs 2 --optim.lr.init 0.02 \
        --compute.seed 5 --compute.precision fp32 --util.print_freq 1 >"$run.out" 2>"$run.log" &
    local coordinator=$!
    for rank in 0 1; do
        NCCL_MULTI_RANK_GPU_ENABLE=1 "$bin/worker" --rank "$rank" --gpu 0 --coordinator "http://127.0.0.1:$port" \
            >"$run.worker-$rank" 2>&1 &
        workers+=($!)
    done
    if [ -n "$lost" ]; then
        for _ in $(seq 600); do
            [ "$(wc -l 2>/dev/null <"$run/metrics.jsonl" || echo 0)" -ge "$lost" ] && break
            sleep 0.1
        done
        kill -KILL "${workers[1]}"
    fi
    wait "$coordinator"
    local ended=$?
    wait "${workers[0]}"
    return "$ended"
}

if two_ranks whole "" && grep -q 'by NCCL' "$scratch/whole.log"; then
    say ok "${several[0]}" "$(grep -o 'generation 1: [^,]*' "$scratch/whole.log" | head -n 1), $(tail -n 4 "$scratch/whole.log" | head -n 1)"
else
    say FAILED "${several[0]}" "$(tail -n 1 "$scratch/whole.log"); $(tail -n 1 "$scratch/whole.worker-0")"
fi
if two_ranks killed 5 && grep -q 'by NCCL' "$scratch/killed.log" && grep -q 'generation 2' "$scratch/killed.log"; then
    say ok "${several[1]}" "$(grep -o 'generation 2: .*' "$scratch/killed.log" | head -n 1)"
else
    say FAILED "${several[1]}" "$(tail -n 1 "$scratch/killed.log"); $(tail -n 1 "$scratch/killed.worker-0")"
fi
exit "$failed"
