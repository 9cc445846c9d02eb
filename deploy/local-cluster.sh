#!/usr/bin/env bash
# A whole cluster on this machine without Docker: Redis, a Ray head that wants a token, nodes that come and go as they are
# needed, Prometheus and the dashboard. Nothing is left over when it stops.
#
#   deploy/local-cluster.sh [start] [--max-nodes N] [--cpus N] ...   until it is interrupted; --help lists the options
#   deploy/local-cluster.sh stop                                     from another terminal, in the same directory
#
# It needs `make install` in the repository once, and `apt-get install redis-server prometheus`. In the current directory
# it makes .dreamer4-cluster, which holds what other terminals need: `source .dreamer4-cluster/env`.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
state=$PWD/.dreamer4-cluster
python=${PYTHON:-$repository/.venv/bin/python}

fail() {
  echo "local-cluster: $*" >&2
  exit 2
}

# The process that runs the cluster of this directory, if there is one; nobody else who got its number since.
running() {
  local pid
  pid=$(cat "$state/pid" 2>/dev/null) || return 1
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q "cluster.local.service" || return 1
  echo "$pid"
}

start() {
  local pid program
  if pid=$(running); then
    fail "a cluster of this directory is running as process $pid: stop it first, by $0 stop"
  fi
  "$python" -c "import ray" 2>/dev/null || fail "'$python' has no Ray: say \`make install\` in $repository, or set PYTHON"
  for program in redis-server prometheus; do
    if [ "$program" = redis-server ] && [[ " $* " == *" --store rocksdb "* || " $* " == *" --store=rocksdb "* ]]; then
      continue
    fi
    command -v "$program" >/dev/null || fail "$program is not installed: apt-get install redis-server prometheus"
  done
  mkdir -p "$state" && chmod 700 "$state"
  export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
  exec "$python" -m cluster.local.service --state "$state" "$@"
}

stop() {
  local pid
  pid=$(running) || fail "no cluster of this directory is running: it was started elsewhere, or has ended"
  kill -TERM "$pid"
  for _ in $(seq 600); do
    running >/dev/null || { rm -rf "$state" && echo "stopped" && return; }
    sleep 0.1
  done
  fail "process $pid has not ended after a minute"
}

case "${1:-start}" in
start) start "${@:2}" ;;
stop) stop ;;
-*) start "$@" ;;
*) fail "unknown command '$1': it is start, which may be left out, or stop" ;;
esac
