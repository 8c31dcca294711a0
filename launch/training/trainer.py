"""The trainer of a pretraining run: module, loader and Lightning's trainer put together, run, ended."""

import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
import torch.distributed
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import Callback

from data.files import write_text
from data.loading.loader import Batch, TrainLoader
from launch.devices import find_accelerator, share_cores
from launch.exchange.encoders import read_origin
from launch.training.checkpoints import (
    Saver,
    WholeFiles,
    check_fits,
    latest_checkpoint,
    read_checkpoint,
    read_config_of,
)
from launch.training.config import TrainConfig
from launch.training.health import watchers
from launch.training.lightning import leave_signals_alone, quieten_lightning
from launch.training.loggers import Board, Table
from launch.training.preempt import Preemption
from launch.training.progress import Progress
from launch.training.randomness import seed_generators
from launch.training.ranks import Ranks, Share, find_ranks, share_out
from launch.training.rundir import Heartbeat, add_event, begin_run, check_same, check_share, hold_run, settle_precision
from launch.training.signals import Interrupted, forget, forget_earlier
from vjepa.encoder import EncoderConfig
from vjepa.formats.accounting import start_from
from vjepa.jepa import JEPA


def train(config: TrainConfig, callbacks: list[Callback] | None = None) -> JEPA:
    """Run or continue a pretraining run; returns the trained module.

    Raises ValueError where run.output holds a run with another config, other data, or a checkpoint that does not fit;
    InUseError where another process trains there; Interrupted where a signal asked to stop, once the run is saved.
    """
    forget_earlier()
    with hold_run(Path(config.run.output), find_ranks(config.run).rank):
        return train_held(config, callbacks)


def train_held(config: TrainConfig, callbacks: list[Callback] | None = None) -> JEPA:
    """`train` for whoever holds the run directory."""
    config = settle_precision(config)
    folder, run = Path(config.run.output), config.run
    ranks = find_ranks(run)
    share = share_out(run, ranks.world)
    seed_generators(run.seed + ranks.rank)
    loader = TrainLoader(config.data, share.clips, run.seed, rank=ranks.rank, world=ranks.world)
    checkpoint = latest_checkpoint(folder)
    stored = read_checkpoint(checkpoint) if checkpoint else None
    if checkpoint:
        check_same(folder, config)
    check_share(folder, config, share.clips, continues=checkpoint is not None)
    frozen = read_config_of(stored, checkpoint).frozen if checkpoint and stored else None
    model = make_model(config, frozen, continues=checkpoint is not None)
    if checkpoint and stored:
        check_fits(stored, model, checkpoint)
        loader.load_state_dict(stored["data"])
    step = stored["global_step"] if stored else 0
    preemption = Preemption()
    saver = Saver(folder, min(run.checkpoint_every, run.total_steps), run.keep, run.keep_every or 0, loader)
    trainer = make_trainer(config, ranks, share, step, [saver, preemption, *(callbacks or [])])
    if trainer.is_global_zero:
        begin_run(folder, config, loader, step, ranks.world, share.clips)
        if run.progress:
            print(describe(config, ranks.world, share, step))
    del stored  # a checkpoint that is held would keep its old file mapped
    stream = Stream(loader)
    try:
        trainer.fit(model, stream, ckpt_path=checkpoint, weights_only=True)
    except Exception as error:
        if trainer.is_global_zero:
            add_event(folder, "failed", step=trainer.global_step, error=f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        stream.close()
    finish(folder, trainer, preemption.signal)
    if trainer.is_global_zero and run.progress:
        skipped = loader.tally.skipped
        reasons = ": " + ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) if skipped else ""
        print(f"{model.position} clips seen; {skipped.total()} unreadable ones replaced on this rank{reasons}")
    return model


