"""Several futures for one past: what the predictor's variable chooses between.

    vjepa generate forks runs/forks --clips 400 --seed 1
    vjepa futures RUN runs/forks             errors of the best of K draws, coverage, transfer, KL

RUN must have been trained with predictor.latent.dims. results.json is written to RUN/futures, or to --output FOLDER.
"""

import argparse
from pathlib import Path

import torch

from data.files import write_json
from launch.seeing.futures import measure_futures
from launch.seeing.imagination import load_imagination
from launch.seeing.pairs import read_forks, read_frames
from probes.tables import align_columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `futures`."""
    parser.add_argument("run", metavar="RUN", help="run directory or checkpoint")
    parser.add_argument("forks", metavar="FOLDER", type=Path, help="output of `generate forks`")
    parser.add_argument("--pasts", type=int, default=100, help="measure at most this many pasts (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--output", type=Path, help="folder (default: RUN/futures)")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    imagination = load_imagination(arguments.run)
    videos = read_forks(arguments.forks)[: 2 * arguments.pasts]
    clips = torch.stack([read_frames(path, imagination.config.crop)[: imagination.config.frames] for path in videos])
    found = measure_futures(imagination, clips, arguments.seed).plain(arguments.seed)
    home = Path(arguments.run) if Path(arguments.run).is_dir() else Path("runs")
    folder = arguments.output or home / "futures"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"model": imagination.source, "forks": str(arguments.forks), **found})
    rows = [
        [name, f"{value[0]:.4f}", f"{value[1]:.4f} to {value[2]:.4f}"]
        for name, value in found.items()
        if isinstance(value, list)
    ]
    print(align_columns([["measure", "mean", "95 % interval"], *rows]))
    print(f"\nKL {found['kl']:.2f} nats, {found['pasts']} pasts; written to {folder / 'results.json'}")
