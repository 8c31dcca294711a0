"""The export formats by name: how each is written, and how it is reloaded with the library it is for.

A format of your own is registered in a module that `--plugin` names:

    FORMATS.register("mine")(Format(write, read, "how to load it, for the model card"))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from launch.exchange.round_trip import Reader, read_onnx, read_ours, read_program, read_transformers
from launch.training.continued import read_training_of
from vjepa.encoder import Encoder
from vjepa.formats.graph import save_onnx, save_program
from vjepa.formats.meta import load_meta, save_meta
from vjepa.formats.meta_training import add_training
from vjepa.formats.native import load_native, save_encoder
from vjepa.formats.transformers import save_transformers
from vjepa.predictor import Predictor
from vjepa.registry import Registry


@dataclass(frozen=True)
class Export:
    """The content of an export."""

    encoder: Encoder
    predictor: Predictor | None
    facts: Mapping[str, Any] = field(repr=False)  # what is known about the training, as plain data
    folder: Path
    run: str = ""  # the run it comes from, if its training state can be exported too


@dataclass(frozen=True)
class Format:
    """How an encoder is written to a folder, and how it is reloaded for the comparison."""

    write: Callable[[Export], object]
    read: Callable[[Path], Reader]
    snippet: str = ""  # Python code that loads it, for the model card


def write_meta(job: Export) -> Path:
    """An official checkpoint; from a run with its training state, so that the public trainers can resume from it."""
    training = read_training_of(job.run) if job.run and job.predictor is not None else None
    complete = partial(add_training, training=training) if training else None
    return save_meta(job.encoder, job.predictor, job.folder, complete)


FORMATS: Registry[Format] = Registry("--format", "launch.exchange.formats")

FORMATS.register("native")(
    Format(
        lambda job: save_encoder(job.encoder, job.folder, job.facts, job.predictor),
        lambda folder: read_ours(load_native(folder)),
    )
)
FORMATS.register("transformers")(
    Format(lambda job: save_transformers(job.encoder, job.predictor, job.folder), read_transformers)
)
FORMATS.register("onnx")(Format(lambda job: save_onnx(job.encoder, job.folder), read_onnx))
FORMATS.register("program")(Format(lambda job: save_program(job.encoder, job.folder), read_program))
FORMATS.register("meta")(
    Format(
        write_meta,
        lambda folder: read_ours(load_meta(next(folder.glob("checkpoint.*")), "target_encoder")),
    )
)
