#!/bin/bash
# Collect 512 trials as an array of 64 jobs of 4 cores:  sbatch examples/slurm/collect.sh
#
# Every job runs the same command with its own shard, into one store on the shared file system. Jobs that were killed
# are sent again by the same line: a job does what is left of its shard, and one whose shard is done ends at once.
#SBATCH --job-name=tipl-collect
#SBATCH --array=1-64
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@60
set -euo pipefail

srun tipl collect --env-id HalfCheetah-v4 --hidden-sizes 256 256 --total-steps 2000000 --trials 512 \
    --out "${STORE:-runs/half-cheetah}" --workers "$SLURM_CPUS_PER_TASK" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
