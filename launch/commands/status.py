"""Show the progress of runs: state, step, rate, time left, number of starts, newest checkpoint and loss.

    vjepa status runs/vitl runs/sweep/*/

The state is SLURM's where SLURM is available, else it is derived from the files in the run directory.
"""

import argparse
from pathlib import Path

from launch.cluster.status import COLUMNS, read_status
from probes.tables import align_columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `status`."""
    parser.add_argument("runs", nargs="+", help="run directories")


def run(arguments: argparse.Namespace) -> None:
    """Print the table. FileNotFoundError for a folder that is not a run directory."""
    found = [read_status(Path(name)) for name in arguments.runs]
    print(align_columns([COLUMNS, *(status.cells for status in found)], left=range(len(COLUMNS))))
    for name, status in zip(arguments.runs, found, strict=True):
        if status.note:
            print(f"\n{name}: {status.note}")
