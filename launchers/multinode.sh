#!/usr/bin/env bash
# One of several nodes: sets the node rank and calls vlmrun. Hyperparameters belong in conf/ and on the command line.
# Run it on every node, on a file system they share:
#   launchers/multinode.sh NODE_RANK MASTER_ADDR[:PORT] OVERRIDES...
#   launchers/multinode.sh 0 gpu1 +recipe=NAME hardware=a100_bf16 hardware.nodes=2      on gpu1
#   launchers/multinode.sh 1 gpu1 +recipe=NAME hardware=a100_bf16 hardware.nodes=2      on gpu2
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 NODE_RANK MASTER_ADDR[:PORT] OVERRIDES..." >&2
  exit 2
fi
export NODE_RANK=$1 MASTER_ADDR=${2%%:*}
case $2 in *:*) export MASTER_PORT=${2##*:} ;; esac
exec vlmrun "${@:3}"
