"""V-JEPA 2.1 in the official checkpoints: what tells it apart, its architecture from tensor shapes, its names.

The names are those of our modules. ViT-g and ViT-G files hold the encoder as `target_encoder` and a predictor that
takes four levels; the distilled ViT-B and ViT-L hold it as `ema_encoder`, and a predictor that takes the last level and
predicts features of the larger teacher. `vjepa.formats.meta` reads and writes the files themselves.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vjepa.encoder import EncoderConfig
from vjepa.encoder21 import ModalityEncoder
from vjepa.formats.accounting import build_empty, fill, list_some
from vjepa.formats.architecture import Hints, count_blocks, read_encoder_config, read_shape
from vjepa.predictor import PredictorConfig
from vjepa.predictor21 import ModalityPredictor

KIND = "vjepa21"
CLIP = (64, 384)  # frames and pixels of the released models, after their cooldown
PREDICTOR_HEADS = 12
DISTILLED = ("base", "large")  # sizes released as `ema_encoder`
MARKS = ("patch_embed_img.", "img_mod_embed", "video_mod_embed", "norms_block.")
REQUIRED = (
    "patch_embed_img.proj.weight",
    "img_mod_embed",
    "video_mod_embed",
    "norms_block.0.weight",
)


def is_version_2_1(weights: Mapping[str, Tensor], source: str) -> bool:
    """Are these an encoder of V-JEPA 2.1? ValueError if only some of its parts are there."""
    found = [name for name in weights if name.startswith(MARKS)]
    if not found:
        return False
    missing = [name for name in REQUIRED if name not in weights]
    if missing:
        raise ValueError(
            f"{source} is V-JEPA 2.1 in part: it has {list_some(sorted(found))}, but not {', '.join(missing)}"
        )
    return True


def read_encoder(weights: dict[str, Tensor], hints: Hints, source: str) -> ModalityEncoder:
    """The encoder, every tensor used. Its positions are always interleaved, whatever the hints."""
    if hints.positions == "sincos":
        raise ValueError(f"{source} is V-JEPA 2.1, whose positions are rotary; positions=sincos was requested")
    frames, crop = hints.frames or CLIP[0], hints.crop or CLIP[1]
    plain = read_encoder_config(weights, source, "rotary", replace(hints, rotary_order="interleaved"), frames, crop)
    config = replace(plain, kind=KIND)
    encoder = build_empty(lambda: ModalityEncoder(config))
    fill(encoder, weights, source)
    return encoder


def read_predictor(
    weights: Mapping[str, Tensor], encoder: EncoderConfig, hints: Hints, source: str
) -> ModalityPredictor:
    """The predictor; the shape of its embedding tells how many levels it takes."""
    several = "predictor_embed.0.weight" in weights
    first, last = ("predictor_embed.0", "predictor_embed.2") if several else ("predictor_embed", "predictor_embed")
    inputs = read_shape(weights, f"{first}.weight", 2, source)[1]
    levels, rest = divmod(inputs, encoder.shape.width)
    if rest or (levels == 1) == several:
        raise ValueError(
            f"{source} takes features of width {inputs}, which does not fit an encoder of width {encoder.shape.width}"
        )
    width = read_shape(weights, f"{last}.weight", 2, source)[0]
    target_width = read_shape(weights, "predictor_proj.weight", 2, source)[0]
    depth = count_blocks(weights, "predictor_blocks", source)
    hidden = read_shape(weights, "predictor_blocks.0.mlp.fc1.weight", 2, source)[0]
    tokens = sum(name.startswith("mask_tokens.") for name in weights)
    config = PredictorConfig(width, depth, hints.predictor_heads or PREDICTOR_HEADS, hidden / width, tokens)
    predictor = build_empty(lambda: ModalityPredictor(config, encoder, levels, target_width))
    fill(predictor, weights, source)
    return predictor


def assume(hints: Hints, encoder: ModalityEncoder, predictor: ModalityPredictor | None) -> tuple[str, ...]:
    """What a file does not say, and was taken from the published configs."""
    config = encoder.config
    assumed = [f"levels after blocks {', '.join(map(str, encoder.levels))}"]
    if not (hints.frames and hints.crop):
        assumed.append(
            f"clips of {config.frames} frames at {config.crop} pixels; positions are scaled to the size of the input"
        )
    if not hints.heads:
        assumed.append(f"{config.shape.heads} heads, as published for this size")
    if predictor is not None and not hints.predictor_heads:
        assumed.append(f"{predictor.heads} heads in the predictor")
    return tuple(assumed)


def released_name(config: EncoderConfig) -> str:
    """Under which name the public code looks for an encoder of this size."""
    return "ema_encoder" if config.size in DISTILLED else "target_encoder"
