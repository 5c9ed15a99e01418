#!/usr/bin/env bash
# Run one command on several machines through torchrun. Start it on each of them, with its own NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/launch/torchrun.sh fit --config my.yaml
#       --config strategy/fsdp.yaml --ckpt_path last
#
# NNODES          machines (default 1)
# NODE_RANK       this machine's number, from 0; required with more than one machine
# MASTER_ADDR     address of machine 0 for the others; required with more than one machine
# MASTER_PORT     a free port on machine 0 (default 29500)
# NPROC_PER_NODE  processes, and devices, on each machine (default: its GPUs, else 1)
# PYTHON          interpreter (default: python)
#
# SIGTERM and SIGUSR1 are forwarded to the ranks, which save and stop (Preemption). Signalling one machine is enough; its
# status is then 143 or 138. The run folder must be on a file system that all machines share.
set -uo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

PYTHON=${PYTHON:-python}
NNODES=${NNODES:-1}
MASTER_PORT=${MASTER_PORT:-29500}
[[ $# -gt 0 ]] || refuse "a command is missing, such as: fit --config quickstart."
[[ $NNODES =~ ^[1-9][0-9]*$ ]] || refuse "NNODES must be a number, at least 1, got $NNODES."
[[ $MASTER_PORT =~ ^[1-9][0-9]{0,4}$ ]] || refuse "MASTER_PORT must be a port, got $MASTER_PORT."
if [[ $NNODES -gt 1 ]]; then
  [[ -n ${MASTER_ADDR:-} ]] || refuse "MASTER_ADDR must be the address of machine 0 of $NNODES, it is not set."
  [[ -n ${NODE_RANK:-} ]] || refuse "NODE_RANK must be this machine's number of $NNODES, it is not set."
fi
NODE_RANK=${NODE_RANK:-0}
[[ $NODE_RANK =~ ^[0-9]+$ && $NODE_RANK -lt $NNODES ]] ||
  refuse "NODE_RANK must be a number from 0 to $((NNODES - 1)), got $NODE_RANK."
if [[ -z ${NPROC_PER_NODE:-} ]]; then
  NPROC_PER_NODE=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))') || exit 1
fi
[[ $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || refuse "NPROC_PER_NODE must be a number, at least 1, got $NPROC_PER_NODE."

"$PYTHON" -m torch.distributed.run \
  --nnodes="$NNODES" --node_rank="$NODE_RANK" --nproc_per_node="$NPROC_PER_NODE" --max_restarts=0 \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$MASTER_PORT" \
  -m lightning_pspo "$@" --trainer.num_nodes="$NNODES" --trainer.devices="$NPROC_PER_NODE" &
agent=$!

# torchrun does not forward SIGUSR1, and kills the ranks 30 seconds after SIGTERM, so signals are forwarded from here.
received=0
# shellcheck disable=SC2329 # the traps call it
forward() {
  received=$2
  pkill "-$1" -P "$agent" || kill -TERM "$agent" # no rank has started yet
}
trap 'forward USR1 138' USR1
trap 'forward TERM 143' TERM
trap 'kill -INT "$agent"' INT

wait "$agent"
while kill -0 "$agent" 2>/dev/null; do # a signal ends `wait`, not the agent
  wait "$agent"
done
wait "$agent" # for its own status
status=$?
[[ $received -ne 0 && $status -ne 0 ]] && status=$received
exit "$status"
