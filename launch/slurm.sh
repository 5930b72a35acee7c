#!/bin/bash
# One run on the nodes of a Slurm allocation, which requeues itself until the run is finished:
#   sbatch launch/slurm.sh RECIPE RUN_DIR [key=value ...]
# LAUNCH=launch/zero3.yaml sbatch ... launches otherwise than by DDP; RUN_DIR must be on a disk that all nodes see.
#
# How the warning reaches the workers, and why by this way:
# - Slurm sends SIGUSR1 to this script alone (`B:`). Sent to the steps, it would end each node's launcher on the spot:
#   torch's elastic agent handles SIGTERM, SIGINT, SIGHUP and SIGQUIT, and accelerate has no option that adds to them
#   (TORCHELASTIC_SIGNALS_TO_HANDLE is overwritten at its start).
# - So this script has Slurm send SIGTERM to the step, once. The agent passes it on to its workers, which live in
#   sessions of their own, and waits for them to save and leave, by default 30 s; then comes SIGKILL.
# - A preemption with grace time sends the same SIGTERM to the step without our help, and so does scancel.
# - The agent's exit status says only that it was ended (1), so the run itself is asked how it stands.
#SBATCH --job-name=coevolve
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -uo pipefail
if [ $# -lt 2 ]; then
    echo "usage: sbatch launch/slurm.sh RECIPE RUN_DIR [key=value ...]" >&2
    exit 2
fi
recipe=$1 run=$2
shift 2

LAUNCH=${LAUNCH:-launch/several_nodes.yaml}
HEAD_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HEAD_PORT=$((20000 + SLURM_JOB_ID % 20000))
# Less than the 300 s of --signal above; a checkpoint takes up to 30 s.
TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
export LAUNCH HEAD_NODE HEAD_PORT TORCH_ELASTIC_SHUTDOWN_TIMEOUT

# shellcheck disable=SC2329  # the trap calls it
warn() {
    # Once: a second SIGTERM would interrupt the agent while it waits, and tell a saving worker to leave at once.
    trap : USR1
    echo "slurm.sh: the time is nearly up; asking the run to save"
    scancel --signal=TERM "$SLURM_JOB_ID.0"
}
trap warn USR1
# Not ignored (''), which the step would inherit: this script only must outlive it.
trap : TERM

# shellcheck disable=SC2016  # expanded on each node
# One node leaving before the others is no reason to kill them while they save, unless they still hang minutes later.
srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
    exec accelerate launch --config_file "$LAUNCH" \
        --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port "$HEAD_PORT" \
        -m coevolve train "$@"
' launcher "$recipe" --output-dir "$run" "$@" &
step=$!
# A trapped signal ends `wait` but not the step.
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
done

coevolve status "$run"
status=$?
if [ "$status" -eq 75 ]; then
    # Saved, or killed after a checkpoint. A job that does not run any more is being ended by others: cancelled by a
    # person, who does not want it back, or requeued by Slurm itself after a preemption or the loss of a node.
    state=$(scontrol show job -o "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
    if [ "$state" != RUNNING ]; then
        echo "slurm.sh: the job is ${state:-unknown}, not RUNNING: left to Slurm; sbatch it again to go on"
        exit "$status"
    fi
    # A run that dies at every start must not be requeued for ever.
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-50}" ]; then
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    echo "slurm.sh: requeued $SLURM_RESTART_COUNT times already; sbatch it again to go on" >&2
fi
exit "$status"
