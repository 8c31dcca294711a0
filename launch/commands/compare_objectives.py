"""Train objectives with equal compute, probe each, and compare them with intervals over seeds.

    vjepa compare-objectives configs/objectives/cpu.yaml budget=10min seeds=3

Every variant gets the same time budget. The step times of all variants are measured together first (process CPU time
on a CPU, so other load does not count; wall-clock time on a GPU) and set each variant's number of steps. Finished
work is kept, so the command can be stopped and run again; once steps.json exists, several copies with different
`only` can run at the same time. Writes table.md, results.json and figure.png; every run and probe has its own folder.
With several data sets (sets) every choice is trained and probed on each of them, and sets.md shows its worst gain over
a random encoder, and what is chosen when one set is left out.
"""

import argparse
from pathlib import Path

from launch.config import add_config_arguments, read_config
from launch.studies.compare_objectives import StudyConfig, choose_steps, compare, split_sets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `compare-objectives`."""
    add_config_arguments(parser, "configs/objectives/")
    parser.add_argument("--measure", action="store_true", help="only measure the step times, and write steps.json")


def run(arguments: argparse.Namespace) -> None:
    """Compare the objectives of the config."""
    config = read_config(StudyConfig, arguments)
    if config is None:
        return
    for name in ("train", "test"):
        if not config.sets and not getattr(config, name):
            raise ValueError(f"{name} is required: a folder of labelled shards; or give several data sets as sets")
    if arguments.measure:
        for one in split_sets(config).values():
            print(f"steps within the budget: {choose_steps(one, Path(one.output))}")
        return
    print(compare(config))
