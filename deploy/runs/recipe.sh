#!/usr/bin/env bash
# The whole recipe, stage by stage: `deploy/runs/recipe.sh PRESET RUN [KEY=VALUE...]`; laptop.sh, crafter.sh and
# minecraft.sh say with which settings. Interrupted at any moment, the same command goes on where it was: what is
# complete isn't done again. Where the preset's environment can't be played here, give data.source=DATASET, recordings
# that were imported; `evaluate` then says so and is no failure.
#
# With RAY_DASHBOARD_ADDRESS set, every stage is a job of that cluster (and RAY_AUTH_TOKEN_PATH names its token);
# without, it runs here, on a Ray of its own.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 PRESET RUN [KEY=VALUE...]" >&2; exit 2; }
preset=$1 run=$2
shift 2

d4() {
  if [ -n "${RAY_DASHBOARD_ADDRESS:-}" ]; then
    dreamer4 submit -- "$@"
  else
    dreamer4 "$@"
  fi
}

d4 data collect --run "$run" --preset "$preset" "$@"
d4 train tokenizer --run "$run" "$@"
d4 encode --run "$run" "$@"
for stage in dynamics agent policy; do
  d4 train "$stage" --run "$run" "$@"
done
for policy in bc pmpo; do
  d4 evaluate --run "$run" --policy "$policy" "$@"
done
d4 report --run "$run"
