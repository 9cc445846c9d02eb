#!/bin/sh
# Imagination at the paper's size on one GPU, in one call of under 8 minutes; results as JSON in the folder given.
# Usage: benchmarks/gpu.sh [FOLDER]
# DREAMER4_GPU_BENCH_DEVICE=cpu tries the same commands at the laptop's size without a GPU.
set -eu
out="${1:-gpu-results}"
mkdir -p "$out"
device="${DREAMER4_GPU_BENCH_DEVICE:-cuda}"
if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version --format=csv > "$out/gpu.csv"
    small="crafter" paper="paper-size" few="1" many="1 4 16" frames=16 turns=3
else
    small="laptop" paper="laptop" few="1" many="1 4" frames=2 turns=1
fi

bench() { # NAME SECONDS OPTIONS...: what fails or takes too long leaves the rest alone
    name="$1" limit="$2"
    shift 2
    echo "== $name" >&2
    timeout "$limit" dreamer4 bench imagination --device "$device" --frames "$frames" --turns "$turns" \
        --json "$out/$name.json" "$@" > "$out/$name.txt" 2>&1 || echo "$name: exit status $?" | tee -a "$out/failed.txt" >&2
    cat "$out/$name.txt"
}

# One stream and batches at the paper's size, the frames with pixels among the results; eager first, because it needs
# no compiler, and shows what the compiler and the graph are worth.
bench eager 90 --preset "$paper" --batches $few --engine eager --profile "$out"
if [ "$device" = cuda ]; then
    bench graphed 200 --preset "$paper" --batches $many --engine graphed
    bench compiled 120 --preset "$small" --batches 1 64 --engine compiled
else
    bench batched 90 --preset "$small" --batches $many --engine eager
fi
[ ! -e "$out/failed.txt" ]
