#!/bin/bash
# Starts a SLURM of two nodes on this machine, as root: start.sh FOLDER. Its files are below FOLDER, and nowhere else.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
mkdir -p "$folder"/{state,left,right}
chmod 755 "$folder"
port=$((20000 + $$ % 4000 * 3))  # another one for whoever tests beside us
sed -e "s#FOLDER#$folder#g" -e "s#HOST#$(hostname -s)#g" \
  -e "s#FIRST#$port#" -e "s#PORT1#$port#" -e "s#PORT2#$((port + 1))#" -e "s#PORT3#$((port + 2))#" "$here/slurm.conf.in" > "$folder/slurm.conf"
export SLURM_CONF=$folder/slurm.conf
(umask 077 && head -c 128 /dev/urandom > "$folder/munge.key")
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.sock" --pid-file="$folder/munge.pid" \
  --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
slurmctld -c
for node in left right; do
  slurmd -N "$node" -c
done
for _ in $(seq 200); do
  if [ "$(sinfo --noheader --Node --partition=normal --states=idle 2>/dev/null | wc -l)" = 2 ]; then
    exit 0
  fi
  sleep 0.1
done
echo "the nodes did not become idle" >&2
tail -n 20 "$folder"/*.log >&2
exit 1
