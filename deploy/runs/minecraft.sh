#!/usr/bin/env bash
# The paper's sizes, on a cluster: `deploy/runs/minecraft.sh /shared/runs/minecraft [KEY=VALUE...]`
# 32 trainers in shards for stages 1 to 3, up to 32 workers that imagine.
set -euo pipefail
: "${RAY_DASHBOARD_ADDRESS:?set it to the dashboard of a cluster, such as http://127.0.0.1:8265}"
exec "$(dirname "$0")/recipe.sh" minecraft "${1:?give a run directory that all nodes share}" resources.trainers=32 \
  parallel.sharding=fsdp resources.min_workers=4 resources.workers=8 resources.max_workers=32 "${@:2}"
