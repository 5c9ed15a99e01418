#!/usr/bin/env bash
# Runs one command on several machines, through torchrun. The same line on each of them, but for NODE_RANK:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/launch/torchrun.sh fit --config my.yaml
#       --config configs/strategy/fsdp.yaml --ckpt_path last
#
# NNODES          machines (default 1)
# NODE_RANK       this machine's number, from 0; needed with more than one
# MASTER_ADDR     address of machine 0, as the others reach it; needed with more than one
# MASTER_PORT     a free port there (default 29500)
# NPROC_PER_NODE  processes, and devices, on each machine (default: the GPUs that there are, else 1)
# PYTHON          interpreter (default: python)
#
# SIGTERM and SIGUSR1 reach the ranks, which save and stop (Preemption); it is enough to signal one machine,
# where the status is then 143 or 138. The folder of the run must be the same on all machines (a shared file system).
set -uo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

PYTHON=${PYTHON:-python}
NNODES=${NNODES:-1}
MASTER_PORT=${MASTER_PORT:-29500}
[[ $# -gt 0 ]] || refuse "a command is needed, such as: fit --config configs/quickstart.yaml."
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

# torchrun would not hand on SIGUSR1, and after SIGTERM kill the ranks within 30 seconds: so they get it from here.
received=0
# shellcheck disable=SC2329 # the traps call it
hand_on() {
  received=$2
  pkill "-$1" -P "$agent" || kill -TERM "$agent" # there is no rank yet
}
trap 'hand_on USR1 138' USR1
trap 'hand_on TERM 143' TERM
trap 'kill -INT "$agent"' INT

wait "$agent"
while kill -0 "$agent" 2>/dev/null; do # a signal ends `wait`, not the agent
  wait "$agent"
done
wait "$agent" # for its own status
status=$?
[[ $received -ne 0 && $status -ne 0 ]] && status=$received
exit "$status"
