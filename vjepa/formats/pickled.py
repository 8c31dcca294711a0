"""Read files written by torch.save without executing any code they contain."""

import pickle
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def load_pickled(path: Path) -> dict[str, Any]:
    """Read a dictionary of tensors and plain data from `path`, on the CPU, memory-mapped.

    Raises FileNotFoundError if there is no such file; ValueError, with specific messages, if it is empty, truncated, of
    another type, or would run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and _begins_like_zip(path):
        raise ValueError(
            f"{path} ({size} bytes) is cut off: its table of contents at the end is missing; fetch it again"
        )
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # on damaged files the unpickler can raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} ({size} bytes) is not a whole file of torch.save ({reason}); fetch it again, or give another"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of weights, got {type(content).__name__}")
    return content


def _begins_like_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _safe_globals() -> list[Any]:
    """Numpy scalars, which training loops store next to the weights (such as an averaged loss)."""
    if find_spec("numpy") is None:  # a plain install has only torch and safetensors
        return []
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")]
    return [np.dtype, *kinds, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]


def _refusal(path: Path, reason: str) -> str:
    """Shorten the loader's explanation to one line; only if it names an unsupported global would code run."""
    for line in reason.splitlines():
        for mark in ("unsupported GLOBAL ", "Unsupported global: GLOBAL ", "unsupported class "):
            if mark in line:
                name = line.split(mark)[1].split()[0].rstrip(",.")
                return (
                    f"{path} is refused: loading it would run {name}, and a file of weights needs no code; "
                    f"it may be hostile, or hold a whole pickled model rather than its state_dict"
                )
    return f"{path} is refused: it is not a file of weights that can be read without running what is in it"
