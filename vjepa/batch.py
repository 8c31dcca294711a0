"""Convert whatever a loader yields to the groups of clips that an objective takes.

B clips, T frames, H W pixels, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vjepa.pixels import normalise


@dataclass(frozen=True)
class ClipGroup:
    """Clips that share one token grid, and further arrays of their samples by name: labels, actions, states, values."""

    video: Tensor  # float32 [B, C, T, H, W], normalised
    arrays: Mapping[str, Tensor] = field(default_factory=dict)  # each [B, ...]
    name: str = ""  # of the group, if a batch has several
    first: int | None = None  # stream position of the first clip; None: the groups of a batch follow each other
    weight: float = 1.0  # of the group's loss in the mean over groups


@dataclass(frozen=True)
class OpenBatch:
    """A batch on its device, ready for a step."""

    groups: tuple[ClipGroup, ...]
    position: int | None = None  # samples consumed by all ranks, including this batch; None: unknown

    @property
    def size(self) -> int:
        """Number of clips in all groups."""
        return sum(len(group.video) for group in self.groups)


def is_image(video: Tensor) -> bool:
    """Are the clips video [B, C, T, H, W] images, that is of one frame?"""
    return video.shape[2] == 1


def open_batch(batch: Any) -> OpenBatch:
    """Read a batch from this project's loader, a dict, a plain tensor, or a sequence that begins with the clips.

    Clips are uint8 [B, T, H, W, C], or float [B, C, T, H, W], which are assumed to be normalised. A dict has them under
    `clips`; its other tensors [B, ...] are kept as arrays. `groups` maps names to further batches of any of these
    types, whose clips may have other sizes; `first` is the stream position of a group's first clip, `weight` the weight
    of its loss. Raises ValueError if the clips have another type or shape.
    """
    if isinstance(batch, OpenBatch):
        return batch
    if isinstance(batch, Tensor):
        return OpenBatch((ClipGroup(_read_video(batch)),))
    if isinstance(batch, Mapping):
        return _open_fields(batch)
    if hasattr(batch, "clips"):
        names = ("clips", "labels", "arrays", "groups", "position", "first", "weight")
        return _open_fields({name: getattr(batch, name) for name in names if hasattr(batch, name)})
    if isinstance(batch, Sequence) and batch and isinstance(batch[0], Tensor):
        rest = {f"field_{number}": value for number, value in enumerate(batch[1:], 1)}
        return _open_fields({"clips": batch[0], **rest})
    raise ValueError(
        "a batch must be a tensor of clips (uint8 [B, T, H, W, 3]), a dict with the key 'clips', a sequence whose "
        f"first item is the clips, or an object with an attribute 'clips'; got {type(batch).__name__}"
    )


def _open_fields(fields: Mapping[str, Any]) -> OpenBatch:
    named: dict[str, Any] = dict(fields)
    position, groups = named.pop("position", None), named.pop("groups", None) or {}
    clips, arrays = named.pop("clips", None), dict(named.pop("arrays", None) or {})
    first, weight = named.pop("first", None), float(named.pop("weight", 1.0))
    if not isinstance(clips, Tensor) and not groups:
        raise ValueError(
            f"a batch must hold a tensor 'clips' or 'groups', got {', '.join(map(str, fields)) or 'nothing'}"
        )
    found: list[ClipGroup] = []
    if isinstance(clips, Tensor) and len(clips):
        arrays |= {name: value for name, value in named.items() if isinstance(value, Tensor)}
        for name, value in arrays.items():
            if len(value) != len(clips):
                raise ValueError(f"batch.{name} must have one row per clip ({len(clips)}), got {list(value.shape)}")
        found.append(ClipGroup(_read_video(clips), arrays, first=first, weight=weight))
    for name, part in groups.items():
        found += [replace(group, name=group.name or name) for group in open_batch(part).groups]
    return OpenBatch(tuple(found), position)


def _read_video(clips: Tensor) -> Tensor:
    if clips.is_floating_point():
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"floating-point clips must be [B, 3, T, H, W], got {list(clips.shape)}")
        return clips
    if clips.dtype == torch.uint8 and clips.ndim == 4:
        clips = clips.unsqueeze(1)  # images
    return normalise(clips)
