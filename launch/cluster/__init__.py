"""SLURM: job scripts, copies of the code, the state of runs."""
