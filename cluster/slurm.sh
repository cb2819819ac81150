#!/bin/bash
# One job per expert of a preset, and then the rest: data sets, VLAs, their evaluation.
#
#   cd /shared/diffrl            # a clone on a disk that every node sees, after `make ready`
#   export PRESET=paper
#   last=$(( $(.venv/bin/python cluster/jobs.py $PRESET | wc -l) - 1 ))
#   jobs=$(sbatch --parsable --array=0-$last cluster/slurm.sh)
#   sbatch --dependency=afterany:$jobs --cpus-per-task=32 --gpus=1 cluster/slurm.sh rest
#   .venv/bin/python -m diffrl status --preset $PRESET --watch
#
# A job that was killed is submitted again as it is: it continues, and gives the same bytes.
#SBATCH --job-name=diffrl
#SBATCH --output=slurm-%x-%A_%a.log
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --requeue
set -eu

PRESET=${PRESET:-laptop}
PYTHON=${PYTHON:-.venv/bin/python}
export DIFFRL_HOME=${DIFFRL_HOME:-$PWD} DIFFRL_CACHE=${DIFFRL_CACHE:-${TMPDIR:-/tmp}/diffrl-$USER}
export OMP_NUM_THREADS=1

if [ "${1:-}" = rest ]; then # it finds the experts that are trained, and trains the others
  exec "$PYTHON" -m diffrl reproduce --preset "$PRESET"
fi

read -r task algorithm seed < <("$PYTHON" cluster/jobs.py "$PRESET" "$SLURM_ARRAY_TASK_ID")
exec "$PYTHON" -m diffrl train --preset "$PRESET" --task "$task" --algorithm "$algorithm" \
  --seed "$seed"
