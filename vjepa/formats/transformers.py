"""Convert to and from transformers' VJEPA2Model. Writing needs the extra `transformers`.

Only encoders with rotary positions in the tiled order, the one VJEPA2Model implements, can be exported.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import Pretrained, build_empty, fill
from vjepa.formats.architecture import name_size
from vjepa.formats.native import read_safetensors
from vjepa.formats.pickled import load_pickled
from vjepa.pixels import MEAN, STD
from vjepa.predictor import Predictor, PredictorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, VJEPA2Model

CONFIG, PROCESSOR = "config.json", "video_preprocessor_config.json"


def to_transformers(encoder: Encoder, predictor: Predictor | None = None, attention: str = "sdpa") -> "VJEPA2Model":
    """A VJEPA2Model with the same weights; if no predictor is given, it gets a random one with a single block.

    Raises ValueError for an encoder that VJEPA2Model cannot represent.
    """
    config = encoder.config
    if config.kind != "vit":
        raise ValueError(
            f"transformers' VJEPA2Model has no encoder of kind {config.kind}; export with --format native or meta"
        )
    from transformers import VJEPA2Config, VJEPA2Model

    if config.positions != "rotary" or config.rotary_order != "tiled":
        kind = "interleaved rotary" if config.positions == "rotary" else "sin-cos"
        raise ValueError(
            f"transformers supports only rotary positions with tiled frequencies, this encoder has "
            f"{kind} positions; train with encoder.positions=rotary "
            f"encoder.rotary_order=tiled, or export with --format native or onnx"
        )
    predictor = predictor or Predictor(PredictorConfig(width=config.shape.heads * 8, depth=1), config)
    theirs = VJEPA2Model(
        VJEPA2Config(
            patch_size=config.patch,
            crop_size=config.crop,
            frames_per_clip=config.frames,
            tubelet_size=config.tubelet,
            hidden_size=config.shape.width,
            num_attention_heads=config.shape.heads,
            num_hidden_layers=config.shape.depth,
            mlp_ratio=_exact_ratio(config.shape.width, config.shape.mlp_ratio),
            pred_hidden_size=predictor.config.width,
            pred_num_attention_heads=predictor.heads,
            pred_num_hidden_layers=predictor.config.depth,
            pred_mlp_ratio=_exact_ratio(predictor.config.width, predictor.config.mlp_ratio),
            pred_num_mask_tokens=1,
            attn_implementation=attention,
        )
    )
    weights = {}
    for name, tensor in encoder.state_dict().items():
        weights.update(_renamed(f"encoder.{name}", tensor))
    for name, tensor in predictor.state_dict().items():
        if not name.startswith("mask_tokens"):
            weights.update(_renamed(f"predictor.{name}", tensor))
    # VJEPA2Model always uses mask token 1 % n, so it gets only one: that of the first mask.
    weights["predictor.embeddings.mask_tokens"] = predictor.mask_tokens[0].unsqueeze(0)
    fill(theirs, weights, "the export to transformers")
    return theirs


def save_transformers(encoder: Encoder, predictor: Predictor | None, folder: str | Path) -> Path:
    """Write a folder that `AutoModel.from_pretrained` and `AutoVideoProcessor.from_pretrained` load."""
    return save_model(to_transformers(encoder, predictor), encoder.config, folder)


def save_model(model: "PreTrainedModel", encoder: EncoderConfig, folder: str | Path) -> Path:
    """Write a transformers model, and the config of the processor that prepares clips for its encoder.

    The processor shows the square of the whole short side, as `features` and the probes do. Those of the public models
    resize to 256/224 of the crop, and so show 224/256 of the short side: VJEPA2VideoProcessor does that whatever `size`
    says, so another class is named, which follows the settings.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / CONFIG).stat().st_mode)  # safetensors creates files readable only by their owner
    size = encoder.crop
    processor = {
        "video_processor_type": "LlavaNextVideoVideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 2,
    }
    (folder / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n")
    return folder


def load_transformers(folder: str | Path) -> Pretrained:
    """Load encoder and predictor of a VJEPA2 folder (VJEPA2Model or its classifier); does not need transformers.

    Raises ValueError if the folder holds another model, or one with settings that ours does not support.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    weights = read_weights(folder)
    ignored: dict[str, str] = {}
    if any(name.startswith("vjepa2.") for name in weights):
        for name in [name for name in weights if name.startswith(("pooler.", "classifier."))]:
            del weights[name]
            ignored[name] = "head of the classifier"
        weights = {name.removeprefix("vjepa2."): tensor for name, tensor in weights.items()}
    config = _encoder_config(settings, str(folder))
    encoder = build_empty(lambda: Encoder(config))
    ours = _named_back(weights)
    fill(encoder, {name[8:]: value for name, value in ours.items() if name.startswith("encoder.")}, str(folder))
    strange = sorted(name for name in ours if not name.startswith(("encoder.", "predictor.")))
    if strange:
        raise ValueError(f"{folder} holds tensors that a VJEPA2 model does not have: {', '.join(strange[:5])}")
    predictor = None
    rest = {name[10:]: value for name, value in ours.items() if name.startswith("predictor.")}
    if rest:
        predictor = build_empty(lambda: Predictor(_predictor_config(settings), config)).eval()
        fill(predictor, rest, f"{folder} (predictor)")
    return Pretrained(encoder.eval(), predictor, str(folder), ignored)


_NAMES = {
    "encoder.patch_embed.proj": "encoder.embeddings.patch_embeddings.proj",
    "encoder.norm": "encoder.layernorm",
    "predictor.predictor_embed": "predictor.embeddings.predictor_embeddings",
    "predictor.predictor_norm": "predictor.layernorm",
    "predictor.predictor_proj": "predictor.proj",
}
_PARTS = {"encoder.blocks.": "encoder.layer.", "predictor.predictor_blocks.": "predictor.layer."}
_MASK_TOKENS = "predictor.embeddings.mask_tokens"


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of our tensors with transformers' name; queries, keys and values are separate there."""
    stem, kind = name.rsplit(".", 1)
    stem = _NAMES.get(stem, stem)
    for ours, theirs in _PARTS.items():
        stem = stem.replace(ours, theirs)
    if stem.endswith("attn.qkv"):
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"{stem.removesuffix('attn.qkv')}attention.{part}.{kind}": value.clone() for part, value in parts}
    return {f"{stem.replace('attn.proj', 'attention.proj')}.{kind}": tensor}


