"""The encoder as a graph that runs without our code: ONNX for any runtime, or a torch.export program for torch.

Both map `video`, normalised float32 [B, 3, T, H, W], to `features` [B, N, D]. B is dynamic; T, H and W are fixed to
those of training. Writing ONNX needs the extra `onnx`.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.encoder import Encoder
from vjepa.formats.native import describe_input

ONNX, PROGRAM, DESCRIPTION = "encoder.onnx", "encoder.pt2", "graph.json"


class Features(nn.Module):
    """The encoder with a single input."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, video: Tensor) -> Tensor:
        """video [B, 3, T, H, W] -> features [B, N, D]."""
        features: Tensor = self.encoder(video)
        return features


def save_onnx(encoder: Encoder, folder: str | Path) -> Path:
    """Write `encoder.onnx` and `graph.json`; weights over 1.9 GB go to a separate file. Returns the ONNX file."""
    path = _describe(encoder, Path(folder)) / ONNX
    program = _trace(encoder)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            input_names=["video"],
            output_names=["features"],
            external_data=_bytes(encoder) > 1_900_000_000,
            verbose=False,
        )
    except ModuleNotFoundError as error:
        raise ImportError(f"writing ONNX needs {error.name}: pip install 'vjepa-pretraining[onnx]'") from error
    finally:
        quiet.setLevel(level)
    return path


def save_program(encoder: Encoder, folder: str | Path) -> Path:
    """Write `encoder.pt2`, for torch.export.load, and `graph.json`. Returns the program file."""
    path = _describe(encoder, Path(folder)) / PROGRAM
    torch.export.save(_trace(encoder), path)
    return path


def _trace(encoder: Encoder) -> Any:
    config = encoder.config
    model = Features(encoder.eval())
    video = torch.zeros(2, 3, config.frames, config.crop, config.crop)
    with torch.no_grad():
        model(video)  # fills the cache of rotary tables, so that they become constants of the graph
        return torch.export.export(model, (video,), dynamic_shapes={"video": {0: torch.export.Dim("batch", min=1)}})


def _describe(encoder: Encoder, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {"name": "video", "type": "float32", **describe_input(encoder.config)}
    outputs = {"name": "features", "type": "float32", "shape": ["B", "tokens", encoder.config.shape.width]}
    outputs["tokens"] = list(encoder.config.grid)
    content = {"input": inputs, "output": outputs, "encoder": encoder.config.describe()}
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n")
    return folder


def _bytes(encoder: Encoder) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
