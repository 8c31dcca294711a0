"""The project's own format: a folder with `encoder.safetensors` and `encoder.json`.

The json holds the architecture, the preprocessing that the encoder expects, and what is known of its training.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vjepa.pixels import MEAN, STD
from vjepa.vit import Encoder, EncoderConfig

FORMAT = "vjepa-encoder-1"
WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"


def save_encoder(encoder: Encoder, folder: str | Path, training: Mapping[str, Any] | None = None) -> Path:
    """Write an encoder to `folder` (made if needed). `training`: facts to keep beside it, as plain json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": FORMAT})
    description = {
        "format": FORMAT,
        "encoder": asdict(encoder.config),
        "input": {
            "layout": "[B, 3, frames, height, width], made by vjepa.normalise of uint8 [B, frames, height, width, 3]",
            "frames": encoder.config.frames,
            "size": encoder.config.crop,
            "mean": MEAN,
            "std": STD,
        },
        "training": dict(training or {}),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return folder


def load_encoder(folder: str | Path) -> Encoder:
    """The encoder stored in `folder`, in evaluation mode, in fp32 on the CPU.

    Raises FileNotFoundError where a file is missing, ValueError where file and architecture disagree in a single
    tensor.
    """
    folder = Path(folder)
    description = read_description(folder)
    encoder = Encoder(EncoderConfig(**description["encoder"]))
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); export it again") from error
    fill(encoder, weights, str(folder / WEIGHTS))
    return encoder.eval()


def read_description(folder: Path) -> dict[str, Any]:
    """The json beside an encoder; FileNotFoundError or ValueError where the folder does not hold one."""
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not an exported encoder: {name} is missing; "
                f"`python -m launch export CHECKPOINT {folder}` makes one"
            )
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    if description.get("format") != FORMAT:
        raise ValueError(f"{folder / DESCRIPTION}: format must be {FORMAT!r}, got {description.get('format')!r}")
    return description


def fill(module: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights` into `module`: every tensor used, every parameter filled, every shape equal, or ValueError."""
    wanted = module.state_dict()
    problems = [f"missing {name} {list(wanted[name].shape)}" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"unknown {name} {list(weights[name].shape)}" for name in sorted(weights.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model has {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems[:5])}{more}")
    module.load_state_dict(dict(weights))