def finish(folder: Path, trainer: lightning.Trainer, number: int) -> None:
    """Write how the run ended and let the other processes go; Interrupted where signal `number` ended it too early."""
    step = trainer.global_step
    stopped = bool(number) and step < trainer.max_steps
    name = signal.Signals(number).name if stopped else ""
    if trainer.is_global_zero:
        add_event(folder, "interrupted" if stopped else "finished", step=step, signal=name)
        if stopped:
            write_text(folder / "unfinished", os.environ.get("SLURM_JOB_ID", "") + "\n")  # read by the job script
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # all is written before the first process exits
        torch.distributed.destroy_process_group()
    if stopped:
        forget()  # answered: another run of this process is not meant
        raise Interrupted(
            f"stopped by {name} after step {step} of {trainer.max_steps}, saved in {folder}; the same command continues"
        )


def make_trainer(
    config: TrainConfig, ranks: Ranks, share: Share, step: int, callbacks: list[Callback]
) -> lightning.Trainer:
    """The Lightning trainer of a run that begins at `step`: DDP wherever there is more than one process."""
    run, folder = config.run, Path(config.run.output)
    quieten_lightning()
    share_cores(config.data)
    plugins: list[Any] = [WholeFiles()]
    if ranks.starter == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif not ranks.starter:
        plugins.append(LightningEnvironment())  # also in an allocation of SLURM, where nobody used srun
    bar: list[Callback] = [Progress()] if run.progress else []
    trainer = lightning.Trainer(
        accelerator=find_accelerator(run.accelerator),
        devices=ranks.devices,
        num_nodes=ranks.nodes,
        strategy="ddp" if ranks.world > 1 else "auto",
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
        max_steps=run.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=share.batches,
        log_every_n_steps=min(run.log_every, run.total_steps),
        logger=[Board(folder, step), Table(folder, step)],
        callbacks=[Heartbeat(folder), *callbacks, *watchers(config.health, config.data, share.clips), *bar],
        plugins=plugins,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    leave_signals_alone(trainer)
    return trainer


def make_model(config: TrainConfig, frozen: EncoderConfig | None, continues: bool) -> JEPA:
    """The module of a run, with the weights it begins with; those of a run that continues come from Lightning, later.

    A frozen teacher is read once: afterwards it is part of the checkpoint, and `frozen` its architecture.
    """
    teacher = None
    if config.teacher.weights and not continues:
        teacher = read_origin(config.teacher.weights).pretrained.encoder
    model = JEPA(replace(config.jepa, frozen=frozen), teacher)
    if config.run.start and not continues:
        start(model, config)
    if config.run.compile:
        model.compile_blocks()
    return model


def start(model: JEPA, config: TrainConfig) -> None:
    """Give a new run the weights at run.start; the target encoder begins as a copy of the context encoder.

    Raises ValueError where the architecture differs; another number of frames or crop size is fine.
    """
    found = read_origin(config.run.start or "", config.run.start_weights or "").pretrained
    start_from(found, model.context_encoder, model.predictor if found.predictor else None)
    model.target_encoder.update(model.context_encoder, momentum=0.0)  # moves a moving average only
    print(f"starting from {found}")
    if found.predictor is None:
        print("it has no predictor: a new one is trained")


def describe(config: TrainConfig, world: int, share: Share, step: int) -> str:
    """What the run is about to do, in words."""
    run, encoder = config.run, config.encoder
    lines = [
        f"pretraining {encoder.size} encoder ({encoder.shape.depth} blocks of width {encoder.shape.width}), "
        f"clips of {encoder.frames} frames at {encoder.crop} pixels = {'x'.join(map(str, encoder.grid))} tokens",
        f"batch {run.batch} = {_count(world, 'rank')} x {_count(share.clips, 'clip')} x "
        f"{_count(share.batches, 'batch', 'batches')}, {run.total_steps} steps, {run.precision}, into {run.output}",
    ]
    if step:
        lines.append(f"continuing after step {step}")
    return "\n".join(lines)


class Stream:
    """The loader as Lightning sees it: an iterable; its place is kept by the module, not by prefetching."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.opened: list[Generator[Batch, None, None]] = []

    def __iter__(self) -> Iterator[Batch]:
        self.opened.append(iter(self.loader))
        return self.opened[-1]

    def close(self) -> None:
        """End the loading processes now; at the end of the process it would take seconds."""
        for batches in self.opened:
            batches.close()


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
