"""An attentive probe on its encoder as transformers' VJEPA2ForVideoClassification.

The probe of V-JEPA 1, one learned query that looks at all tokens, is transformers' attentive pooler without
self-attention layers, and a linear classifier. Writing needs the extra `transformers`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from vjepa.formats.accounting import fill
from vjepa.formats.transformers import save_model, to_transformers
from vjepa.predictor import Predictor
from vjepa.vit import Encoder

if TYPE_CHECKING:
    from transformers import VJEPA2ForVideoClassification


def to_classifier(
    encoder: Encoder, predictor: Predictor | None, head: Mapping[str, Tensor], heads: int, labels: Sequence[str]
) -> "VJEPA2ForVideoClassification":
    """A VJEPA2ForVideoClassification with these weights.

    head: tensors of an attentive probe under V-JEPA's names, its norms with an epsilon of 1e-6; heads: its attention
    heads; labels: class names in the order of its outputs. Raises ValueError for an encoder that VJEPA2Model cannot
    compute, or a probe that its pooler cannot.
    """
    from transformers import VJEPA2ForVideoClassification

    if heads != encoder.config.heads:
        raise ValueError(
            f"transformers' classifier has as many attention heads as the encoder, {encoder.config.heads}, the probe "
            f"has {heads}; probe with heads.attentive.heads={encoder.config.heads}"
        )
    if len(set(labels)) != len(labels):
        raise ValueError(f"class names must differ from each other for label2id, got {', '.join(labels)}")
    model = to_transformers(encoder, predictor)
    settings = model.config
    settings.num_pooler_layers = 0
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {name: number for number, name in enumerate(labels)}
    theirs = VJEPA2ForVideoClassification(settings)
    theirs.vjepa2 = model
    linear = {name: tensor for name, tensor in head.items() if name.startswith("linear.")}
    pooler = {name: tensor for name, tensor in head.items() if name not in linear}
    fill(theirs.pooler, _renamed(pooler), "the attentive head")
    fill(theirs.classifier, {name.removeprefix("linear."): tensor for name, tensor in linear.items()}, "its classifier")
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


_STEM = "cross_attention_layer."
_NAMES = {"norm1": "layer_norm1", "norm2": "layer_norm2", "q": "cross_attn.q_proj"}


def _renamed(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The probe's tensors under the pooler's names; keys and values apart."""
    named = {}
    for name, tensor in head.items():
        stem, _, kind = name.rpartition(".")
        if name == "query_tokens":
            named[name] = tensor
        elif stem == "kv":
            key, value = tensor.chunk(2)
            named[f"{_STEM}cross_attn.k_proj.{kind}"] = key.clone()
            named[f"{_STEM}cross_attn.v_proj.{kind}"] = value.clone()
        else:
            named[f"{_STEM}{_NAMES.get(stem, stem)}.{kind}"] = tensor
    return named
