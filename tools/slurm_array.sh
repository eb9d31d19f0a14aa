#!/usr/bin/env bash
# A shard per task of a Slurm array; task K makes shard K:
#
#   sbatch --array=0-499%64 tools/slurm_array.sh aquatint sample m.aqt --n-imgs 50000 --shards 500 -o DIR
#
# Tasks that failed can be submitted again by their numbers, as `aquatint merge` lists them: --array=3,7-9.
#SBATCH --job-name=aquatint
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -euo pipefail

if [[ $# -eq 0 || -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    echo "usage: sbatch --array=0-N tools/slurm_array.sh COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
# As many threads as the task has processors, whatever the machine has.
export RAYON_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
# In place of this shell, so that the signal before the time is up reaches the program, which ends in order. What it has
# finished stays, and the requeued task goes on from there.
exec "$@"
