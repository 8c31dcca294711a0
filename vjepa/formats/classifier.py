"""An attentive probe on its encoder as transformers' VJEPA2ForVideoClassification.

V-JEPA 1's probe, cross-attention with one learned query, equals transformers' attentive pooler without self-attention
layers, followed by a linear classifier; V-JEPA 2's has three such layers. Writing needs the extra `transformers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vjepa.encoder import Encoder
from vjepa.formats.accounting import fill
from vjepa.formats.transformers import read_settings, read_weights, save_model, to_transformers
from vjepa.predictor import Predictor

if TYPE_CHECKING:
    from transformers import VJEPA2ForVideoClassification


def to_classifier(
    encoder: Encoder, predictor: Predictor | None, head: Mapping[str, Tensor], heads: int, labels: Sequence[str]
) -> "VJEPA2ForVideoClassification":
    """A VJEPA2ForVideoClassification with these weights.

    head: tensors of an attentive probe with V-JEPA's names and LayerNorm epsilon 1e-6; heads: its attention heads;
    labels: class names in output order. Raises ValueError if VJEPA2Model cannot represent the encoder or the probe.
    """
    from transformers import VJEPA2ForVideoClassification

    if heads != encoder.config.shape.heads:
        raise ValueError(
            f"transformers' classifier has as many attention heads as the encoder, {encoder.config.shape.heads}, the "
            f"probe has {heads}; probe with heads.attentive.heads={encoder.config.shape.heads}"
        )
    if len(set(labels)) != len(labels):
        raise ValueError(f"class names must differ from each other for label2id, got {', '.join(labels)}")
    model = to_transformers(encoder, predictor)
    settings = model.config
    settings.num_pooler_layers = len({name.split(".")[1] for name in head if name.startswith("blocks.")})
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {name: number for number, name in enumerate(labels)}
    theirs = VJEPA2ForVideoClassification(settings)
    theirs.vjepa2 = model
    named = _renamed(head)
    for part, source in (("pooler", "the attentive head"), ("classifier", "its classifier")):
        weights = {name.removeprefix(f"{part}."): value for name, value in named.items() if name.startswith(f"{part}.")}
        fill(getattr(theirs, part), weights, source)
    return theirs


def save_classifier(
    encoder: Encoder,
    predictor: Predictor | None,
    head: Mapping[str, Tensor],
    heads: int,
    labels: Sequence[str],
    folder: str | Path,
) -> Path:
    """Write a folder that `AutoModelForVideoClassification.from_pretrained` loads (see `to_classifier`)."""
    return save_model(to_classifier(encoder, predictor, head, heads, labels), encoder.config, folder)


def read_classifier(folder: str | Path) -> tuple[dict[str, Tensor], int, list[str]]:
    """Read the head of a classifier folder: tensors with V-JEPA's names, number of attention heads, class names.

    Does not need transformers. Raises ValueError if the folder has no classifier.
    """
    folder = Path(folder)
    settings, weights = read_settings(folder), read_weights(folder)
    theirs = {name: tensor for name, tensor in weights.items() if name.startswith(("pooler.", "classifier."))}
    if not theirs:
        raise ValueError(f"{folder} holds a VJEPA2 model without a classifier; give a VJEPA2ForVideoClassification")
    head = _named_back(theirs, str(folder))
    names = {int(number): name for number, name in settings.get("id2label", {}).items()}
    classes = [names.get(number, str(number)) for number in range(len(head["linear.bias"]))]
    return head, settings.get("num_attention_heads", 16), classes


_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "q": "cross_attn.q_proj",
    "attn.proj": "self_attn.out_proj",
    "linear": "classifier",
}
_JOINED = {  # a projection that V-JEPA keeps as one -> its parts in transformers
    "kv": ("cross_attn.k_proj", "cross_attn.v_proj"),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}


def _renamed(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The probe's tensors with transformers' names; queries, keys and values are separate there."""
    named = {}
    for name, tensor in head.items():
        place, stem, kind = _cut(name)
        if name == "query_tokens":
            named["pooler.query_tokens"] = tensor
        elif stem == "linear":
            named[f"classifier.{kind}"] = tensor
        elif stem in _JOINED:
            for part, value in zip(_JOINED[stem], tensor.chunk(len(_JOINED[stem])), strict=True):
                named[f"{place}{part}.{kind}"] = value.clone()
        else:
            named[f"{place}{_NAMES.get(stem, stem)}.{kind}"] = tensor
    return named


def _cut(name: str) -> tuple[str, str, str]:
    """`blocks.0.attn.proj.bias` -> the layer's name in transformers, `attn.proj`, `bias`."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("blocks."):
        _, number, stem = stem.split(".", 2)
        return f"pooler.self_attention_layers.{number}.", stem, kind
    return "pooler.cross_attention_layer.", stem, kind


def _named_back(theirs: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Transformers' tensors with the probe's names; ValueError if part of a fused projection is missing."""
    back = {new: old for old, new in _NAMES.items()}
    wholes = {part: whole for whole, parts in _JOINED.items() for part in parts}
    named: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        stem, _, kind = name.removeprefix("pooler.").rpartition(".")
        place = ""
        if stem.startswith("self_attention_layers."):
            _, number, stem = stem.split(".", 2)
            place = f"blocks.{number}."
        stem = stem.removeprefix("cross_attention_layer.")
        if not stem:
            named[kind] = tensor
        elif stem not in wholes:
            named[f"{place}{back.get(stem, stem)}.{kind}"] = tensor
        elif stem == _JOINED[wholes[stem]][0]:
            root = name.removesuffix(f"{stem}.{kind}")
            parts = [f"{root}{part}.{kind}" for part in _JOINED[wholes[stem]]]
            absent = [part for part in parts if part not in theirs]
            if absent:
                raise ValueError(f"{source}: the classifier lacks {', '.join(absent)}; it is damaged")
            named[f"{place}{wholes[stem]}.{kind}"] = torch.cat([theirs[part] for part in parts])
    return named
