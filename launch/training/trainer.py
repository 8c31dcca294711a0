"""Runs a pretraining run: builds the module, the loader and the Lightning trainer, fits, and finishes."""

import os
import signal
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
from data.loading.loader import TrainLoader
from launch.devices import find_accelerator, is_compiled, share_cores
from launch.exchange.encoders import read_origin
from launch.training.checkpoints import check_fits, latest_checkpoint, read_checkpoint, read_config_of
from launch.training.config import TrainConfig
from launch.training.continued import continue_all
from launch.training.feed import Stream
from launch.training.garbage import GarbageCollector
from launch.training.health import watchers
from launch.training.lightning import choose_accelerator, leave_signals_alone, quieten_lightning
from launch.training.loggers import make_loggers
from launch.training.preempt import Preemption
from launch.training.progress import Progress
from launch.training.randomness import seed_generators
from launch.training.ranks import Ranks, Share, find_ranks, share_out
from launch.training.rundir import (
    Heartbeat,
    add_event,
    begin_run,
    check_same,
    check_share,
    hold_run,
    list_settings,
    settle_precision,
)
from launch.training.saving import CheckpointFiles, Saver
from launch.training.signals import Interrupted, forget, forget_earlier
from launch.training.strategy import choose_strategy
from vjepa.attention import pin_attention
from vjepa.encoder import EncoderConfig
from vjepa.formats.accounting import start_from
from vjepa.formats.loading import is_pretrained
from vjepa.jepa import JEPA
from vjepa.registry import CALLBACKS


def train(config: TrainConfig, callbacks: list[Callback] | None = None) -> JEPA:
    """Start or resume a pretraining run; returns the trained module.

    Raises ValueError if run.output holds a run with a different config, different data, or a checkpoint that does not
    match; InUseError if another process trains there; Interrupted after a signal, once the run is saved.
    """
    forget_earlier()
    with hold_run(Path(config.run.output), find_ranks(config.run).rank):
        return train_held(config, callbacks)


def train_held(config: TrainConfig, callbacks: list[Callback] | None = None) -> JEPA:
    """`train` for a caller that already holds the lock on the run directory."""
    config = settle_precision(config)
    folder, run = Path(config.run.output), config.run
    ranks = find_ranks(run)
    share = share_out(run, ranks.world)
    seed_generators(run.seed + ranks.rank)
    loader = TrainLoader(config.data, share.clips, run.seed, rank=ranks.rank, world=ranks.world, step=run.batch)
    checkpoint = latest_checkpoint(folder, ranks.rank)
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
    files = CheckpointFiles()
    saver = Saver(folder, min(run.checkpoint_every, run.total_steps), run.keep, run.keep_every or 0, loader, files)
    own = [CALLBACKS.find(name)() for name in CALLBACKS]  # of the user's plugins
    trainer = make_trainer(config, ranks, share, step, [saver, preemption, *own, *(callbacks or [])], files)
    if trainer.is_global_zero:
        begin_run(folder, config, loader, step, ranks.world, share.clips)
        for logger in trainer.loggers:
            logger.log_hyperparams(list_settings(config))
        if run.progress:
            print(describe(config, ranks.world, share, step))
    del stored  # its memory-mapped tensors would keep the old file open
    stream = Stream(loader, lambda: trainer.strategy.root_device)
    try:
        with pin_attention(run.attention):
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
        print(f"{model.position} clips seen; {skipped.total()} unreadable clips replaced on this rank{reasons}")
    return model


def finish(folder: Path, trainer: lightning.Trainer, number: int) -> None:
    """Record how the run ended and shut down the process group; Interrupted if signal `number` ended it early."""
    step = trainer.global_step
    stopped = bool(number) and step < trainer.max_steps
    name = signal.Signals(number).name if stopped else ""
    if trainer.is_global_zero:
        add_event(folder, "interrupted" if stopped else "finished", step=step, signal=name)
        if stopped:
            write_text(folder / "unfinished", os.environ.get("SLURM_JOB_ID", "") + "\n")  # read by the job script
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # everything is written before the first process exits
        torch.distributed.destroy_process_group()
    if stopped:
        forget()  # handled: the next run of this process must not stop
        raise Interrupted(
            f"stopped by {name} after step {step} of {trainer.max_steps}, saved in {folder}; the same command continues"
        )


