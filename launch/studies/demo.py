"""The demo: generated videos, pretraining without labels, probes, export, report."""

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
from launch.reports.page import Section, result_table, write_report
from launch.reports.pictures import (
    draw_confusion,
    draw_contact_sheet,
    draw_curves,
    draw_feature_colours,
    embed,
    read_history,
)
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
    """How many clips the demo generates, and from which seeds; the held-out ones share none with the others."""

    train: int
    test: int
    seed: int

    @property
    def test_seed(self) -> int:
        """Seed of the held-out clips."""
        return self.seed + 1_000_003


def prepare(folder: Path, name: str, count: int, seed: int) -> None:
    """Generate and pack one of the two sets; what is there already is kept.

    Raises ValueError where the folder holds another set.
    """
    shards, sources = folder / "shards" / name, folder / "videos" / name
    say(f"Generating {count} videos of moving things for {name}: the label is the motion, a single frame says nothing")
    with tqdm(total=count, unit="video") as bar:
        write_videos(sources, count, seed, VIDEO, os.cpu_count() or 1, lambda done, _: bar.update(done - bar.n))
    if not (shards / "manifest.json").is_file():
        pack(str(sources), str(shards), PackConfig())
    packed = Manifest.load(str(shards)).samples
    if packed != count:
        raise ValueError(f"{shards} holds {packed} clips, {count} are wanted; delete {folder} or give another --output")


def choose_steps(config: TrainConfig, minutes: float) -> int:
    """Optimiser steps that fit into `minutes` here, measured by training for a moment in a scratch folder."""
    seconds = measure_step(train, config)
    steps = max(100, int(60 * minutes / seconds))
    say(f"A step of {config.run.batch} clips takes {1000 * seconds:.0f} ms here")
    return steps


def pretrain(config: TrainConfig) -> float:
    """Train into an emptied run directory: a demo's run is short and its length depends on the machine. Seconds."""
    with hold_run(Path(config.run.output), rank=0):
        shutil.rmtree(config.run.output, ignore_errors=True)
    begun = time.monotonic()
    train(config)
    return time.monotonic() - begun


def probe_config(folder: Path, seed: int) -> ProbeConfig:
    """The probe of the demo's encoder on the demo's shards."""
    words = [
        f"encoder={folder / 'encoder'}",
        f"train={folder / 'shards' / 'train'}",
        f"test={folder / 'shards' / 'test'}",
        f"output={folder / 'probe'}",
        f"heads.seed={seed}",
    ]
    return load_config(ProbeConfig, PROBE, words)


def write_results(folder: Path, config: TrainConfig, results: list[Result], train_seconds: float, total: float) -> None:
    """Everything measured, as results.json."""
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
    """The one-page report."""
    encoder = load_encoder(folder / "encoder")
    clips, names, classes = one_clip_a_class(folder / "shards" / "test", config, 6)
    linear = next(result for result in results if result.features == "encoder" and result.head == "linear")
    pictures = {
        "What was learned": result_table([result.as_dict() for result in results]),
        "What it was shown": embed(draw_contact_sheet(clips, names, config.jepa.masks, encoder), "clips and masks"),
        "How it went": embed(draw_curves(read_history(folder / "run")), "loss and gauges"),
        "What it sees": embed(draw_feature_colours(clips, encoder), "clips and feature colours"),
        "What it confuses": embed(draw_confusion(linear.as_dict()["confusion"], classes), "confusion matrix"),
    }
    sections = [Section(title, WORDS[title], body) for title, body in pictures.items()]
    run, minutes = config.run, train_seconds / 60
    lead = f"{run.total_steps} steps of {run.batch} clips in {minutes:.1f} minutes, seed {run.seed}."
    write_report(folder / "report.html", "vjepa demo: motion learned without labels", lead, sections)


def one_clip_a_class(shards: Path, config: TrainConfig, wanted: int) -> tuple[Tensor, list[str], list[str]]:
    """The first clip of each of the first `wanted` classes met: uint8 [wanted, T, H, W, 3], their names, all names."""
    loader = EvalLoader(replace(config.data, path=str(shards), workers=0), batch=1)
    classes = loader.manifest.classes
    found: dict[str, Tensor] = {}
    for batch in loader:
        found.setdefault(classes[int(batch.labels[0])], batch.clips[0, 0])
        if len(found) == wanted:
            break
    return torch.stack(list(found.values())), list(found), classes


def say(words: str) -> None:
    """Print a step of the demo."""
    print(f"\n== {words}", flush=True)


def closing(folder: Path, total: float) -> str:
    """Where everything is, and how to use it."""
    return f"""
{total / 60:.1f} minutes in all. The report: {folder / "report.html"}   the numbers: {folder / "results.json"}
The encoder is in {folder / "encoder"}; to use it:

    import vjepa
    encoder = vjepa.load_encoder("{folder / "encoder"}")
    features = encoder(vjepa.normalise(clips))    # clips uint8 [B, T, H, W, 3] -> [B, tokens, width]
"""


WORDS = {
    "What was learned": (
        "Accuracy on held-out clips with the encoder frozen, and its 95 % interval. Chance is 8.3 %. Linear: logistic "
        "regression on the mean of all tokens; k-NN: no training at all; attentive: a small network that looks at "
        "every token, which learns much of the task by itself, also on a random encoder."
    ),
    "What it was shown": (
        "Left the clip, then what the context encoder sees of it. The predictor says what the rest looks like to it."
    ),
    "How it went": (
        "The loss is measured against a moving target, so it may rise while the features improve. The gauges tell: "
        "they fall to 0, or a rank of 1, where the representation collapses."
    ),
    "What it sees": (
        "Each clip beside its features: their three strongest directions as colours, the mean of each place removed."
    ),
    "What it confuses": (
        "The linear probe on the pretrained encoder: rows are the true motions, columns its answers, in per cent."
    ),
}
