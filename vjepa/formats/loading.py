"""One entry for everybody's weights: what `path` holds decides how it is read."""

import json
from pathlib import Path

from vjepa.encoder import Encoder
from vjepa.formats.accounting import Pretrained
from vjepa.formats.architecture import Hints
from vjepa.formats.meta import EncoderName, load_meta
from vjepa.formats.native import DESCRIPTION, load_native
from vjepa.formats.transformers import CONFIG, load_transformers

PICKLED = (".pt", ".pth", ".tar", ".bin")


def load_encoder(path: str | Path, which: EncoderName | None = None, hints: Hints | None = None) -> Encoder:
    """The encoder that `path` holds, in evaluation mode, in fp32 on the CPU; see `load_pretrained`."""
    return load_pretrained(path, which, hints).encoder


def load_pretrained(path: str | Path, which: EncoderName | None = None, hints: Hints | None = None) -> Pretrained:
    """Encoder, predictor where there is one, and an account of what was left aside.

    `path` is a folder written by `python -m launch export` or by transformers, or an official V-JEPA 1 or 2 file; of
    the latter it has to be said `which` encoder, and `hints` fill in what shapes do not show. Raises FileNotFoundError
    or ValueError where a single tensor has no place.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".ckpt":
            raise ValueError(f"{path} is a training checkpoint; export it first: python -m launch export {path} FOLDER")
        if path.suffix not in PICKLED:
            raise ValueError(f"{path} must be a folder or a file ending in {', '.join(PICKLED)}")
        return load_meta(path, which, hints)
    if not path.is_dir():
        raise FileNotFoundError(f"there is nothing at {path}; give an exported folder or an official checkpoint")
    if which is not None:
        raise ValueError(f"{path} is a folder with one encoder; {which} can be chosen in official checkpoints only")
    if (path / DESCRIPTION).is_file():
        return load_native(path)
    if (path / CONFIG).is_file():
        return load_transformers(path)
    if (path / "checkpoints").is_dir():
        raise ValueError(f"{path} is a run directory; export it first: python -m launch export {path} FOLDER")
    return load_native(path)  # says what is missing


def is_pretrained(path: str | Path) -> bool:
    """Whether `load_pretrained` is the reader for `path`, and not a run's checkpoint."""
    path = Path(path)
    return path.suffix in PICKLED or (path / DESCRIPTION).is_file() or _is_vjepa2(path)


def _is_vjepa2(folder: Path) -> bool:
    config = folder / CONFIG
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "vjepa2"
