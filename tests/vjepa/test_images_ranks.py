"""Images on one rank and clips on another are one process that has both."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from ranks import on_two_ranks
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vjepa.batch import open_batch
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig
from vjepa.objectives.dense import DenseOptions
from vjepa.predictor import PredictorConfig


class Mixed(IterableDataset[dict[str, Any]]):
    """Three steps of two clips and four images; one of two ranks has the clips, the other the images."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __iter__(self) -> Any:
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            clips = torch.randint(0, 256, (2, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
            images = torch.randint(0, 256, (4, 1, 48, 48, 3), generator=generator, dtype=torch.uint8)
            groups = {
                "clips": {"clips": clips, "first": 6 * step},
                "images": {"clips": images, "first": 6 * step + 2},
            }
            own = list(groups)[self.rank :: self.world]
            yield {"groups": {name: groups[name] for name in own}, "position": 6 * (step + 1)}


def tiny_21() -> JepaConfig:
    return JepaConfig(
        objective="dense",
        encoder=EncoderConfig(
            kind="vjepa21", size="custom", width=24, depth=4, heads=2, patch=8, frames=4, crop=32, positions="rotary"
        ),
        predictor=PredictorConfig(width=12, depth=1, heads=2),
        masks={"few": MaskConfig(num_blocks=2, spatial_scale=(0.25, 0.25))},
        image_masks={"image": MaskConfig(num_blocks=3, spatial_scale=(0.15, 0.15))},
        options=DenseOptions(ramp=(0.0, 0.0)),
        steps=20,
    )


class FirstGradient(Callback):
    """Keeps the gradient of the first step, after it has been averaged over ranks."""

    def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.global_step == 0:
            assert isinstance(module, JEPA)
            assert module.predictor is not None
            parameters = [*module.context_encoder.parameters(), *module.predictor.parameters()]
            gradients = [parameter.grad for parameter in parameters if parameter.requires_grad]
            assert all(gradient is not None for gradient in gradients), "one process uses every parameter"
            self.gradient = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).clone()


def train_mixed(config: JepaConfig, rank: int, world: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first gradient; weights of encoder and predictor, and those of the moving average, after three steps."""
    model, first = JEPA(config), FirstGradient()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world, strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[first],
    )  # fmt: skip
    trainer.fit(model, DataLoader(Mixed(rank, world), batch_size=None))
    assert model.position == 18
    trained = [*model.context_encoder.parameters(), *model.predictor.parameters()]
    weights, average = (
        torch.cat([value.detach().flatten() for value in values])
        for values in (trained, model.trained_encoder.parameters())
    )
    return first.gradient, weights, average


@pytest.mark.parametrize("kind", ["vjepa21", "vit"])
def test_two_ranks_mixed_by_rank_equal_one_process_with_both_groups(kind: str, tmp_path: Path) -> None:
    config = tiny_21()
    config = replace(config, encoder=replace(config.encoder, kind=kind))
    alone = train_mixed(config, 0, 1)
    found = on_two_ranks(train_mixed, config, tmp_path, 31_000 + os.getpid() % 2000 + 2000 * (kind == "vit"))
    for gradient, *weights in found:
        torch.testing.assert_close(gradient, alone[0], atol=1e-6, rtol=1e-4)
        for mine, theirs in zip(weights, alone[1:], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_each_group_has_its_own_masks_and_a_mean_of_its_own() -> None:
    model = JEPA(tiny_21())
    batch = next(iter(Mixed(0, 1)))
    joined = model.training_step(batch, 0)
    alone = []
    for name, group in batch["groups"].items():
        model.watching = True
        alone.append(model.training_step({"groups": {name: group}, "position": 6}, 0))
        assert model.watched is not None
        assert [one.name for one in model.watched.predictions] == (["image"] if name == "images" else ["few"])
    torch.testing.assert_close(joined, torch.stack(alone).mean())


def test_a_weight_makes_a_group_count_for_more() -> None:
    model = JEPA(tiny_21())
    batch = next(iter(Mixed(0, 1)))
    alone = [model.training_step({"groups": {n: group}, "position": 6}, 0) for n, group in batch["groups"].items()]
    for name, weight in (("clips", 1.5), ("images", 0.5)):
        batch["groups"][name]["weight"] = weight
    assert [group.weight for group in open_batch(batch).groups] == [1.5, 0.5]
    torch.testing.assert_close(model.training_step(batch, 0), (1.5 * alone[0] + 0.5 * alone[1]) / 2)


def test_the_masks_of_a_group_follow_its_stream_positions() -> None:
    """So they do not depend on which rank has which clips."""
    model = JEPA(tiny_21())
    batch = next(iter(Mixed(0, 1)))["groups"]["images"]
    rows = []
    for first, part in ((2, batch["clips"]), (4, batch["clips"][2:])):
        model.watching = True
        model.training_step({"groups": {"images": {"clips": part, "first": first}}, "position": 6}, 0)
        assert model.watched is not None
        rows.append(model.watched.predictions[0].target_index)
    lengths = min(part.shape[1] for part in rows)
    assert lengths > 0
    kept = [set(row.tolist()) for row in rows[0][2:]]
    assert all(mine & set(theirs.tolist()) for mine, theirs in zip(kept, rows[1], strict=True))


def test_the_mean_of_the_ranks_gradients_is_that_of_one_process() -> None:
    """What DDP computes, without processes: a rank without images adds a gradient of 0 to what only images use."""
    gradients = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        model = JEPA(tiny_21())
        model.training_step(next(iter(Mixed(rank, world))), 0).backward()
        assert model.predictor is not None
        parameters = [*model.context_encoder.parameters(), *model.predictor.parameters()]
        zeroed = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        gradients.append(torch.cat([gradient.flatten() for gradient in zeroed]))
    torch.testing.assert_close((gradients[1] + gradients[2]) / 2, gradients[0], atol=1e-6, rtol=1e-4)
    assert float((gradients[1] - gradients[0]).abs().max()) > 1e-4
