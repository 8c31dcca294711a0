"""To transformers' VJEPA2Model, the class the world loads. Needs the extra `transformers`.

Only encoders with rotary positions in the tiled order, which is what that class computes, can be written exactly.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vjepa.formats.native import fill
from vjepa.pixels import MEAN, STD
from vjepa.predictor import Predictor, PredictorConfig
from vjepa.vit import Encoder

if TYPE_CHECKING:
    from transformers import VJEPA2Model


def to_transformers(encoder: Encoder, predictor: Predictor | None = None, attention: str = "sdpa") -> "VJEPA2Model":
    """A VJEPA2Model with the same weights; without a predictor its own is left at one fresh block.

    Raises ValueError for an encoder that VJEPA2Model cannot compute.
    """
    from transformers import VJEPA2Config, VJEPA2Model

    config = encoder.config
    if config.positions != "rotary" or config.rotary_order != "tiled":
        raise ValueError(
            f"transformers has a class for rotary positions with tiled frequencies only, this encoder has "
            f"{config.positions} ({config.rotary_order}); train with encoder.positions=rotary "
            f"encoder.rotary_order=tiled, or export with --format native"
        )
    predictor = predictor or Predictor(PredictorConfig(width=config.heads * 8, depth=1), config)
    theirs = VJEPA2Model(
        VJEPA2Config(
            patch_size=config.patch,
            crop_size=config.crop,
            frames_per_clip=config.frames,
            tubelet_size=config.tubelet,
            hidden_size=config.width,
            num_attention_heads=config.heads,
            num_hidden_layers=config.depth,
            mlp_ratio=config.mlp_ratio,
            pred_hidden_size=predictor.config.width,
            pred_num_attention_heads=predictor.heads,
            pred_num_hidden_layers=predictor.config.depth,
            pred_mlp_ratio=predictor.config.mlp_ratio,
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
    # It uses token 1 % n whatever the kind of mask, so it gets one: the first kind's.
    weights["predictor.embeddings.mask_tokens"] = predictor.mask_tokens[0].unsqueeze(0)
    fill(theirs, weights, "the export to transformers")
    return theirs


def save_transformers(encoder: Encoder, predictor: Predictor | None, folder: str | Path) -> Path:
    """Write a folder that `AutoModel.from_pretrained` and `AutoVideoProcessor.from_pretrained` load."""
    folder = Path(folder)
    to_transformers(encoder, predictor).save_pretrained(folder)
    size = encoder.config.crop
    processor = {
        "video_processor_type": "VJEPA2VideoProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(size * 256 / 224)},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 2,
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    return folder


_ENCODER_NAMES = {
    "encoder.patch_embed.proj": "encoder.embeddings.patch_embeddings.proj",
    "encoder.norm": "encoder.layernorm",
    "predictor.predictor_embed": "predictor.embeddings.predictor_embeddings",
    "predictor.predictor_norm": "predictor.layernorm",
    "predictor.predictor_proj": "predictor.proj",
}


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of our tensors under transformers' name; queries, keys and values apart."""
    stem, kind = name.rsplit(".", 1)
    stem = _ENCODER_NAMES.get(stem, stem)
    stem = stem.replace("encoder.blocks.", "encoder.layer.").replace("predictor.predictor_blocks.", "predictor.layer.")
    if stem.endswith("attn.qkv"):
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"{stem.removesuffix('attn.qkv')}attention.{part}.{kind}": value.clone() for part, value in parts}
    return {f"{stem.replace('attn.proj', 'attention.proj')}.{kind}": tensor}
