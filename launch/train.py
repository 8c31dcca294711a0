"""Pretrain an encoder on packed videos.

    python -m launch train configs/pretrain/vjepa2_vitl.yaml data.path=shards/ run.output=runs/vitl
    torchrun --nproc-per-node 8 -m launch train CONFIG ...        (the same command on every node with --nnodes)

Started again with the same run.output, a run continues where its last checkpoint was.
"""

import argparse
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from data.loader import Batch, DataConfig, TrainLoader
from launch.checkpoints import LAST, latest_checkpoint, read_position
from launch.config import TrainConfig, add_config_arguments, read_config, to_yaml
from launch.encoders import read_origin
from launch.progress import Progress
from vjepa.formats.accounting import start_from
from vjepa.jepa import JEPA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    add_config_arguments(parser, "configs/pretrain/")


def run(arguments: argparse.Namespace) -> None:
    """Train as the config says."""
    config = read_config(TrainConfig, arguments)
    if config is None:
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
    if config.run.start and checkpoint is None:
        start(model, config)
    if trainer.is_global_zero and config.run.progress:
        print(describe(config, trainer.world_size, per_rank, position))
    trainer.fit(model, Stream(loader), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "checkpoints" / LAST)
    if trainer.is_global_zero and config.run.progress:
        skipped = loader.tally.skipped
        reasons = ": " + ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) if skipped else ""
        print(f"{model.position} clips seen; {skipped.total()} unreadable ones replaced on this rank{reasons}")
    return model


def make_trainer(config: TrainConfig, callbacks: list[Callback]) -> lightning.Trainer:
    """The Lightning trainer of a run: DDP wherever there is more than one process."""
    run, folder = config.run, Path(config.run.output)
    accelerator = run.accelerator
    quieten_lightning()
    share_cores(config.data)
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
        logger=[Board(folder, name="", version="tensorboard"), CSVLogger(folder, name="", version="csv")],
        callbacks=[saver, *bar, *callbacks],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def share_cores(data: DataConfig) -> None:
    """On a CPU leave a core to each loading process: more threads than cores wait for each other instead of working."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - data.count_workers()))


def quieten_lightning() -> None:
    """Leave out its advertisements and the devices it did not find; its warnings stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # its own use of a deprecated function


def start(model: JEPA, config: TrainConfig) -> None:
    """Give a new run the weights at run.start; the target encoder begins as a copy of the context encoder.

    Raises ValueError where the architecture differs; another number of frames or crop size is fine.
    """
    found = read_origin(config.run.start, config.run.start_weights).pretrained
    start_from(found, model.context_encoder, model.predictor if found.predictor else None)
    model.target_encoder.update(model.context_encoder, momentum=0.0)
    print(f"starting from {found}")
    if found.predictor is None:
        print("it has no predictor: a new one is trained")


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


class Board(TensorBoardLogger):
    """TensorBoard without Lightning's count of epochs: the stream of clips has none, so it would be a flat line."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write all but the epoch."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class Stream:
    """The loader as Lightning sees it: an iterable; its place is kept by the module, not by prefetching."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)
