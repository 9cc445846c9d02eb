#!/bin/sh
# Imagination and training at the paper's size on one GPU, in under 8 minutes; results as JSON in the folder.
# Usage: benchmarks/gpu.sh [FOLDER]
# DREAMER4_GPU_BENCH_DEVICE=cpu tries the same commands at the laptop's size without a GPU, and without limits of time.
set -eu
out="${1:-gpu-results}"
mkdir -p "$out"
device="${DREAMER4_GPU_BENCH_DEVICE:-cuda}"
if [ "$device" = cuda ]; then
    nvidia-smi --query-gpu=name,driver_version --format=csv > "$out/gpu.csv"
    small="crafter" paper="paper-size" few="1" many="1 4 16" frames=16 turns=3
    model="minecraft" rows=""
else
    small="laptop" paper="laptop" few="1" many="1 4" frames=2 turns=1
    model="laptop" rows="--batch 2 --length 2"
fi

bench() { # NAME SECONDS WHAT OPTIONS...: what fails or takes too long leaves the rest alone
    name="$1" limit="$2" what="$3"
    shift 3
    [ "$device" = cuda ] || limit=0
    echo "== $name" >&2
    timeout "$limit" dreamer4 bench "$what" --device "$device" --turns "$turns" --json "$out/$name.json" "$@" \
        > "$out/$name.txt" 2>&1 || echo "$name: exit status $?" | tee -a "$out/failed.txt" >&2
    cat "$out/$name.txt"
}

# One stream and batches at the paper's size, the frames with pixels among the results; eager first, because it needs
# no compiler, and shows what the compiler and the graph are worth. So it is with training. The limits add up to 465 s.
bench eager 60 imagination --preset "$paper" --batches $few --frames "$frames" --engine eager --profile "$out"
bench training 60 training --preset "$model" $rows --checkpointing --profile "$out"
if [ "$device" = cuda ]; then
    bench graphed 160 imagination --preset "$paper" --batches $many --frames "$frames" --engine graphed
    bench training-compiled 120 training --preset "$model" $rows --checkpointing --compile
    bench compiled 65 imagination --preset "$small" --batches 1 64 --frames "$frames" --engine compiled
else
    bench batched 60 imagination --preset "$small" --batches $many --frames "$frames" --engine eager
fi
[ ! -e "$out/failed.txt" ]
