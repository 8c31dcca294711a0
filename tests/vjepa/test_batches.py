"""Whatever a loader yields can be trained on, and means the same."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from batches import make_batch
from torch.utils.data import DataLoader, TensorDataset

from vjepa.batch import open_batch
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA, convert_weights
from vjepa.pixels import normalise


def fit(config: JepaConfig, loader: Any) -> JEPA:
    model = JEPA(config)
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, loader)
    return model


def test_anybodys_loader_trains_the_same_whatever_its_batches_are(tiny: JepaConfig) -> None:
    clips = torch.cat([make_batch(step).clips for step in range(3)])
    rows = [{"clips": clip, "mass": torch.tensor(1.0)} for clip in clips]
    loaders = [DataLoader(clips, 4), DataLoader(TensorDataset(clips), 4), DataLoader(rows, 4)]  # type: ignore[arg-type]
    models = [fit(tiny, loader) for loader in loaders]
    assert models[0].position == 12
    wanted = models[0].state_dict()
    for model in models[1:]:
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert not torch.equal(wanted["objective.context_encoder.norm.weight"], torch.ones(24))


def test_named_arrays_and_groups_come_through() -> None:
    clips = make_batch(0).clips
    opened = open_batch({"clips": clips, "position": 8, "actions": torch.zeros(4, 3, 2), "keys": list("abcd")})
    assert opened.position == 8
    assert opened.groups[0].arrays["actions"].shape == (4, 3, 2)
    torch.testing.assert_close(opened.groups[0].video, normalise(clips))
    images = {"images": {"clips": clips[:, 0]}, "videos": {"clips": clips}}
    grouped = open_batch({"groups": images, "position": 8})
    assert [(group.name, list(group.video.shape)) for group in grouped.groups] == [
        ("images", [4, 3, 1, 32, 32]), ("videos", [4, 3, 4, 32, 32])
    ]  # fmt: skip
    assert grouped.size == 8


def test_two_groups_have_the_mean_of_their_losses(tiny: JepaConfig) -> None:
    model, batch = JEPA(tiny), make_batch(0)
    small = batch.clips[:, :, :16, :16]
    alone = float(model.training_step({"clips": batch.clips, "position": 4}, 0))
    model.position = 4
    other = float(model.training_step({"clips": small, "position": 8}, 0))
    joined = {"groups": {"wide": {"clips": batch.clips}, "narrow": {"clips": small}}, "position": 8}
    assert float(model.training_step(joined, 0)) == pytest.approx((alone + other) / 2, abs=1e-6)


def test_what_is_no_batch_is_refused_in_words() -> None:
    for wrong, message in (
        ("clips", "got str"),
        ({"video": torch.zeros(1)}, "must hold a tensor 'clips'"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.int64), "clips must be uint8"),
        (torch.zeros(2, 4, 3, 8, 8), r"must be \[B, 3, T, H, W\]"),
        ({"clips": make_batch(0).clips, "actions": torch.zeros(3)}, r"one row per clip \(4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            open_batch(wrong)


def test_a_size_named_later_is_that_size() -> None:
    assert replace(EncoderConfig(), size="base").shape == (768, 12, 12, 4.0)
    assert EncoderConfig(size="base", width=768) == EncoderConfig(size="base")
    assert EncoderConfig(size="base", depth=6).shape.depth == 6


def test_a_checkpoint_of_the_first_version_is_read(tiny: JepaConfig) -> None:
    """What version 0.1 stored: sections of all objectives, 0 for unset, the module's own names of weights."""
    model = JEPA(tiny)
    stored = asdict(model.config)
    del stored["options"]
    stored |= {"dense": {"levels": 4, "visible": 0.5, "ramp": [0.125, 0.25]}, "views": {"narrow_crop": 0}}
    stored["encoder"] = {**model.config.encoder.describe()}
    del stored["encoder"]["kind"]
    stored["teacher"] |= {"horizon": [0.0, 0.0], "weights": ""}
    stored["optim"] |= {"warmup_share": 0.0, "reference_batch": 0}
    stored["predictor"] |= {"mask_tokens": 0}
    for mask in stored["masks"].values():
        mask |= {"aspect": [0.75, 1.5], "max_keep": 0, "keep": mask["keep"] or 0.0, "predict": mask["predict"] or 0.0}
        del mask["options"]
    assert JepaConfig.from_dict(stored) == model.config
    old = {name.removeprefix("objective."): value for name, value in model.state_dict().items()}
    assert convert_weights(old).keys() == model.state_dict().keys()
    assert convert_weights(model.state_dict()).keys() == model.state_dict().keys()


def test_a_frozen_teacher_that_is_missing_is_refused(tiny: JepaConfig) -> None:
    config = replace(tiny, teacher=replace(tiny.teacher, source="frozen", weights="somewhere"))
    with pytest.raises(ValueError, match="random weights would be frozen"):
        JEPA(config)
