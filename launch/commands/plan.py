"""Plan with a world model in closed loop, and compare with floor and ceiling.

    vjepa plan configs/plan/plan_two_rooms.yaml model=runs/world/run
    vjepa plan CONFIG model=RUN planner.kind=cem energy.goal=summed output=runs/plan-cem
    vjepa plan CONFIG model=RUN energy.forbidden=2 output=runs/plan-guarded

Every row of the table plays the same episodes. results.json and report.html are written to `output`; stored episodes
are not repeated, so the same command continues after an interruption.
"""

import argparse

from launch.config import add_config_arguments, read_config
from launch.planning.config import PlanConfig
from launch.planning.plan import REPORT, RESULTS, describe, run_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plan`."""
    add_config_arguments(parser, "configs/plan/")


def run(arguments: argparse.Namespace) -> None:
    """Run all rows of the table and print it."""
    config = read_config(PlanConfig, arguments)
    if config is None:
        return
    results = run_plan(config)
    print(f"\n{describe(results)}\n\nwritten to {config.output}/{RESULTS} and {config.output}/{REPORT}")
