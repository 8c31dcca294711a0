"""Read and write the official checkpoints of V-JEPA 1 and I-JEPA (`.pth.tar`), V-JEPA 2 and V-JEPA 2.1 (`.pt`).

A checkpoint is a dictionary with encoder, target_encoder or ema_encoder, predictor, and other training state. Parameter
names have the prefix `module.backbone.`. V-JEPA 1 adds frozen tables `pos_embed` and `predictor_pos_embed`; some
V-JEPA 2 files have them too, although rotary positions do not use them. V-JEPA 2.1's modules are in `meta21`,
I-JEPA's in `meta_images`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import Pretrained, build_empty, fill, list_some
from vjepa.formats.architecture import (
    PREDICTOR_TABLE,
    TABLE,
    Hints,
    check_table,
    read_encoder_config,
    read_grid,
    read_predictor_config,
    read_shape,
)
from vjepa.formats.meta21 import KIND, assume, is_version_2_1, read_encoder, read_predictor, released_name
from vjepa.formats.meta_images import PREFIX, is_image_file, read_images, to_images, writes_images
from vjepa.formats.pickled import load_pickled
from vjepa.positions import Positions
from vjepa.predictor import Predictor

EncoderName = Literal["encoder", "target_encoder", "ema_encoder"]
ENCODERS: tuple[EncoderName, ...] = ("encoder", "target_encoder", "ema_encoder")
PREFIXES = ("module.backbone.", "backbone.", "module.", "")
OURS = "vjepa"  # key of the configs that our own export adds, as plain data

_BESIDE = {
    "opt": "optimiser state",
    "optimizer": "optimiser state",
    "scaler": "gradient scaler",
    OURS: "read for the architecture",
}
_VERSION_2_TOKENS = 8  # mask tokens: V-JEPA 2 has 8 or 10, V-JEPA 1 one per mask
_DEFAULT_CLIP = (64, 256)  # frames and pixels of the released V-JEPA 2 models


def load_meta(path: str | Path, which: EncoderName | None = None, hints: Hints | None = None) -> Pretrained:
    """Load encoder `which` and the predictor of an official checkpoint, in fp32 and evaluation mode.

    Frozen evaluation uses `target_encoder`, the public hub loader `encoder`, distilled students `ema_encoder`, so
    `which` is required. Raises ValueError if any tensor is neither used nor known to be irrelevant.
    """
    path = Path(path)
    content = load_pickled(path)
    chosen = _choose(content, which, path)
    stored = _read_ours(content, path)
    hints = _complete(hints or Hints(), stored)
    source = f"{path}[{chosen!r}]"
    weights = strip_prefix(content[chosen], source)
    ignored = _beside(content, chosen, path)
    others = strip_prefix(content["predictor"], f"{path}['predictor']") if "predictor" in content else None
    if others is not None and "action_encoder.weight" in others:
        ignored["predictor"], others = "conditioned on actions (V-JEPA 2-AC)", None
    if is_image_file(weights):
        return read_images(weights, others, replace(hints, positions=None) if stored else hints, source, ignored)
    if is_version_2_1(weights, source):
        return _read_version_2_1(weights, others, hints, source, ignored)
    positions = _find_positions(weights, others, hints, source)
    unused = "equal to our sin-cos table" if positions == "sincos" else "frozen table, not used with rotary positions"
    ignored |= {f"{chosen}.{TABLE}": unused} if TABLE in weights else {}
    ignored |= {f"predictor.{PREDICTOR_TABLE}": unused} if PREDICTOR_TABLE in (others or {}) else {}

    frames, crop = _read_clip(weights, weights.pop(TABLE, None), positions, hints, source)
    config = read_encoder_config(weights, source, positions, hints, frames, crop)
    encoder = build_empty(lambda: Encoder(config))
    fill(encoder, weights, source)
    predictor = None if others is None else _read_predictor(others, config, hints, f"{path}['predictor']")
    assumed = () if stored else _assume(hints, config, predictor)
    return Pretrained(encoder.eval(), predictor, source, ignored, assumed)


def save_meta(
    encoder: Encoder,
    predictor: Predictor | None,
    folder: str | Path,
    complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Path:
    """Write a checkpoint that the public code can load; returns the file.

    The encoder is stored once, under `encoder` (used by the hub loader) and `target_encoder` (used by the evaluation);
    V-JEPA 2.1's ViT-B and ViT-L also under `ema_encoder`. `complete` adds the training state (see
    `meta_training.add_training`). Raises ValueError for an encoder that the public code does not support.
    """
    config = encoder.config
    if config.kind not in ("vit", KIND):
        raise ValueError(f"the public code has no encoder.kind={config.kind}; export it with --format native")
    newest = config.kind == KIND
    if config.positions == "rotary" and config.rotary_order != "tiled" and not newest:
        raise ValueError(
            f"the public V-JEPA 2 code uses tiled rotary frequencies, this encoder {config.rotary_order} ones; "
            f"train with encoder.rotary_order=tiled, or export with --format native or onnx"
        )
    has_table, images = config.positions != "rotary", writes_images(config)
    weights = _with_prefix(encoder, {TABLE: encoder.position_table} if has_table else {}, images)
    content: dict[str, Any] = {"encoder": weights, "target_encoder": weights}
    if newest:
        content[released_name(config)] = weights
    ours: dict[str, Any] = {"encoder": config.describe()}
    if predictor is not None:
        content["predictor"] = _with_prefix(
            predictor, {PREDICTOR_TABLE: predictor.position_table} if has_table else {}, images
        )
        ours["predictor_heads"] = predictor.heads
    content |= {"epoch": 0, OURS: ours}
    content = complete(content) if complete else content
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("checkpoint.pth.tar" if has_table else "checkpoint.pt")
    torch.save(content, path)
    return path


def strip_prefix(weights: Any, source: str) -> dict[str, Tensor]:
    """Remove the prefix from all names; ValueError unless all values are tensors and share one known prefix."""
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{source} must be a dictionary of tensors, got {type(weights).__name__}")
    strange = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"{source} must hold only tensors; these are not: {list_some(strange)}")
    names = [str(name) for name in weights]
    anchors = ("patch_embed.proj.weight", "predictor_embed.weight", "predictor_embed.0.weight")
    prefix = next((name.removesuffix(end) for name in names for end in anchors if name.endswith(end)), "")
    if prefix not in PREFIXES:
        known = ", ".join(repr(known) for known in PREFIXES)
        raise ValueError(f"{source}: its names begin with {prefix!r}; the known prefixes are {known}")
    others = [name for name in names if not name.startswith(prefix)]
    if others:
        raise ValueError(f"{source}: most names begin with {prefix!r}, these do not: {list_some(others)}")
    return {name.removeprefix(prefix): value for name, value in zip(names, weights.values(), strict=True)}


def _choose(content: Mapping[str, Any], which: EncoderName | None, path: Path) -> EncoderName:
    """Check `which`; if it is missing or not given, a ValueError lists what the file holds."""
    present = [name for name in ENCODERS if name in content]
    if not present:
        held = ", ".join(str(name) for name in list(content)[:6]) or "nothing"
        if "state_dict" in content and "pytorch-lightning_version" in content:
            raise ValueError(f"{path} is a training checkpoint of this project; `vjepa export` reads it")
        kind = "the weights of a probe" if "classifiers" in content or "classifier" in content else "something else"
        raise ValueError(f"{path} holds no encoder ({', '.join(ENCODERS)}) but {kind}: {held}")
    if which is None:
        raise ValueError(
            f"{path} holds {', '.join(present)}: say which (frozen evaluation uses target_encoder, the public hub "
            f"loader encoder, distilled students ema_encoder)"
        )
    if which not in present:
        raise ValueError(f"{path} holds no {which}; it has {', '.join(present)}")
    return which


def _beside(content: Mapping[str, Any], chosen: str, path: Path) -> dict[str, str]:
    """All entries except the chosen encoder and the predictor, with the reason why each is ignored."""
    ignored = {}
    for name, value in content.items():
        if name in (chosen, "predictor"):
            continue
        if name in _BESIDE:
            ignored[name] = _BESIDE[name]
        elif name in ENCODERS:
            ignored[name] = f"another encoder, {chosen} was requested"
        elif isinstance(value, (Mapping, Tensor, list, tuple)):
            raise ValueError(f"{path} holds {name!r} ({type(value).__name__}), which no official checkpoint has")
        else:
            ignored[str(name)] = "a number of the training run"
    return ignored


def _read_ours(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The configs written by our own export; empty for other files."""
    stored = content.get(OURS, {})
    if not isinstance(stored, Mapping) or not isinstance(stored.get("encoder", {}), Mapping):
        raise ValueError(f"{path}: {OURS!r} must be what `export --format meta` writes, got {stored!r}")
    return stored


