"""A probe of a frozen encoder: extract features of a training and a test set, fit heads, write results and report."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.files import claim_folder, remove_leftovers
from data.loading.loader import DataConfig, EvalLoader, Views
from data.parallel import count_cores
from launch.devices import share_cores
from launch.exchange.encoders import Weights, hash_weights
from launch.probing.subjects import TIMM, Subject, read_subject
from launch.ranks import Rank, find_rank
from launch.reports.probe_page import clips_of, write_probe_report, write_scalars
from probes.cache import FeatureCache
from probes.evaluate import HeadsConfig, Result, evaluate
from probes.extract import Order, Progress, extract, stream
from probes.extractors import Extractor, FirstFrame, Pixels, choose_layers
from probes.features import Features
from probes.kinds import HEADS
from probes.results import NAME, read_results, write_results
from probes.saved import save_heads
from probes.targets import read_targets, with_targets
from vjepa.precision import Precision

MEMORY, OFF = "memory", "off"
BASELINES = ("random", "pixels", "first_frame")
NEUTRAL_KEYS = (
    "output", "batch", "cache", "cache_gb", "data.path", "data.workers", "data.timeout", "data.cache", "data.cache_gb",
    "data.outage", "data.allow_pipe",
)  # fmt: skip  # settings that do not affect the results


@dataclass(frozen=True)
class ProbeConfig:
    """One evaluation. By default clips have the length and size that the encoder was trained on."""

    encoder: str = ""  # run, .ckpt, exported or transformers folder, official checkpoint, or timm:NAME[:FILE]; required
    weights: Weights = ""  # which encoder: target (default) or context of a run, or its name in an official checkpoint
    layers: tuple[int, ...] = ()  # blocks whose tokens attentive heads read, 0-based or negative; empty: the last
    hierarchical: bool = False  # all levels of a V-JEPA 2.1 encoder joined in each token, instead of the last
    train: str = ""  # folder of shards to train the heads on; required
    test: str = ""  # folder of shards of the test set; required
    targets: str = ""  # table `key,value` or `path,value` of regression targets; empty: the labels in the shards
    data: DataConfig = field(default_factory=DataConfig)  # data.path is set from train and test
    frames: int = 0  # per clip; 0: as the encoder was trained on (an image ViT: data.frames)
    crop: int = 0  # pixels; 0: as the encoder was trained on
    views: Views = field(default_factory=Views)  # augmented views apply only to the training set
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    baselines: tuple[str, ...] = BASELINES  # evaluated as well; also timm:NAME[:FILE]
    batch: int = 32  # clips encoded per forward pass
    precision: Precision = "auto"  # of the encoder; auto: bf16 where the device supports it natively, else fp32
    cache: str = "~/.cache/video-features"  # folder; memory: in this process; off: encode again in every epoch
    cache_gb: float = 50.0  # size limit of that folder
    output: str = "runs/probe"
    plugins: tuple[str, ...] = ()  # modules with your own extensions: dotted names or .py files

    def __post_init__(self) -> None:
        unknown = [name for name in self.baselines if name not in BASELINES and not name.startswith(TIMM)]
        if unknown:
            raise ValueError(f"baselines must be among {', '.join(BASELINES)}, {TIMM}NAME, got {', '.join(unknown)}")
        if self.batch < 1 or self.frames < 0 or self.crop < 0 or self.cache_gb <= 0:
            found = f"{self.batch}, {self.frames}, {self.crop}, {self.cache_gb:g}"
            raise ValueError(f"batch and cache_gb must be positive, frames and crop not negative, got {found}")
        if self.cache in ("", "False", "false"):  # YAML parses a bare `off` as false
            object.__setattr__(self, "cache", OFF)


def probe(config: ProbeConfig) -> list[Result]:
    """Evaluate the encoder and its baselines; writes results and heads.

    With several processes only rank 0 returns results; the others only encode. Raises ValueError if a key is missing or
    `output` holds the results of another probe, and InUseError if another process is writing to it.
    """
    for name in ("encoder", "train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: give {name}=... on the command line or in the file")
    rank = find_rank()
    if rank.number:
        return measure(config, rank)
    folder = Path(config.output)
    with claim_folder(folder, "probe", "give another output=FOLDER"):
        remove_leftovers(folder)
        check_output(config)
        return measure(config, rank)


def measure(config: ProbeConfig, rank: Rank) -> list[Result]:
    """`probe` for rank 0, which holds the lock on the output folder, and for the ranks that only encode."""
    subject = read_subject(config.encoder, config.weights, config.heads.seed, config.crop)
    orders = plan(subject, config, rank)
    classes = check_classes(config, orders)
    targets = read_targets(config.targets) if config.targets else {}
    sets = collect(orders, config, rank)
    if rank.number:
        return []
    train, test = sets
    if config.targets:
        train = {name: with_targets(features, targets, config.train) for name, features in train.items()}
        test = {name: with_targets(features, targets, config.test) for name, features in test.items()}
    attentive = config.heads.attentive
    heads = replace(config.heads, attentive=replace(attentive, heads=attentive.heads or subject.heads))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count_cores())  # the loader workers have ended
    unfinished = Path(config.output) / "unfinished"
    with tqdm(bar_format="heads: {desc} [{elapsed}]", leave=False) as bar:
        results = evaluate(train, test, classes, heads, unfinished, bar.set_description_str)
    write(config, results, classes, subject, orders[1].loader)
    shutil.rmtree(unfinished, ignore_errors=True)  # including leftovers of earlier settings
    return results


def check_output(config: ProbeConfig) -> None:
    """Raise ValueError if `output` holds the results of another probe, which must not be overwritten silently."""
    folder = Path(config.output)
    if not (folder / NAME).is_file():
        return
    advice = f"give another output=..., such as output={name_free(folder)}, or delete {folder / NAME}"
    try:
        before = read_results(folder).config
    except ValueError as error:
        raise ValueError(f"{error}. It will not be overwritten: {advice}") from error
    defaults, now = (json.loads(json.dumps(asdict(some))) for some in (ProbeConfig(), config))
    changed = describe_changes(complete(before, defaults), now)
    if changed:
        more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise ValueError(
            f"{folder} holds the results of another probe; it differs in {'; '.join(changed[:6])}{more}: {advice}"
        )


def complete(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with the defaults of the settings that the version which wrote it did not have."""
    found = {**defaults, **stored}
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(stored.get(name), dict):
            found[name] = complete(stored[name], value)
    return found


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe the settings that affect the results and differ between two configs."""
    changes = []
    for name in {**before, **now}:
        key, old, new = prefix + name, before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += describe_changes(old, new, f"{key}.")
        elif old != new and key not in NEUTRAL_KEYS:
            changes.append(f"{key}: {new} (was {old})")
    return changes


def name_free(folder: Path) -> Path:
    """An unused folder name based on `folder`."""
    return next(name for name in (folder.with_name(f"{folder.name}-{i}") for i in count(2)) if not name.exists())


def plan(subject: Subject, config: ProbeConfig, rank: Rank) -> list[Order]:
    """The two extraction jobs: the training set with its views, and the test set with fixed views."""
    frames = config.frames or subject.frames or config.data.frames
    data = replace(config.data, frames=frames, crop=config.crop or subject.crop)
    share_cores(data)
    device = f"cuda:{rank.local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    found = extractors(subject, config, device, data.crop)
    tokens = any(HEADS.find(head).tokens for head in config.heads.names)
    orders = []
    for path, views in ((config.train, config.views), (config.test, replace(config.views, augmented=0))):
        videos = max(1, config.batch // (views.count * views.segments))
        loader = EvalLoader(replace(data, path=path), videos, views)
        orders.append(Order(found, loader, config.batch, tokens))
    return orders


def check_classes(config: ProbeConfig, orders: Sequence[Order]) -> list[str]:
    """The class names, empty for regression; ValueError if the two sets have different classes."""
    train, test = (order.loader.manifest.classes for order in orders)
    if config.targets:
        return []
    if train != test or not train:
        raise ValueError(
            f"{config.train} and {config.test} must have the same classes, got {train or 'none'} and {test or 'none'}; "
            "pack both with the same labels, or give targets=TABLE to regress values"
        )
    return train


def extractors(subject: Subject, config: ProbeConfig, device: str, crop: int) -> dict[str, Extractor]:
    """The encoder and the configured baselines, by their name in the results table."""
    seed, frozen = config.heads.seed, subject.freeze(device, config.precision, config.layers, config.hierarchical)
    found: dict[str, Extractor] = {"encoder": frozen}
    for name in config.baselines:
        if name == "random":
            found["random encoder"] = subject.fresh(seed).freeze(
                device, config.precision, config.layers, config.hierarchical
            )
        elif name == "pixels":
            found["raw pixels"] = Pixels()
        elif name == "first_frame":
            found["encoder, first frame only"] = FirstFrame(frozen)
        else:
            found[name] = read_subject(name, seed=seed, crop=crop).freeze(device, config.precision)
    return found


def collect(orders: Sequence[Order], config: ProbeConfig, rank: Rank) -> list[dict[str, Features]]:
    """The features of the jobs, cached as configured; empty for a rank that only encodes."""
    check_cache(config, rank.world)
    total = sum(order.loader.manifest.samples for order in orders)
    with tqdm(total=total, desc="features", unit="sample", leave=False, disable=rank.number > 0) as bar:
        progress: Progress = bar.update
        if config.cache == MEMORY:
            return [extract(order, progress) for order in orders]
        if config.cache == OFF:
            means = any(not HEADS.find(head).tokens for head in config.heads.names)
            return [stream(order, progress, means) for order in orders]
        return FeatureCache(config.cache, config.cache_gb).fetch(orders, progress, rank.number, rank.world)


def check_cache(config: ProbeConfig, world: int) -> None:
    """Raise ValueError if `world` processes have no shared folder to exchange features."""
    if config.cache in (MEMORY, OFF) and world > 1:
        raise ValueError(
            f"cache={config.cache} works only with one process, got {world}: give cache=FOLDER, a folder that all of "
            "them can access to exchange features"
        )


def write(
    config: ProbeConfig, results: Sequence[Result], classes: Sequence[str], subject: Subject, loader: EvalLoader
) -> None:
    """Write results, report and the encoder's trained heads, replacing earlier ones. `loader` reads the test set.

    A head on selected layers records them, so that applying it to the last layer's tokens is an error.
    """
    folder = Path(config.output)
    write_results(folder, results, classes, asdict(config))
    chosen = choose_layers(config.layers, subject.depth)
    layers = "" if chosen == choose_layers((), subject.depth) else f"layers {', '.join(map(str, chosen))}"
    layers = "hierarchical levels" if config.hierarchical else layers
    digest = hash_weights(subject.module, layers)
    source = f"{subject.source}, {layers}" if layers else subject.source
    trained = [result.trained for result in results if result.features == "encoder"]
    save_heads(trained, folder, classes, source, digest)
    write_scalars(folder, results)
    write_probe_report(folder, clips_of(loader))
