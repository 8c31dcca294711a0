"""Reads the attentive probes that V-JEPA 1 and 2 publish (`.pt`, `.pth.tar`), and those their evaluation code saves.

A file has `classifier`, or `classifiers`, a list with one entry per head of the sweep. Names begin with `module.`; the
pooler's cross-attention is `pooler.cross_attention_block.xattn`, its self-attention layers `pooler.blocks.L`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from probes.heads import AttentiveHead
from vjepa.formats.accounting import fill
from vjepa.formats.loading import PICKLED
from vjepa.formats.pickled import load_pickled

HEADS = 16  # attention heads of the published probes of ViT-L, ViT-H and ViT-g
SPARE = ("pooler.norm.weight", "pooler.norm.bias")  # a layer of the public pooler that its forward pass never uses


def is_official(path: str | Path) -> bool:
    """Does `path` name a file of torch.save, with or without `:NUMBER`?"""
    return _split(path)[0].suffix in PICKLED


def load_official(path: str | Path, heads: int = 0) -> AttentiveHead:
    """The head in an official probe file, in evaluation mode; `FILE:NUMBER` selects one of several, from 0.

    heads: attention heads, which the file does not contain; 0: 16 as published. Raises ValueError if the file holds
    several heads and no number is given, or if any tensor is missing or unknown.
    """
    file, number = _split(path)
    content = load_pickled(file)
    found = content.get("classifiers", content.get("classifier"))
    if not found:
        held = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise ValueError(f"{file} holds no probe (classifiers or classifier) but {held}")
    several = list(found) if isinstance(found, (list, tuple)) else [found]
    if number is None and len(several) > 1:
        raise ValueError(f"{file} holds {len(several)} heads of a sweep: give {file}:NUMBER, from 0")
    if not 0 <= (number or 0) < len(several):
        raise ValueError(f"{path}: the file holds heads 0 to {len(several) - 1}")
    weights = _rename(several[number or 0], str(path))
    depth = 1 + len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    if "linear.weight" not in weights:
        raise ValueError(f"{path} is not an attentive classifier: it has no linear.weight")
    classes, width = weights["linear.weight"].shape
    head = AttentiveHead(width, heads or HEADS, classes, depth, "published")
    fill(head, weights, str(path))
    return head.eval().requires_grad_(False)


def _split(path: str | Path) -> tuple[Path, int | None]:
    stem, _, number = str(path).rpartition(":")
    return (Path(stem), int(number)) if stem and number.isdigit() else (Path(path), None)


def _rename(stored: Any, source: str) -> dict[str, Tensor]:
    """The tensors under our names: without `module.` and `pooler.`, cross-attention unprefixed."""
    if not isinstance(stored, Mapping):
        raise ValueError(f"{source} must be a dictionary of tensors, got {type(stored).__name__}")
    weights = {name.removeprefix("module."): value for name, value in stored.items()}
    renamed = {}
    for name, value in weights.items():
        if name in SPARE:
            continue
        own = name.removeprefix("pooler.").removeprefix("cross_attention_block.").removeprefix("xattn.")
        if own in renamed:
            raise ValueError(f"{source}: two tensors would be {own}")
        renamed[own] = value
    return renamed
