#!/bin/bash
# Ends what start.sh began, and waits until it has ended: stop.sh FOLDER
folder=$1
export SLURM_CONF=$folder/slurm.conf
for job in $(squeue --noheader --format=%A 2>/dev/null); do
  scancel --signal=KILL --full "$job"
  scancel "$job"
done
daemons=$(cat "$folder"/{left,right,slurmctld,munge}.pid 2>/dev/null)
for daemon in $daemons; do
  kill "$daemon" 2>/dev/null
done
for _ in $(seq 100); do
  alive=
  for daemon in $daemons; do
    kill -0 "$daemon" 2>/dev/null && alive=yes
  done
  [ "$alive" ] || exit 0
  sleep 0.1
done
echo "still running: $daemons" >&2
