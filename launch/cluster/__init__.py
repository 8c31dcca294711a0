"""SLURM: job scripts, code snapshots, the status of runs."""
