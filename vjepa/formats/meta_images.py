"""I-JEPA in the official checkpoints (`.pth.tar`): what tells it apart, and its names and shapes beside ours.

Names are V-JEPA 1's with the prefix `module.`, but the patch kernel is 2D, the frozen tables are those of images, and
the predictor has a single `mask_token`. `vjepa.formats.meta` reads and writes the files themselves.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt

from torch import Tensor

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import Pretrained, build_empty, fill
from vjepa.formats.architecture import (
    PREDICTOR_TABLE,
    TABLE,
    Hints,
    check_table,
    read_encoder_config,
    read_predictor_config,
    read_shape,
)
from vjepa.positions import Positions
from vjepa.predictor import Predictor

POSITIONS: Positions = "sincos_2d"
PREFIX = "module."
KERNEL = "patch_embed.proj.weight"
TOKEN, OUR_TOKEN = "mask_token", "mask_tokens.0"
EPOCH = 625  # steps of an epoch: ImageNet-1k in batches of 2048, as published


def is_image_file(weights: Mapping[str, Tensor]) -> bool:
    """Are these an encoder of I-JEPA? Its patch kernel is [D, 3, P, P]."""
    return KERNEL in weights and weights[KERNEL].ndim == 4


def writes_images(config: EncoderConfig) -> bool:
    """Is I-JEPA's the format of this encoder? ValueError if its positions say so, but its tubelets do not fit."""
    if config.positions != POSITIONS:
        return False
    if config.tubelet != 1:
        raise ValueError(
            f"the public I-JEPA code takes single images: encoder.tubelet must be 1, got {config.tubelet}; export with "
            "--format native"
        )
    return True


def to_images(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes -> I-JEPA's."""
    renamed = {TOKEN if name == OUR_TOKEN else name: value for name, value in weights.items()}
    return {name: value.squeeze(2) if name == KERNEL else value for name, value in renamed.items()}


def to_clips(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """I-JEPA's names and shapes -> ours."""
    renamed = {OUR_TOKEN if name == TOKEN else name: value for name, value in weights.items()}
    return {name: value.unsqueeze(2) if name == KERNEL else value for name, value in renamed.items()}


def read_images(
    weights: Mapping[str, Tensor],
    others: Mapping[str, Tensor] | None,
    hints: Hints,
    source: str,
    ignored: dict[str, str],
) -> Pretrained:
    """Encoder and predictor of I-JEPA, every tensor used; its tables are verified and dropped."""
    found = to_clips(weights)
    if hints.positions is not None:
        raise ValueError(f"{source} is I-JEPA, with the positions of images; positions={hints.positions} was requested")
    width, _, _, patch, _ = read_shape(found, KERNEL, 5, source)
    tokens = read_shape(found, TABLE, 3, source)[1]
    side = isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{source}: {TABLE} must have a square number of rows, got {tokens}")
    if hints.frames not in (0, 1) or hints.crop not in (0, side * patch):
        raise ValueError(
            f"{source} was trained on images of {side * patch} pixels, {hints.frames or 1} frames at "
            f"{hints.crop or side * patch} was requested; load it as it is, then vjepa.resize_encoder(encoder, 1, crop)"
        )
    check_table(found.pop(TABLE), width, (1, side, side), f"{source}: {TABLE}", POSITIONS)
    config = read_encoder_config(found, source, POSITIONS, hints, 1, side * patch)
    encoder = build_empty(lambda: Encoder(config))
    fill(encoder, found, source)
    predictor = None if others is None else _read_predictor(to_clips(others), config, hints, f"predictor of {source}")
    assumed = [] if hints.heads else [f"{config.shape.heads} heads, as published for this size"]
    if predictor is not None and not hints.predictor_heads:
        assumed.append(f"{predictor.heads} heads in the predictor, as in the encoder")
    return Pretrained(encoder.eval(), predictor, source, ignored, tuple(assumed))


def _read_predictor(weights: dict[str, Tensor], encoder: EncoderConfig, hints: Hints, source: str) -> Predictor:
    width, _ = read_shape(weights, "predictor_embed.weight", 2, source)
    read_shape(weights, PREDICTOR_TABLE, 3, source)
    check_table(weights.pop(PREDICTOR_TABLE), width, encoder.grid, f"{source}: {PREDICTOR_TABLE}", POSITIONS)
    config = read_predictor_config(weights, source, encoder, hints.predictor_heads)
    predictor = build_empty(lambda: Predictor(replace(config, mask_token="clip"), encoder))
    fill(predictor, weights, source)
    return predictor.eval()
