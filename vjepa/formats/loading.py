"""One entry point for all supported weights: the reader is chosen by what `path` contains."""

import json
from pathlib import Path

from vjepa.encoder import Encoder
from vjepa.formats.accounting import Pretrained
from vjepa.formats.architecture import Hints
from vjepa.formats.hub import download, explain_absent, is_hub
from vjepa.formats.meta import EncoderName, load_meta
from vjepa.formats.native import DESCRIPTION, load_native
from vjepa.formats.transformers import CONFIG, load_transformers

PICKLED = (".pt", ".pth", ".tar", ".bin")


def load_encoder(path: str | Path, which: EncoderName | None = None, hints: Hints | None = None) -> Encoder:
    """Load an encoder in evaluation mode, in fp32 on the CPU; see `load_pretrained`."""
    return load_pretrained(path, which, hints).encoder


def load_pretrained(path: str | Path, which: EncoderName | None = None, hints: Hints | None = None) -> Pretrained:
    """Load an encoder, the predictor if there is one, and a record of what was ignored.

    `path` is a folder written by `vjepa export` or by transformers, such a folder on the Hugging Face Hub as
    hf://OWNER/NAME (extra `hub`), or an official V-JEPA 1 or 2 file. For the latter, `which` selects the encoder and
    `hints` give what cannot be inferred from shapes. Raises FileNotFoundError, or ValueError if a tensor does not fit.
    """
    if is_hub(path):
        return load_pretrained(download(path), which, hints)
    path = Path(path)
    if path.is_file():
        if path.suffix == ".ckpt":
            raise ValueError(f"{path} is a training checkpoint; export it first: vjepa export {path} FOLDER")
        if path.suffix not in PICKLED:
            raise ValueError(f"{path} must be a folder or a file ending in {', '.join(PICKLED)}")
        return load_meta(path, which, hints)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist; give an exported folder or an official checkpoint" + explain_absent(path)
        )
    if which is not None:
        raise ValueError(f"{path} is a folder with one encoder; {which} can be selected only in official checkpoints")
    if (path / DESCRIPTION).is_file():
        return load_native(path)
    if (path / CONFIG).is_file():
        return load_transformers(path)
    if (path / "checkpoints").is_dir():
        raise ValueError(f"{path} is a run directory; export it first: vjepa export {path} FOLDER")
    return load_native(path)  # says what is missing


def is_pretrained(path: str | Path) -> bool:
    """Can `load_pretrained` read `path`? False for runs and their checkpoints."""
    if is_hub(path):
        return True
    path = Path(path)
    return path.suffix in PICKLED or (path / DESCRIPTION).is_file() or _is_vjepa2(path)


def _is_vjepa2(folder: Path) -> bool:
    config = folder / CONFIG
    return config.is_file() and json.loads(config.read_text()).get("model_type") == "vjepa2"
