#!/usr/bin/env bash
# A grid world on two CPU cores, under half an hour: `deploy/runs/laptop.sh [RUN] [KEY=VALUE...]`
set -euo pipefail
exec "$(dirname "$0")/recipe.sh" laptop "${1:-$PWD/runs/laptop}" resources.workers=2 "${@:2}"
