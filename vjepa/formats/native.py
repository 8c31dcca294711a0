"""The project's own format: a folder with `encoder.safetensors` and `encoder.json`.

The json holds the architecture, the expected preprocessing, and facts about the training. If a predictor was exported
too, it is in `predictor.safetensors`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vjepa.encoder import Encoder, EncoderConfig, build_encoder
from vjepa.formats.accounting import Pretrained, build_empty, fill
from vjepa.pixels import MEAN, STD
from vjepa.predictor import Predictor, PredictorConfig, build_predictor

FORMAT = "vjepa-encoder-1"
WEIGHTS, DESCRIPTION, PREDICTOR = "encoder.safetensors", "encoder.json", "predictor.safetensors"


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    training: Mapping[str, Any] | None = None,
    predictor: Predictor | None = None,
) -> Path:
    """Write an encoder to `folder`, which is created if needed. `training`: facts about the training, as plain json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_weights(encoder, folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "encoder": encoder.config.describe(),
        "input": describe_input(encoder.config),
        "training": dict(training or {}),
    }
    (folder / PREDICTOR).unlink(missing_ok=True)
    if predictor is not None:
        _save_weights(predictor, folder / PREDICTOR)
        description["predictor"] = predictor.config.describe()
        description["predicts"] = {"levels": predictor.levels, "target_width": predictor.target_width}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return folder


def load_encoder(folder: str | Path) -> Encoder:
    """Load the encoder stored in `folder`, in evaluation mode, in fp32 on the CPU.

    Raises FileNotFoundError if a file is missing, ValueError if any tensor does not match the architecture.
    """
    folder = Path(folder)
    return _load_encoder(folder, read_description(folder))


def load_native(folder: str | Path) -> Pretrained:
    """Load the encoder stored in `folder`, and the predictor if there is one."""
    folder = Path(folder)
    description = read_description(folder)
    encoder = _load_encoder(folder, description)
    predictor = None
    if "predictor" in description:
        with _naming(Path(folder) / DESCRIPTION):
            config = PredictorConfig.from_stored(description["predictor"])
        shape = description.get("predicts", {"levels": 1, "target_width": 0})  # absent before version 0.3
        predictor = build_empty(lambda: build_predictor(config, encoder.config, **shape)).eval()
        fill(predictor, read_safetensors(folder / PREDICTOR), str(folder / PREDICTOR))
    return Pretrained(encoder, predictor, str(folder))


def read_description(folder: Path) -> dict[str, Any]:
    """Read an encoder's json; FileNotFoundError or ValueError if the folder is not an exported encoder."""
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not an exported encoder: {name} is missing; `vjepa export CHECKPOINT {folder}` makes one"
            )
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is not valid JSON ({error}); export the encoder again") from error
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if found != FORMAT:
        raise ValueError(f"{folder / DESCRIPTION}: format must be {FORMAT!r}, got {found!r}")
    checked: dict[str, Any] = description
    return checked


def describe_input(config: EncoderConfig) -> dict[str, Any]:
    """The preprocessing expected by an encoder, as plain data."""
    return {
        "layout": "[B, 3, frames, height, width], made by vjepa.normalise of uint8 [B, frames, height, width, 3]",
        "frames": config.frames,
        "size": config.crop,
        "view": "the centre square of the whole short side, resized to this size",
        "mean": MEAN,
        "std": STD,
    }


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; FileNotFoundError if it is missing, ValueError if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; export it again")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); export it again") from error
    return weights


def write_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with the usual permissions instead of owner-only ones."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(weights), path, metadata=dict(metadata))
    path.chmod(mode)  # the library creates files readable only by their owner


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn errors of an architecture that cannot be built into a ValueError that names its file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not describe an encoder that this version can build ({type(error).__name__}: {error}); "
            "export it again"
        ) from error


def _load_encoder(folder: Path, description: Mapping[str, Any]) -> Encoder:
    with _naming(folder / DESCRIPTION):
        config = EncoderConfig.from_stored(description["encoder"])
        encoder: Encoder = build_empty(lambda: build_encoder(config))
    fill(encoder, read_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return encoder.eval()


def _save_weights(module: nn.Module, path: Path) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    write_safetensors(weights, path, {"format": FORMAT})
