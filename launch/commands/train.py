"""Pretrain an encoder on packed videos.

    vjepa train configs/pretrain/vjepa2_vitl.yaml data.path=shards/ run.output=runs/vitl
    torchrun --nproc-per-node 8 -m vjepa train CONFIG ...        (with --nnodes, the same command on every node)
    srun --ntasks-per-node 8 vjepa train CONFIG ...    (`vjepa submit` writes the job script)

Started again with the same run.output, a run resumes from its last checkpoint. On SIGTERM, SIGUSR1 or Ctrl-C it
finishes the current step, saves, and exits with status 75; the same command resumes it.
"""

import argparse
from pathlib import Path

from launch.config import add_config_arguments, load_config, read_config
from launch.memory import describe_memory
from launch.training.budget import within_budget
from launch.training.config import TrainConfig
from launch.training.logs import keep_output
from launch.training.ranks import find_ranks, share_of_device
from launch.training.rundir import hold_run
from launch.training.trainer import train, train_held


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    add_config_arguments(parser, "configs/pretrain/")


def run(arguments: argparse.Namespace) -> None:
    """Train with this config; printed output is also logged to the run directory."""
    config = read_config(TrainConfig, arguments)
    if config is None:
        show_memory(load_config(TrainConfig, arguments.config, arguments.overrides))
        return
    ranks = find_ranks(config.run)
    folder = Path(config.run.output)
    with hold_run(folder, ranks.rank):  # locked before anything is written there or a step is timed
        config = within_budget(train, config, ranks.world)
        with keep_output(folder, ranks.rank):
            train_held(config)


def show_memory(config: TrainConfig) -> None:
    """Print what a step needs on each device, as comments below the config."""
    ranks = (config.run.devices or 1) * (config.run.nodes or 1)
    try:
        text = describe_memory(config, share_of_device(config.run).clips, ranks)
    except ValueError as error:
        text = f"memory per device: not estimated, {error}"
    print(f"# {text}")
    print("# For other devices give run.devices and run.nodes, or run.batch_per_device.")