def make_trainer(
    config: TrainConfig, ranks: Ranks, share: Share, step: int, callbacks: list[Callback], files: CheckpointFiles
) -> lightning.Trainer:
    """The Lightning trainer of a run that starts at `step`; DDP if there is more than one process."""
    run, folder = config.run, Path(config.run.output)
    quieten_lightning()
    share_cores(config.data)
    plugins: list[Any] = [files]
    if ranks.starter == "srun":
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif not ranks.starter:
        plugins.append(LightningEnvironment())  # also inside a SLURM allocation, if srun was not used
    bar: list[Callback] = [Progress()] if run.progress else []
    trainer = lightning.Trainer(
        accelerator=choose_accelerator(find_accelerator(run.accelerator), ranks.devices, bool(ranks.starter)),
        devices=ranks.devices,
        num_nodes=ranks.nodes,
        strategy=choose_strategy(config, ranks.world),
        precision="bf16-mixed" if run.precision == "bf16" else "32-true",
        max_steps=run.total_steps,
        max_epochs=-1,
        accumulate_grad_batches=share.batches,
        log_every_n_steps=min(run.log_every, run.total_steps),
        logger=make_loggers(run.loggers, folder, step),
        callbacks=[
            Heartbeat(folder),
            *callbacks,
            *watchers(config.health, config.data, share.clips),
            *bar,
            GarbageCollector(),
        ],
        plugins=plugins,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    leave_signals_alone(trainer)
    return trainer


def make_model(config: TrainConfig, frozen: EncoderConfig | None, continues: bool) -> JEPA:
    """The module of a run with its initial weights; on resume Lightning loads the weights later.

    A frozen teacher is loaded once, at the first start: afterwards it is part of the checkpoint, and `frozen` is its
    architecture.
    """
    teacher = None
    if config.teacher.weights and not continues:
        teacher = read_origin(config.teacher.weights, config.teacher.which or "").pretrained.encoder
    model = JEPA(replace(config.jepa, frozen=frozen), teacher)
    if config.run.start_weights and not config.run.start:
        raise ValueError(
            f"run.start_weights={config.run.start_weights} needs run.start: the run or file to load them from (null, "
            f"to begin with random weights)"
        )
    if config.run.start and not continues:
        start(model, config)
    if is_compiled(config.run.compile, config.run.accelerator):
        model.compile_blocks()
    return model


def start(model: JEPA, config: TrainConfig) -> None:
    """Load the weights at run.start into a new run; the target encoder starts as a copy of the context encoder.

    With start_weights=all, context encoder, target encoder and Adam's moments all go on from those of run.start. Raises
    ValueError if the architecture differs; a different number of frames or crop size is fine.
    """
    path, weights = config.run.start or "", config.run.start_weights
    if weights == "all":
        found = read_origin(path, "encoder" if is_pretrained(path) else "target").pretrained
    else:
        found = read_origin(path, weights or "").pretrained
    start_from(found, model.context_encoder, model.predictor if found.predictor else None)
    model.target_encoder.update(model.context_encoder, momentum=0.0)  # only a moving average changes
    print(f"starting from {found}")
    if weights == "all":
        print(continue_all(model, path))
    if found.predictor is None:
        print("it has no predictor: a new one is initialised")


def describe(config: TrainConfig, world: int, share: Share, step: int) -> str:
    """A summary of the run, printed at the start."""
    run, encoder = config.run, config.encoder
    lines = [
        f"pretraining {encoder.size} encoder ({encoder.shape.depth} blocks of width {encoder.shape.width}), "
        f"clips of {encoder.frames} frames at {encoder.crop} pixels = {'x'.join(map(str, encoder.grid))} tokens",
        f"batch {run.batch} = {_count(world, 'rank')} x {_count(share.clips, 'clip')} x "
        f"{_count(share.batches, 'batch', 'batches')}, {run.total_steps} steps, {run.precision}, into {run.output}",
    ]
    if step:
        lines.append(f"resuming after step {step}")
    return "\n".join(lines)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
