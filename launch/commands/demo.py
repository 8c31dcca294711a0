"""Generate labelled videos, pretrain on them without labels, and probe what was learned.

    vjepa demo --minutes 5

Writes the videos, shards, run, exported encoder, results.json and report.html to runs/demo. Existing videos and shards
are reused; pretraining starts from scratch.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from launch.config import load_config
from launch.exchange.export import export
from launch.probing.probe import probe
from launch.studies.demo import (
    CONFIG,
    Videos,
    choose_steps,
    closing,
    prepare,
    pretrain,
    probe_config,
    report,
    say,
    write_results,
)
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from probes.evaluate import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `demo`."""
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of pretraining (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=0, help="pretraining steps, instead of --minutes: the same on every machine"
    )
    parser.add_argument("--output", default="runs/demo", help="output folder (default: runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of videos, weights, masks and order (default: 0)")
    parser.add_argument(
        "--clips", type=int, nargs=2, default=(3000, 1200), metavar=("TRAIN", "TEST"), help="number of clips"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"overrides of {CONFIG.name}")


def run(arguments: argparse.Namespace) -> None:
    """Run the whole pipeline and report each stage."""
    started = time.monotonic()
    folder = Path(arguments.output)
    videos = Videos(arguments.clips[0], arguments.clips[1], arguments.seed)
    for name, count, seed in (("train", videos.train, videos.seed), ("test", videos.test, videos.test_seed)):
        prepare(folder, name, count, seed)
    config = load_config(TrainConfig, CONFIG, arguments.overrides)
    config = replace(
        config,
        data=replace(config.data, path=str(folder / "shards" / "train")),
        run=replace(config.run, output=str(folder / "run"), seed=arguments.seed),
    )
    steps = arguments.steps or choose_steps(config, arguments.minutes)
    config = replace(config, run=replace(config.run, steps=steps, total_clips=None))
    say(f"Pretraining for {steps} steps: hide part of each clip, predict the representation of the hidden part")
    train_seconds = pretrain(config)
    encoder_folder = folder / "encoder"
    difference = export(load_module(config.run.output), encoder_folder, source=config.run.output)
    say(f"Exported the target encoder to {encoder_folder} (after reloading, largest difference {difference:.0e})")
    say(f"Probing the frozen encoder: {videos.train} labelled training clips, {videos.test} held out")
    results = probe(probe_config(folder, arguments.seed, config.data.workers))
    total = time.monotonic() - started
    write_results(folder, config, results, train_seconds, total)
    report(folder, config, results, train_seconds)
    print(f"\nTop-1 accuracy on {videos.test} held-out clips of 12 motions, with 95 % interval (chance: 8.3 %)\n")
    print(table(results))
    print(closing(folder, total))