def _named_back(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' tensors with our names; queries, keys and values are joined, unknown names are kept."""
    back = {theirs: ours for ours, theirs in _NAMES.items()}
    named = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if name == _MASK_TOKENS:
            named.update({f"predictor.mask_tokens.{number}": token for number, token in enumerate(tensor)})
            continue
        stem = back.get(stem, stem)
        for ours, theirs in _PARTS.items():
            stem = stem.replace(theirs, ours)
        if stem.endswith("attention.query"):
            root = name.removesuffix(f"query.{kind}")
            parts = [weights.get(f"{root}{part}.{kind}") for part in ("query", "key", "value")]
            whole = [part for part in parts if part is not None]
            named[f"{stem.removesuffix('attention.query')}attn.qkv.{kind}"] = torch.cat(whole)
        elif not stem.endswith(("attention.key", "attention.value")):
            named[f"{stem.replace('attention.proj', 'attn.proj')}.{kind}"] = tensor
    return named


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a VJEPA2 folder's config.json; ValueError for another model, or settings that ours does not support."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not a transformers folder: {CONFIG} is missing")
    settings: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    if settings.get("model_type") != "vjepa2":
        raise ValueError(f"{folder / CONFIG}: model_type must be 'vjepa2', got {settings.get('model_type')!r}")
    wanted = {"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": 1e-6, "in_chans": 3}
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{folder / CONFIG}: {name} must be {value!r}, got {settings[name]!r}")
    return settings


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder: one safetensors file, several with an index, or a pickle file."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return {name: tensor for file in files for name, tensor in read_safetensors(folder / Path(file).name).items()}
    if (folder / "model.safetensors").is_file() or not (folder / "pytorch_model.bin").is_file():
        return read_safetensors(folder / "model.safetensors")
    return load_pickled(folder / "pytorch_model.bin")


def _encoder_config(settings: Mapping[str, Any], source: str) -> EncoderConfig:
    """The encoder's config; values missing from the json have VJEPA2Config's defaults."""
    width, depth = settings.get("hidden_size", 1024), settings.get("num_hidden_layers", 24)
    ratio, heads = settings.get("mlp_ratio", 4.0), settings.get("num_attention_heads", 16)
    hidden = int(width * ratio)
    size, heads, ratio = name_size(width, depth, hidden, "rotary", heads, source)
    patch = settings.get("patch_size", 16)
    return EncoderConfig(
        size=size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        patch=patch if isinstance(patch, int) else patch[0],
        tubelet=settings.get("tubelet_size", 2),
        frames=settings.get("frames_per_clip", 64),
        crop=settings.get("crop_size", 256),
        positions="rotary",
        rotary_order="tiled",
    )


def _predictor_config(settings: Mapping[str, Any]) -> PredictorConfig:
    return PredictorConfig(
        width=settings.get("pred_hidden_size", 384),
        depth=settings.get("pred_num_hidden_layers", 12),
        heads=settings.get("pred_num_attention_heads", 12),
        mlp_ratio=settings.get("pred_mlp_ratio", 4.0),
        mask_tokens=settings.get("pred_num_mask_tokens", 10),
    )


def _exact_ratio(width: int, ratio: float) -> float:
    """A ratio that gives our hidden width in transformers, which truncates width * ratio where we round it."""
    hidden = round(width * ratio)
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)
