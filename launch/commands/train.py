"""Pretrain an encoder on packed videos.

    vjepa train configs/pretrain/vjepa2_vitl.yaml data.path=shards/ run.output=runs/vitl
    torchrun --nproc-per-node 8 -m vjepa train CONFIG ...        (with --nnodes, the same command on every node)
    srun --ntasks-per-node 8 vjepa train CONFIG ...    (`vjepa submit` writes the job script)

Started again with the same run.output, a run resumes from its last checkpoint. On SIGTERM, SIGUSR1 or Ctrl-C it
finishes the current step, saves, and exits with status 75; the same command resumes it.
"""

import argparse
from pathlib import Path

from launch.config import add_config_arguments, read_config
from launch.training.budget import within_budget
from launch.training.config import TrainConfig
from launch.training.logs import keep_output
from launch.training.ranks import find_ranks
from launch.training.rundir import hold_run
from launch.training.trainer import train, train_held


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    add_config_arguments(parser, "configs/pretrain/")


def run(arguments: argparse.Namespace) -> None:
    """Train with this config; printed output is also logged to the run directory."""
    config = read_config(TrainConfig, arguments)
    if config is None:
        return
    ranks = find_ranks(config.run)
    folder = Path(config.run.output)
    with hold_run(folder, ranks.rank):  # locked before anything is written there or a step is timed
        config = within_budget(train, config, ranks.world)
        with keep_output(folder, ranks.rank):
            train_held(config)