def _complete(hints: Hints, stored: Mapping[str, Any]) -> Hints:
    """Fill unset hints from the configs written by our own export."""
    encoder: Mapping[str, Any] = stored.get("encoder", {})
    return replace(
        hints,
        heads=hints.heads or encoder.get("heads", 0),
        predictor_heads=hints.predictor_heads or stored.get("predictor_heads", 0),
        positions=hints.positions or encoder.get("positions"),
        rotary_order=encoder.get("rotary_order", hints.rotary_order),
        frames=hints.frames or encoder.get("frames", 0),
        crop=hints.crop or encoder.get("crop", 0),
    )


def _find_positions(
    weights: Mapping[str, Tensor], predictor: Mapping[str, Tensor] | None, hints: Hints, source: str
) -> Positions:
    """Sin-cos or rotary. A table alone is not conclusive: some V-JEPA 2 files contain an unused one."""
    if hints.positions:
        return hints.positions
    if TABLE not in weights:
        return "rotary"
    tokens = sum(name.startswith("mask_tokens.") for name in predictor or {})
    if not tokens:
        raise ValueError(
            f"{source} has {TABLE}, which V-JEPA 1 uses and V-JEPA 2 ignores, and no predictor whose mask tokens would "
            f"tell them apart; give positions=sincos (V-JEPA 1) or positions=rotary (V-JEPA 2)"
        )
    return "rotary" if tokens >= _VERSION_2_TOKENS else "sincos"


