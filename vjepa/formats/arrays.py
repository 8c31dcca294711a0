"""Named tensors and text metadata in one file: safetensors, or npz for use with numpy alone.

In an npz file the metadata is the array `metadata`, as json.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vjepa.formats.native import write_safetensors

ArrayFormat = Literal["safetensors", "npz"]
METADATA = "metadata"


def write_arrays(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], to: ArrayFormat) -> None:
    """Write tensors to `path` in the format `to`, regardless of the file extension."""
    if to == "safetensors":
        write_safetensors(tensors, path, metadata)
        return
    import numpy as np  # here: a plain install has only torch and safetensors

    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    arrays[METADATA] = np.array(json.dumps(dict(metadata)))
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file from `write_arrays`, in the format of its extension; empty if it has none.

    Raises ValueError if the file is damaged.
    """
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                found: dict[str, str] = json.loads(str(arrays[METADATA])) if METADATA in arrays else {}
                return found
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); make it again") from error
