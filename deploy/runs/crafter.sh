#!/usr/bin/env bash
# Crafter from 64 x 64 pixels, for one GPU: `deploy/runs/crafter.sh RUN [KEY=VALUE...]`
# Learner and workers share the GPU in halves; on a cluster give more: resources.max_workers=8 resources.worker_gpus=1
set -euo pipefail
exec "$(dirname "$0")/recipe.sh" crafter "${1:?give a run directory}" resources.workers=1 "${@:2}"
