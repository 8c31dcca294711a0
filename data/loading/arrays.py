"""Named arrays stored with the samples, such as actions and states, aligned with the frames of a clip.

A sidecar holds them by name, single numbers also under `values`. `data.arrays` lists the arrays to read and how each is
aligned with the frames:

    frames   row i belongs to frame i: [F, ...] -> the rows of the clip's frames [T, ...]
    steps    row i leads from frame i to frame i + 1: [F - 1, A] -> the rows between two clip frames [T - 1, S, A]
    sample   one value or vector for the whole video: [...] -> [...]

F frames of a video, T of a clip, S = data.stride rows between consecutive clip frames, A values of an action.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.decode import DecodeError
from data.loading.clips import Indices
from data.loading.shards import Sample

Values = NDArray[np.float32]


def _frames(values: Values, indices: Indices, frames: int) -> Values:
    if len(values) != frames:
        raise ValueError(f"one row per frame is needed, {frames} in all, found {len(values)}")
    return values[indices]


def _steps(values: Values, indices: Indices, frames: int) -> Values:
    if len(values) != frames - 1:
        raise ValueError(f"one row between consecutive frames is needed, {frames - 1} in all, found {len(values)}")
    gaps = np.diff(indices)
    if len(gaps) == 0 or gaps[0] < 1 or (gaps != gaps[0]).any():
        raise ValueError(
            f"the clip's frames must be evenly spaced, but this video of {frames} frames is too short for the clip"
        )
    return np.stack([values[first : first + gaps[0]] for first in indices[:-1]])


def _sample(values: Values, indices: Indices, frames: int) -> Values:
    return values


ALIGNMENTS: dict[str, Callable[[Values, Indices, int], Values]] = {
    "frames": _frames,
    "steps": _steps,
    "sample": _sample,
}


def check_alignments(wanted: Mapping[str, str], fps: float | None, flip: float, scale: tuple[float, float]) -> None:
    """Raise ValueError for an unknown alignment, and for settings that would break the alignment of `steps`."""
    for name, alignment in wanted.items():
        if alignment not in ALIGNMENTS:
            raise ValueError(f"data.arrays.{name} must be one of {', '.join(ALIGNMENTS)}, got {alignment!r}")
        if alignment != "steps":
            continue
        for broken, why in (
            (bool(fps), f"data.fps={fps} takes frames at uneven steps; use data.stride"),
            (flip > 0, f"data.flip={flip} mirrors the frames but not the actions; set data.flip=0"),
            (scale != (1.0, 1.0), f"data.scale={list(scale)} may crop what actions refer to; set data.scale=[1,1]"),
        ):
            if broken:
                raise ValueError(f"data.arrays.{name}: steps must stay aligned with the frames, but {why}")


def read_arrays(sample: Sample, wanted: Mapping[str, str], indices: Indices, frames: int) -> dict[str, Tensor]:
    """Arrays `wanted` for frames `indices` of a video of `frames` frames; DecodeError if missing or malformed."""
    values = sample.meta.get("values")
    stored = {**(values if isinstance(values, dict) else {}), **sample.meta}
    found = {}
    for name, alignment in wanted.items():
        if name not in stored:
            raise DecodeError("array missing", f"the sidecar of {sample.key} has no {name}")
        try:
            rows = np.asarray(stored[name], dtype=np.float32)
            if not np.isfinite(rows).all():
                raise ValueError("numbers must be finite")
            aligned = ALIGNMENTS[alignment](rows, indices, frames)
        except (TypeError, ValueError, OverflowError) as error:
            raise DecodeError("malformed array", f"{sample.key}: {name}: {error}") from error
        found[name] = torch.from_numpy(np.ascontiguousarray(aligned))
    return found


def stack_arrays(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the arrays of B samples by name, each to [B, ...]; ValueError if shapes differ between samples."""
    stacked = {}
    for name in rows[0] if rows else ():
        shapes = {tuple(row[name].shape) for row in rows}
        if len(shapes) > 1:
            raise ValueError(
                f"{name} must have one shape in all samples of a batch, found {' and '.join(map(str, shapes))}"
            )
        stacked[name] = torch.stack([row[name] for row in rows])
    return stacked
