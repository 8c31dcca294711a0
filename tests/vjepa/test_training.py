"""Training runs on the CPU through Lightning: ranks, resume, a stored curve."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as lightning
import torch
import torch.distributed as distributed
from batches import Clips, make_batch
from pytorch_lightning.callbacks import Callback
from ranks import on_two_ranks
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, IterableDataset

from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import LONG_RANGE, SHORT_RANGE

GOLDEN = Path(__file__).parent / "golden_losses.json"


class Batches(IterableDataset):
    """Batches from a step on, a rank's share of each."""

    def __init__(self, first: int = 0, rank: int = 0, world: int = 1) -> None:
        self.first, self.rank, self.world = first, rank, world

    def __iter__(self):
        share = 4 // self.world
        for step in range(self.first, 1000):
            yield make_batch(step, first=self.rank * share, count=share)


class Losses(Callback):
    """Collects the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def fit(config: JepaConfig, folder: Path, steps: int, resume: Path | None = None) -> tuple[JEPA, list[float]]:
    model, losses = JEPA(config), Losses()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, callbacks=[losses], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    first = torch.load(resume, weights_only=True)["position"] // 4 if resume else 0
    loader = DataLoader(Batches(first), batch_size=None)
    trainer.fit(model, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model, losses.values


def test_resume_is_exact(tiny: JepaConfig, tmp_path: Path) -> None:
    whole, losses = fit(tiny, tmp_path / "whole", 6)
    _, before = fit(tiny, tmp_path / "parts", 3)
    resumed, after = fit(tiny, tmp_path / "parts", 6, resume=tmp_path / "parts" / "3.ckpt")
    assert before + after == losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_checkpoint_holds_plain_data_that_rebuilds_the_config(tiny: JepaConfig, tmp_path: Path) -> None:
    fit(tiny, tmp_path, 2)
    stored = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert JepaConfig.from_dict(stored["config"]) == tiny
    assert stored["position"] == 8


def test_weights_follow_from_the_seed_alone(tiny: JepaConfig) -> None:
    first = JEPA(tiny)
    torch.rand(7)
    for mine, theirs in zip(first.parameters(), JEPA(tiny).parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_tiny_run_matches_golden_losses(tiny: JepaConfig, tmp_path: Path) -> None:
    """20 steps against a stored curve; `GOLDEN=1 make test` rewrites it after a change that is meant to alter it."""
    _, losses = fit(tiny, tmp_path, 20)
    if os.environ.get("GOLDEN"):
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in losses], indent=0) + "\n")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), abs=2e-4)


def test_two_ranks_equal_one(tiny: JepaConfig, tmp_path: Path) -> None:
    alone = train_by_hand(tiny, rank=0, world=1)
    found = on_two_ranks(train_by_hand, tiny, tmp_path, 29_000 + os.getpid() % 2000)
    for losses, gradients, weights in found:
        assert losses == pytest.approx(alone[0], abs=1e-5)
        torch.testing.assert_close(gradients, alone[1], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(weights, alone[2], atol=1e-4, rtol=1e-3)


class FirstGradient(Callback):
    """Keeps the gradient of the first step, after it has been averaged over ranks and before it is clipped."""

    def on_after_backward(self, trainer, module) -> None:
        if trainer.global_step == 0:
            parameters = [*module.context_encoder.parameters(), *module.predictor.parameters()]
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in parameters]).clone()


def train_by_hand(config: JepaConfig, rank: int, world: int) -> tuple[list[float], torch.Tensor, torch.Tensor]:
    """Three steps: mean loss over ranks, first gradient, final weights."""
    model, losses, first = JEPA(config), Losses(), FirstGradient()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_steps=3, logger=False,
        callbacks=[losses, first], enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Batches(0, rank, world), batch_size=None))
    means = torch.tensor(losses.values)
    if world > 1:
        distributed.all_reduce(means)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.context_encoder.parameters()])
    return (means / world).tolist(), first.gradient, weights


def test_position_is_where_the_batches_ended(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    model.training_step(Clips(make_batch(4).clips, 20), 0)
    assert model.position == 20


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_from_three_graphs(tiny: JepaConfig) -> None:
    """One graph each for teacher, context encoder and predictor, although every step has other lengths."""
    counters.clear()
    masks = {"short": replace(SHORT_RANGE, keep=0, predict=0), "long": replace(LONG_RANGE, keep=0, predict=0)}
    plain, compiled = (JEPA(replace(tiny, masks=masks)) for _ in range(2))
    compiled.compile_blocks()
    lengths = set()
    for step in range(8):
        compiled.watching = True
        loss = compiled.training_step(make_batch(step), 0)
        loss.backward()
        torch.testing.assert_close(loss, plain.training_step(make_batch(step), 0))
        assert compiled.watched is not None
        lengths |= {one.context.shape[1] for one in compiled.watched.predictions}
    assert len(lengths) > 3
    assert counters["stats"]["unique_graphs"] == 3
