"""A JEPA small enough for a test."""

import pytest

from vjepa.encoder import EncoderConfig
from vjepa.jepa import JepaConfig
from vjepa.masks import MaskConfig
from vjepa.optim import OptimConfig
from vjepa.predictor import PredictorConfig


@pytest.fixture
def tiny() -> JepaConfig:
    """16 tokens of width 24; two kinds of masks."""
    return JepaConfig(
        encoder=EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=32),
        predictor=PredictorConfig(width=12, depth=1, heads=2),
        masks={
            "blocks": MaskConfig(num_blocks=2, spatial_scale=(0.25, 0.25), keep=0.25, predict=0.25),
            "ahead": MaskConfig(kind="future"),
        },
        optim=OptimConfig(lr=1e-3, start_lr=1e-4, warmup_steps=2, clip=1.0),
        steps=20,
    )
