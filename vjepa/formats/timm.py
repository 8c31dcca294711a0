"""Initialise a video encoder from a timm image ViT by inflating its patch kernel: repeated over time and divided.

On a static clip the inflated embedding equals that of the image. Parts without a counterpart are reported as ignored:
class and register tokens, the classifier, and the learned position table (ours are fixed, sin-cos or rotary). So the
features differ from the image model's: it is an initialisation for pretraining.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vjepa.encoder import Encoder
from vjepa.formats.accounting import Pretrained, build_empty, fill
from vjepa.formats.architecture import Hints, read_encoder_config, read_shape
from vjepa.pixels import MEAN, STD
from vjepa.positions import RotaryOrder

_IGNORED = {
    "cls_token": "class token: ours has none",
    "reg_token": "register tokens: ours has none",
    "pos_embed": "learned positions: ours are fixed",
    "head": "classifier",
    "attn_pool": "pooling of the classifier",
}


def inflate_image_vit(
    model: str | nn.Module,
    frames: int = 16,
    crop: int = 224,
    tubelet: int = 2,
    positions: Literal["sincos", "rotary"] = "rotary",
    rotary_order: RotaryOrder = "interleaved",
) -> Pretrained:
    """A video encoder with the weights of a timm VisionTransformer, given as a module or a name (downloaded by timm).

    Layer scale is folded into the preceding projections, which is exact. Raises ValueError for models with features
    ours lacks (another activation, query-key norm, SwiGLU, a norm before the blocks).
    """
    import timm

    image: nn.Module = timm.create_model(model, pretrained=True) if isinstance(model, str) else model
    source = f"timm {model if isinstance(model, str) else type(image).__name__}"
    _check_blocks(image, source)
    weights = {name: tensor.detach().float() for name, tensor in image.state_dict().items()}
    ignored = {}
    for name in list(weights):
        reason = next(
            (reason for stem, reason in _IGNORED.items() if name == stem or name.startswith(f"{stem}.")), None
        )
        if reason is not None:
            ignored[name] = reason
            del weights[name]
    assumed = _fold_layer_scale(weights)
    assumed += _inflate(weights, tubelet, source)
    statistics = tuple(_settings(image).get("mean", MEAN)), tuple(_settings(image).get("std", STD))
    if statistics != (MEAN, STD):
        assumed.append(f"it was trained with colour mean {statistics[0]} and deviation {statistics[1]}, ours differ")
    blocks: Any = image.blocks
    hints = Hints(heads=blocks[0].attn.num_heads, rotary_order=rotary_order)
    config = read_encoder_config(weights, source, positions, hints, frames, crop)
    encoder = build_empty(lambda: Encoder(config))
    fill(encoder, weights, source)
    return Pretrained(encoder.eval(), None, source, ignored, tuple(assumed))


def _check_blocks(image: nn.Module, source: str) -> None:
    """Raise ValueError if settings that the state dict does not show differ from our encoder's."""
    blocks: Any = getattr(image, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not hasattr(blocks[0], "attn"):
        raise ValueError(f"{source} must be a VisionTransformer with blocks, got {type(image).__name__}")
    first: Any = blocks[0]
    epsilon, activation = first.norm1.eps, getattr(first.mlp, "act", None)
    if type(activation) is not nn.GELU or activation.approximate != "none":
        raise ValueError(f"{source}: the activation must be GELU, got {activation}")
    if epsilon != 1e-6:
        raise ValueError(f"{source}: its LayerNorms must have epsilon 1e-6, got {epsilon}")
    if getattr(image, "rope", None) is not None:
        raise ValueError(f"{source} has rotary positions of its own, which ours do not reproduce; take a plain ViT")


def _fold_layer_scale(weights: dict[str, Tensor]) -> list[str]:
    """Fold layer scale into weights and biases: g * (W x + b) = (g W) x + g b."""
    targets = {"ls1": "attn.proj", "ls2": "mlp.fc2"}
    scales = [name for name in weights if re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name)]
    for name in scales:
        block, scale = name.rsplit(".", 2)[:2]
        gamma = weights.pop(name)
        stem = f"{block}.{targets[scale]}"
        weights[f"{stem}.weight"] = gamma[:, None] * weights[f"{stem}.weight"]
        weights[f"{stem}.bias"] = gamma * weights[f"{stem}.bias"]
    return ["layer scale folded into the projections before it"] if scales else []


def _inflate(weights: dict[str, Tensor], tubelet: int, source: str) -> list[str]:
    """Inflate a patch kernel [D, 3, P, P] to [D, 3, tubelet, P, P]; identical frames give the image's features."""
    width = read_shape(weights, "patch_embed.proj.weight", 4, source)[0]
    kernel = weights["patch_embed.proj.weight"].unsqueeze(2)
    weights["patch_embed.proj.weight"] = kernel.repeat(1, 1, tubelet, 1, 1) / tubelet
    if "patch_embed.proj.bias" in weights:
        return []
    weights["patch_embed.proj.bias"] = torch.zeros(width)
    return ["a patch embedding without a bias got one of zeros"]


def _settings(image: nn.Module) -> Mapping[str, Any]:
    settings = getattr(image, "pretrained_cfg", None)
    return settings if isinstance(settings, Mapping) else {}
