#!/usr/bin/env bash
#SBATCH --job-name=dreamer4
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
# One command of ours on a Ray of its own, over all nodes of a Slurm job:
#
#   sbatch --nodes=5 --gpus-per-node=8 --time=24:00:00 deploy/slurm.sh \
#     train policy --run /shared/runs/mine resources.workers=32
#
# The same command submitted again goes on where it was. Two minutes before the time is up it is asked to stop, and
# commits a checkpoint. Nodes see the run, this folder and the environment under the same paths (a shared disk).
# DREAMER4_VENV: the environment that dreamer4 is installed in, by default .venv here.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh COMMAND..., such as train policy --run DIR" >&2; exit 2; }
here=${SLURM_SUBMIT_DIR:-$PWD}
bin=${DREAMER4_VENV:-$here/.venv}/bin
[ -x "$bin/ray" ] || { echo "slurm.sh: there is no Ray in $bin: set DREAMER4_VENV" >&2; exit 2; }
export PATH=$bin:$PATH

# The token is made for this job, in a folder that only its owner can read, and is gone at its end.
umask 077
folder=$(mktemp -d "$here/.slurm-${SLURM_JOB_ID}.XXXX")
python -c 'import secrets; print(secrets.token_hex(32))' >"$folder/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_gcs_rpc_server_reconnect_timeout_s=120 RAY_worker_niceness=5 GRPC_ENABLE_FORK_SUPPORT=false
unset RAY_ADDRESS RAY_AUTH_TOKEN

# Other jobs may have a Ray on the same machines: ports and folders go by the number of the job.
port=$((20000 + SLURM_JOB_ID % 2500 * 4))
sockets=/tmp/ray-$SLURM_JOB_ID # short: a socket's path has at most 107 bytes
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
steps=()

on() { # NODE COMMAND...: in the background, until the end of this job; with all its cores, else a step has one
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --cpu-bind=none \
    --kill-on-bad-exit=0 "${@:2}" </dev/null &
  steps+=($!)
}

# shellcheck disable=SC2329 # the trap calls it
clean_up() {
  trap - EXIT TERM INT
  [ ${#steps[@]} -eq 0 ] || kill "${steps[@]}" 2>/dev/null || true
  wait || true
  rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# The head has no CPUs, so nothing of a run dies with it; a second Ray node on the same machine does the work there.
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
on "$head" ray start --head --block --num-cpus=0 --num-gpus=0 --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --dashboard-port="$((port + 1))" --ray-client-server-port="$((port + 2))" \
  --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0 --temp-dir="$sockets-head" \
  --disable-usage-stats
for _ in $(seq 60); do
  ray health-check --address "$address:$port" >/dev/null 2>&1 && break
  kill -0 "${steps[0]}" 2>/dev/null || { echo "slurm.sh: the head did not start" >&2; exit 1; }
  sleep 2
done
for node in "${nodes[@]}"; do
  on "$node" ray start --address="$address:$port" --block --dashboard-agent-listen-port=0 \
    --min-worker-port=0 --max-worker-port=0 --temp-dir="$sockets-node"
done

# This script runs on the first node, and so does the dashboard. An end of ours is passed on, so that the job commits.
dreamer4 submit --address "http://127.0.0.1:$((port + 1))" --python "$bin/python" -- "$@" &
command=$!
trap 'kill -INT "$command" 2>/dev/null || true; wait "$command" || true; exit 143' TERM INT
while kill -0 "$command" 2>/dev/null; do # a signal that comes right before a `wait` would be heard after it only
  sleep 1
done
status=0
wait "$command" || status=$?
exit "$status"
