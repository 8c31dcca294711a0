"""From a folder of videos to a trained encoder and a report.

    vjepa start VIDEOS --minutes 5

Looks at the videos, packs them, draws a contact sheet, says which config fits and why, pretrains without labels,
probes the encoder if subfolders name classes, exports it, and writes the report. Nothing is overwritten; interrupted,
the same command continues. docs/tutorial.md goes through the same steps one command at a time.
"""

import argparse
from pathlib import Path

from launch.studies.demo import say
from launch.studies.start import (
    Start,
    claim_output,
    evaluate,
    export_encoder,
    finish,
    prepare,
    pretrain,
    steps_as_commands,
)
from launch.studies.survey import choose, look_at
from probes.evaluate import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `start`."""
    parser.add_argument("source", metavar="FOLDER", help="folder (subfolders are labels), csv, list or 'pattern'")
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of pretraining (default: 5)")
    parser.add_argument("--output", help="folder to write (default: runs/NAME of the source)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, masks and order (default: 0)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config that is chosen")


def run(arguments: argparse.Namespace) -> None:
    """Run every step; ValueError if the output folder is in use for something else."""
    if arguments.minutes <= 0:
        raise ValueError(f"--minutes must be above 0, got {arguments.minutes:g}")
    output = Path(arguments.output or Path("runs") / Path(arguments.source).resolve().stem)
    say(f"Looking at {arguments.source}")
    survey = look_at(arguments.source)
    print(survey.describe())
    for problem in survey.unreadable:
        print(f"not readable: {problem}")
    choice = choose(survey)
    say("Choosing a config")
    print("\n".join(choice.reasons))
    overrides = tuple(arguments.overrides)
    start = Start(arguments.source, output, arguments.minutes, arguments.seed, survey, choice, overrides)
    config = start.config  # wrong overrides fail here, before anything is written
    print(f"a step: {config.run.batch} clips of {config.data.frames} frames, {config.data.crop} pixels")
    if arguments.dry_run:
        print(f"\nThe steps as commands:\n\n{steps_as_commands(start)}")
        return
    claim_output(start)
    say(f"Packing into {output / 'shards'}")
    prepare(start)
    say(f"Pretraining for {arguments.minutes:g} min, without labels")
    seconds = pretrain(start)
    say("Probing the frozen encoder" if survey.labelled else "No probe: it needs two classes with two videos each")
    results = evaluate(start)
    if results:
        print(table(results))
    difference = export_encoder(start)
    print(f"exported to {output / 'encoder'}; after reloading, largest difference {difference:.0e}")
    finish(start, results, seconds)
