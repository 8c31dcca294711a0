"""Pretrain an encoder on packed videos.

    python -m launch train configs/pretrain/vjepa2_vitl.yaml data.path=shards/ run.output=runs/vitl
    torchrun --nproc-per-node 8 -m launch train CONFIG ...        (the same command on every node with --nnodes)

Started again with the same run.output, a run continues where its last checkpoint was.
"""

import argparse
import logging
import platform
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from data.loader import Batch, TrainLoader
from launch.config import TrainConfig, load_config, to_yaml
from launch.progress import Progress
from vjepa.jepa import JEPA, JepaConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    parser.add_argument("config", help="YAML file; the ready ones are in configs/pretrain/")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs from the file, as run.steps=100")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")


def run(arguments: argparse.Namespace) -> None:
    """Train as the config says."""
    config = load_config(TrainConfig, arguments.config, arguments.words)
    if arguments.show:
        print(to_yaml(config), end="")
        return
    train(config)


def train(config: TrainConfig, callbacks: list[Callback] | None = None) -> JEPA:
    """Run or continue a pretraining run; returns the trained module.

    Raises ValueError where run.output holds a run with another config.
    """
    folder = Path(config.run.output)
    trainer = make_trainer(config, callbacks or [])
    checkpoint = latest_checkpoint(folder)
    position = read_position(checkpoint) if checkpoint else 0
    if trainer.is_global_zero:
        claim_folder(folder, config, continues=checkpoint is not None)
    per_rank = rank_batch(config, trainer.world_size)
    loader = TrainLoader(
        config.data, per_rank, config.run.seed, rank=trainer.global_rank, world=trainer.world_size, position=position
    )
    model = JEPA(config.jepa)
    if trainer.is_global_zero:
        print(describe(config, trainer.world_size, per_rank, position))
    trainer.fit(model, Stream(loader), ckpt_path=checkpoint, weights_only=True)
    return model


def make_trainer(config: TrainConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """The Lightning trainer of a run: DDP wherever there is more than one process."""
    run, folder = config.run, Path(config.run.output)
    accelerator = run.accelerator
    quieten_lightning()
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    devices = run.devices or (torch.cuda.device_count() if accelerator == "gpu" else 1)
    saver = ModelCheckpoint(
        folder / "checkpoints",
        filename="step-{step:07d}",
        auto_insert_metric_name=False,
        every_n_train_steps=min(run.checkpoint_every, run.steps),
        monitor="step",
        mode="max",
        save_top_k=run.keep,
        save_last=True,
        enable_version_counter=False,
    )
    bar: list[Callback] = [Progress()] if run.progress else []
    return lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=run.nodes,
        strategy="ddp" if devices * run.nodes > 1 else "auto",
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
        max_steps=run.steps,
        max_epochs=-1,
        accumulate_grad_batches=run.accumulate,
        log_every_n_steps=min(run.log_every, run.steps),
        logger=[TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, name="", version="csv")],
        callbacks=[saver, *bar, *callbacks],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def quieten_lightning() -> None:
    """Leave out its advertisements and the devices it did not find; its warnings stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # its own use of a deprecated function


def rank_batch(config: TrainConfig, world: int) -> int:
    """Clips a rank takes at once; ValueError where run.batch cannot be shared out evenly."""
    parts = world * config.run.accumulate
    if config.run.batch % parts:
        raise ValueError(
            f"run.batch must be a multiple of ranks x run.accumulate = {world} x {config.run.accumulate}, "
            f"got {config.run.batch}; the nearest are {config.run.batch // parts * parts or parts} "
            f"and {-(-config.run.batch // parts) * parts}"
        )
    return config.run.batch // parts


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run directory, or None."""
    last = folder / "checkpoints" / "last.ckpt"
    return last if last.is_file() else None


def read_position(checkpoint: Path) -> int:
    """Samples that the run had consumed when the checkpoint was written."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["position"])


def claim_folder(folder: Path, config: TrainConfig, continues: bool) -> None:
    """Write the config and the environment into the run directory.

    Raises ValueError where the directory holds a run with another config: what differs is named.
    """
    stored, text = folder / "config.yaml", to_yaml(config)
    if stored.is_file() and continues and stored.read_text() != text:
        old, new = stored.read_text().splitlines(), text.splitlines()
        changed = [f"{line.strip()} (was: {was.strip()})" for was, line in zip(old, new, strict=False) if was != line]
        raise ValueError(
            f"{folder} holds a run with another config; it differs in: {'; '.join(changed[:5]) or 'its keys'}. "
            f"Choose another run.output, or give the same values to continue"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(text)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("pytorch-lightning"),
    }
    (folder / "environment.yaml").write_text("".join(f"{name}: {version}\n" for name, version in versions.items()))


def describe(config: TrainConfig, world: int, per_rank: int, position: int) -> str:
    """What the run is about to do, in words."""
    run, t_h_w = config.run, config.encoder.grid
    lines = [
        f"pretraining {config.encoder.size} encoder ({config.encoder.depth} blocks of width {config.encoder.width}), "
        f"clips of {config.data.frames} frames at {config.data.crop} pixels = {'x'.join(map(str, t_h_w))} tokens",
        f"batch {run.batch} = {world} rank{'s' if world > 1 else ''} x {per_rank} clips x {run.accumulate} batches, "
        f"{run.steps} steps, {run.precision}, into {run.output}",
    ]
    if position:
        lines.append(f"continuing after {position} clips")
    return "\n".join(lines)


class Stream:
    """The loader as Lightning sees it: an iterable; its place is kept by the module, not by prefetching."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def load_module(checkpoint: str | Path) -> JEPA:
    """The module stored in a training checkpoint.

    Raises FileNotFoundError where there is none, ValueError where the file is something else.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = latest_checkpoint(path) or path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a run directory or a .ckpt file")
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "config" not in stored or "state_dict" not in stored:
        raise ValueError(f"{path} is not a checkpoint of `python -m launch train`: it holds {sorted(stored)[:8]}")
    model = JEPA(JepaConfig.from_dict(stored["config"]))
    model.load_state_dict(stored["state_dict"])
    model.on_load_checkpoint(stored)
    return model
