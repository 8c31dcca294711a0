"""The demo: generated videos, pretraining without labels, probes, export and report."""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data.generated.sprites import SyntheticConfig, write_videos
from data.loading.loader import EvalLoader
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack
from launch.config import load_config
from launch.probing.probe import ProbeConfig
from launch.reports.moving import show_features, show_masks
from launch.reports.page import Section, result_table, write_report
from launch.reports.pictures import draw_confusion, embed, read_history, show_curves
from launch.training.budget import measure_step
from launch.training.config import TrainConfig
from launch.training.rundir import hold_run
from launch.training.trainer import train
from probes.evaluate import Result
from vjepa.formats.native import load_encoder

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain" / "demo.yaml"
VIDEO = SyntheticConfig()
PROBE = Path(__file__).parents[2] / "configs" / "probe" / "synthetic.yaml"


@dataclass(frozen=True)
class Videos:
    """Number of clips the demo generates, and their seeds; the training and test sets share no clip."""

    train: int
    test: int
    seed: int

    @property
    def test_seed(self) -> int:
        """Seed of the test clips."""
        return self.seed + 1_000_003


def prepare(folder: Path, name: str, count: int, seed: int) -> None:
    """Generate and pack one of the two sets; existing videos and shards are kept.

    Raises ValueError if the folder holds a different set.
    """
    shards, sources = folder / "shards" / name, folder / "videos" / name
    say(f"Generating {count} {name} videos: the label is the motion, which a single frame cannot show")
    with tqdm(total=count, unit="video") as bar:
        write_videos(sources, count, seed, VIDEO, os.cpu_count() or 1, lambda done, _: bar.update(done - bar.n))
    if not (shards / "manifest.json").is_file():
        pack(str(sources), str(shards), PackConfig())
    packed = Manifest.load(str(shards)).samples
    if packed != count:
        raise ValueError(f"{shards} holds {packed} clips, expected {count}; delete {folder} or give another --output")


def choose_steps(config: TrainConfig, minutes: float) -> int:
    """Number of optimiser steps in `minutes` on this machine, from timing a few steps in a temporary folder."""
    seconds = measure_step(train, config)
    steps = max(100, int(60 * minutes / seconds))
    say(f"A step of {config.run.batch} clips takes {1000 * seconds:.0f} ms here")
    return steps


def pretrain(config: TrainConfig) -> float:
    """Train from scratch, because the number of steps depends on the machine; returns the seconds it took."""
    with hold_run(Path(config.run.output), rank=0):
        shutil.rmtree(config.run.output, ignore_errors=True)
    begun = time.monotonic()
    train(config)
    return time.monotonic() - begun


def probe_config(folder: Path, seed: int, workers: int | None) -> ProbeConfig:
    """The probe config for the demo's encoder and shards."""
    overrides = [
        f"encoder={folder / 'encoder'}",
        f"train={folder / 'shards' / 'train'}",
        f"test={folder / 'shards' / 'test'}",
        f"output={folder / 'probe'}",
        f"heads.seed={seed}",
        f"data.workers={'null' if workers is None else workers}",
    ]
    return load_config(ProbeConfig, PROBE, overrides)


def write_results(folder: Path, config: TrainConfig, results: list[Result], train_seconds: float, total: float) -> None:
    """Write all measurements to results.json."""
    document = {
        "format": "vjepa-demo-1",
        "steps": config.run.total_steps,
        "seed": config.run.seed,
        "train_seconds": round(train_seconds, 1),
        "total_seconds": round(total, 1),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "config": asdict(config),
        "results": [result.as_dict() for result in results],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")


def report(folder: Path, config: TrainConfig, results: list[Result], train_seconds: float) -> None:
    """Write the one-page report."""
    encoder = load_encoder(folder / "encoder")
    clips, names, classes = one_clip_a_class(folder / "shards" / "test", config, 6)
    linear = next(result for result in results if result.features == "encoder" and result.head == "linear")
    pictures = {
        "What was learned": result_table([result.as_dict() for result in results]),
        "What it saw": show_masks(clips, names, config.jepa.masks, encoder),
        "Training curves": show_curves(read_history(folder / "run")),
        "Features": show_features(clips, names, encoder),
        "Confusion matrix": embed(
            draw_confusion(linear.as_dict()["confusion"], classes), "confusion matrix", wide=True
        ),
    }
    sections = [Section(title, TEXTS[title], body) for title, body in pictures.items()]
    run, minutes = config.run, train_seconds / 60
    lead = f"{run.total_steps} steps of {run.batch} clips in {minutes:.1f} minutes, seed {run.seed}."
    write_report(folder / "report.html", "vjepa demo: motion learned without labels", lead, sections)


def one_clip_a_class(shards: Path, config: TrainConfig, wanted: int) -> tuple[Tensor, list[str], list[str]]:
    """The first clip of `wanted` different classes: uint8 [wanted, T, H, W, 3], their names, and all class names."""
    loader = EvalLoader(replace(config.data, path=str(shards), workers=0), batch=1)
    classes = loader.manifest.classes
    found: dict[str, Tensor] = {}
    for batch in loader:
        found.setdefault(classes[int(batch.labels[0])], batch.clips[0, 0])
        if len(found) == wanted:
            break
    return torch.stack(list(found.values())), list(found), classes


def say(text: str) -> None:
    """Print the heading of a stage of the demo."""
    print(f"\n== {text}", flush=True)


def closing(folder: Path, total: float) -> str:
    """The closing message: where the outputs are, and how to use the encoder."""
    return f"""
{total / 60:.1f} minutes in total. Report: {folder / "report.html"}   numbers: {folder / "results.json"}
The encoder is in {folder / "encoder"}; to use it:

    import vjepa
    encoder = vjepa.load_encoder("{folder / "encoder"}")
    features = encoder(vjepa.normalise(clips))    # clips uint8 [B, T, H, W, 3] -> [B, tokens, width]
"""


TEXTS = {
    "What was learned": (
        "Accuracy on held-out clips with the encoder frozen, and its 95 % interval. Chance is 8.3 %. Linear: logistic "
        "regression on the mean of all tokens; k-NN: no training; attentive: a small network that attends to every "
        "token, which learns much of the task by itself, even on a random encoder."
    ),
    "What it saw": (
        "Left: the clip; then what the context encoder sees of it. The predictor predicts the features of the rest."
    ),
    "Training curves": (
        "The loss is measured against a moving target, so it may rise while the features improve. Watch the gauges: "
        "if the representation collapses, the spread falls to 0 and the rank to 1."
    ),
    "Features": (
        "Each clip next to its features: three principal components as colours, minus the mean of each position."
    ),
    "Confusion matrix": (
        "The linear probe on the pretrained encoder: rows are true motions, columns predictions, in per cent."
    ),
}
