#!/bin/bash
# A sweep on a SLURM cluster: every task of the array is a process of it, with one GPU. They share
# the trials through PostgreSQL, and the checkpoints through a file system that all nodes see, so
# a trial whose node died goes on elsewhere.
#
#   export STORAGE=postgresql://USER@HOST/DATABASE    # the password: in ~/.pgpass
#   sbatch experiments/sweeps/slurm.sh
#
# A task that is near its time limit gets SIGTERM, saves, gives its trial back and is queued again.
# More tasks may be submitted at any time: they join.

#SBATCH --job-name=sweep
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%A_%a.log

# SIGTERM comes to this shell alone (B:), which passes it on and waits: a run that got it twice
# wouldn't save.
trap 'kill -TERM "$sweep"; stopped=1' TERM
python -m cnnjax.sweep \
  --config=experiments/digits/lenet5.py \
  --space=experiments/sweeps/digits_learning_rate.py \
  --workdir=runs/digits-learning-rate --name=digits-learning-rate --storage="$STORAGE" &
sweep=$!
wait "$sweep"; status=$?
if [ -n "$stopped" ]; then
  wait "$sweep"; status=$?
  if [ "$status" = 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  fi
fi
exit "$status"
