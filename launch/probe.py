"""Measure a frozen encoder: linear, k-NN and attentive classification of packed, labelled videos.

    python -m launch probe configs/probe/synthetic.yaml encoder=runs/demo/encoder

The head is chosen on a held-out part of the training set; the reported set is looked at once. `results.json` in the
output folder holds everything that is printed, and the confusion matrices; the encoder's trained heads stand beside it.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from data.loader import DataConfig, EvalLoader, Views
from launch.config import add_config_arguments, read_config
from launch.encoders import Weights, hash_weights, read_origin
from launch.train import share_cores
from probes.evaluate import FORMAT, HeadsConfig, Result, evaluate, table
from probes.features import Extractor, FirstFrame, FrozenEncoder, Pixels
from probes.saved import KINDS, SavedHead, save_head
from vjepa.vit import Encoder


@dataclass(frozen=True)
class ProbeConfig:
    """One evaluation: clips are as long and as large as those the encoder was trained on."""

    encoder: str = ""  # run, .ckpt, exported folder, transformers folder or official checkpoint; required
    weights: Weights = ""  # which encoder: target (default) or context of a run; of an official file its name
    train: str = ""  # folder of shards the heads learn from; required
    test: str = ""  # folder of shards that is reported; required
    data: DataConfig = field(default_factory=DataConfig)  # its frames, crop and path follow from the above
    views: Views = field(default_factory=Views)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    baselines: tuple[str, ...] = ("random", "pixels", "first_frame")  # measured beside the encoder
    batch: int = 32  # videos encoded at once
    precision: str = "bf16"
    output: str = "runs/probe"

    def __post_init__(self) -> None:
        unknown = set(self.baselines) - {"random", "pixels", "first_frame"}
        if unknown:
            raise ValueError(f"baselines must be among random, pixels, first_frame, got {', '.join(sorted(unknown))}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `probe`."""
    add_config_arguments(parser, "configs/probe/")


def run(arguments: argparse.Namespace) -> None:
    """Probe as the config says."""
    config = read_config(ProbeConfig, arguments)
    if config is None:
        return
    results = probe(config)
    print(table(results))
    print(f"\nwritten to {config.output}/results.json")


def probe(config: ProbeConfig) -> list[Result]:
    """Evaluate the encoder and its baselines; writes results.json and heads. ValueError where a key is missing."""
    for name in ("encoder", "train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: give {name}=... on the command line or in the file")
    pretrained = read_origin(config.encoder, config.weights).pretrained
    encoder = pretrained.encoder.float()
    attentive = replace(config.heads.attentive, heads=config.heads.attentive.heads or encoder.config.heads)
    heads = replace(config.heads, attentive=attentive)
    data = replace(config.data, frames=encoder.config.frames, crop=encoder.config.crop)
    train = EvalLoader(replace(data, path=config.train), config.batch, config.views)
    test = EvalLoader(replace(data, path=config.test), config.batch, config.views)
    share_cores(data)
    with tqdm(total=train.manifest.samples + test.manifest.samples, desc="features", unit="clip", leave=False) as bar:
        results = evaluate(extractors(encoder, config), train, test, heads, bar.update)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "format": FORMAT,
        "config": asdict(config),
        "classes": train.manifest.classes,
        "results": [result.as_dict() for result in results],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    for kind in KINDS:
        (folder / f"{kind}.safetensors").unlink(missing_ok=True)  # that of an earlier probe
    for result in results:
        if result.features == "encoder" and result.trained is not None:
            classes, digest = tuple(train.manifest.classes), hash_weights(encoder)
            save_head(SavedHead(result.trained, classes, pretrained.source, digest), folder)
    return results


def extractors(encoder: Encoder, config: ProbeConfig) -> dict[str, Extractor]:
    """The encoder and the baselines asked for, by the name they have in the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frozen = FrozenEncoder(encoder, device, config.precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.heads.seed)
        fresh = Encoder(encoder.config)
    baselines: dict[str, tuple[str, Extractor]] = {
        "random": ("random encoder", FrozenEncoder(fresh, device, config.precision)),
        "pixels": ("raw pixels", Pixels()),
        "first_frame": ("encoder, first frame only", FirstFrame(frozen)),
    }
    return {"encoder": frozen, **dict(baselines[name] for name in config.baselines)}
