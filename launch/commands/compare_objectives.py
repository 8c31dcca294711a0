"""Train objectives for the same compute, probe each, and put them side by side with intervals over seeds.

    python -m launch compare-objectives configs/objectives/cpu.yaml budget=10min seeds=3

Each choice gets the same time: its step is measured first (on a CPU in processor time, so that other work does not
count; on a GPU on the clock), all choices in one go, and sets its number of steps. What is done is not done again, so
the command may be stopped and repeated; once steps.json is there, also run several times at once with other `only`.
Writes table.md, results.json and figure.png; every run and probe stands in its own folder.
"""

import argparse
from pathlib import Path

from launch.config import add_config_arguments, read_config
from launch.studies.compare_objectives import StudyConfig, compare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compare-objectives`."""
    add_config_arguments(parser, "configs/objectives/")


def run(arguments: argparse.Namespace) -> None:
    """Compare as the config says."""
    config = read_config(StudyConfig, arguments)
    if config is None:
        return
    for name in ("train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: a folder of labelled shards")
    compare(config)
    print((Path(config.output) / "table.md").read_text())