def _read_clip(
    weights: Mapping[str, Tensor], table: Tensor | None, positions: Positions, hints: Hints, source: str
) -> tuple[int, int]:
    """Frames and pixels of the training clips: from the verified table, else from hints or published values."""
    width, _, tubelet, patch, _ = read_shape(weights, "patch_embed.proj.weight", 5, source)
    if positions == "rotary":
        return hints.frames or _DEFAULT_CLIP[0], hints.crop or _DEFAULT_CLIP[1]
    if table is None:
        raise ValueError(f"{source} has no {TABLE}, so its positions are rotary; positions=sincos was requested")
    t, h, _ = read_grid(table, width, f"{source}: {TABLE}")
    frames, crop = t * tubelet, h * patch
    if hints.frames not in (0, frames) or hints.crop not in (0, crop):
        raise ValueError(
            f"{source} was trained on {frames} frames at {crop} pixels, {hints.frames or frames} at "
            f"{hints.crop or crop} was requested; load it as it is, then vjepa.resize_encoder(encoder, frames, crop)"
        )
    return frames, crop


def _assume(hints: Hints, config: EncoderConfig, predictor: Predictor | None) -> tuple[str, ...]:
    """Values assumed from the published configs because the file does not contain them."""
    assumed = []
    if config.positions == "rotary":
        if not (hints.frames and hints.crop):
            clip = f"clips of {config.frames} frames at {config.crop} pixels"
            assumed.append(f"{clip}; rotary positions do not depend on it")
        assumed.append(f"rotary frequencies {config.rotary_order}")
    if not hints.heads:
        assumed.append(f"{config.shape.heads} heads, as published for this size")
    if predictor is not None and not hints.predictor_heads:
        assumed.append(f"{predictor.heads} heads in the predictor")
    return tuple(assumed)


def _read_version_2_1(
    weights: dict[str, Tensor],
    others: dict[str, Tensor] | None,
    hints: Hints,
    source: str,
    ignored: dict[str, str],
) -> Pretrained:
    """Encoder and predictor of V-JEPA 2.1."""
    encoder = read_encoder(weights, hints, source)
    name = f"predictor of {source}"
    predictor = None if others is None else read_predictor(others, encoder.config, hints, name)
    shown = assume(hints, encoder, predictor)
    return Pretrained(encoder.eval(), predictor.eval() if predictor else None, source, ignored, shown)


def _read_predictor(weights: dict[str, Tensor], encoder: EncoderConfig, hints: Hints, source: str) -> Predictor:
    """The predictor; its table is verified and dropped. V-JEPA 2's has 12 heads, whatever the encoder."""
    heads, table = hints.predictor_heads, weights.pop(PREDICTOR_TABLE, None)
    width, _ = read_shape(weights, "predictor_embed.weight", 2, source)
    if not heads and (encoder.positions, width) == ("rotary", 384):
        heads = 12
    config = read_predictor_config(weights, source, encoder, heads)
    if encoder.positions == "sincos":
        if table is None:
            raise ValueError(f"{source} has no {PREDICTOR_TABLE} although the encoder has {TABLE}")
        check_table(table, width, encoder.grid, f"{source}: {PREDICTOR_TABLE}")
    tokens = [value for name, value in weights.items() if name.startswith("mask_tokens.")]
    if encoder.positions == "rotary" and tokens[0].any() and not any(token.any() for token in tokens[1:]):
        config = replace(config, mask_token="clip")  # only the first was trained: all masks share it (V-JEPA 2)
    predictor = build_empty(lambda: Predictor(config, encoder))
    fill(predictor, weights, source)
    return predictor.eval()


def _with_prefix(module: nn.Module, tables: Mapping[str, Tensor], images: bool) -> dict[str, Tensor]:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    weights |= {name: table.detach().cpu().unsqueeze(0).contiguous() for name, table in tables.items()}
    prefix, named = (PREFIX, to_images(weights)) if images else (PREFIXES[0], weights)
    return {f"{prefix}{name}": tensor for name, tensor in named.items()}
