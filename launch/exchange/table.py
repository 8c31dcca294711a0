"""Features of many videos as one table, for pandas, scikit-learn and whatever else reads parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from data.files import replacing
from launch.exchange.features import name_targets
from vjepa.formats.arrays import METADATA, ArrayFormat

SUFFIX = ".parquet"
_TIMING = ("times", "frames", METADATA)  # arrays of a feature file that hold no features


def check_table(path: str, pool: str) -> None:
    """ValueError if such a table cannot be written; ImportError if pyarrow is missing."""
    import pyarrow  # noqa: F401  # before hours of extraction, not after them

    if not path.endswith(SUFFIX):
        raise ValueError(f"--table must end in {SUFFIX}, got {path}")
    if pool == "none":
        raise ValueError("--table holds one vector per window: add --pool mean (or attentive, with --head)")


def write_table(path: Path, videos: Sequence[str], output: Path, to: ArrayFormat) -> tuple[int, int]:
    """Write the pooled features of `videos`, extracted to `output`, to one parquet file; returns (rows, columns).

    One row per window: video (its name in the source), label (its folder or its entry in a csv; null without labels),
    window (from 0), start and end in seconds, and one float32 column per feature: f0, f1, ..., or layer_3_f0, ... with
    --layers. Videos without a file, because they could not be read, have no row.
    """
    import pyarrow
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in ("video", "label", "window", "start", "end")}
    blocks: dict[str, list[npt.NDArray[np.float32]]] = {}
    for file, source in name_targets(videos, output, f".{to}").items():
        if not file.is_file():
            continue
        arrays = read_arrays(file)
        windows = len(arrays["times"])
        columns["video"] += [source.name] * windows
        columns["label"] += [source.label] * windows
        columns["window"] += range(windows)
        columns["start"] += arrays["times"][:, 0].tolist()
        columns["end"] += arrays["times"][:, 1].tolist()
        for name, values in arrays.items():
            if name not in _TIMING:
                blocks.setdefault("f" if name == "features" else f"{name}_f", []).append(values)
    if not blocks:
        raise ValueError(f"{output} holds no features of these videos: there is nothing for {path}")
    wide = {
        f"{name}{number}": column
        for name, parts in blocks.items()
        for number, column in enumerate(np.concatenate(parts).astype(np.float32).T)
    }
    table = pyarrow.table({**columns, **wide})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        parquet.write_table(table, part)
    return table.num_rows, len(wide)


def read_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a feature file."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    found: dict[str, npt.NDArray[Any]] = load_file(file)
    return found
