"""Loads encoder and predictor from a path: a run, a checkpoint, an exported folder, or an official checkpoint."""

import argparse
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from launch.training.checkpoints import load_module
from probes.extractors import hash_weights
from probes.heads import AttentiveHead
from probes.saved import SavedHead, load_attentive
from vjepa.encoder import Encoder
from vjepa.formats.accounting import Pretrained
from vjepa.formats.architecture import Hints
from vjepa.formats.loading import is_pretrained, load_pretrained
from vjepa.formats.meta import ENCODERS, EncoderName
from vjepa.jepa import JEPA

__all__ = [
    "Origin",
    "Weights",
    "add_encoder_arguments",
    "describe_run",
    "hash_weights",
    "read_head",
    "read_hints",
    "read_origin",
]

Weights = Literal["", "target", "context", "encoder", "target_encoder", "ema_encoder"]


@dataclass(frozen=True)
class Origin:
    """Loaded weights, and what is known about their training as plain data."""

    pretrained: Pretrained
    facts: dict[str, Any] = field(default_factory=dict)
    run: str = ""  # the run or .ckpt it was read from, if these are its target encoder's weights


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that select an encoder in a file, and supply what its tensor shapes do not reveal."""
    parser.add_argument(
        "--weights",
        choices=["target", "context", *ENCODERS],
        default="",
        help="which encoder: target (default) or context for a run; one of the others for an official checkpoint",
    )
    group = parser.add_argument_group("for official checkpoints, where the tensor shapes do not determine it")
    group.add_argument("--heads", type=int, default=0, help="attention heads of the encoder")
    group.add_argument("--predictor-heads", type=int, default=0, help="attention heads of the predictor")
    group.add_argument("--positions", choices=["sincos", "rotary"], help="V-JEPA 1: sincos; V-JEPA 2: rotary")
    group.add_argument("--frames", type=int, default=0, help="frames of the clips it was trained on")
    group.add_argument("--crop", type=int, default=0, help="size in pixels of the clips it was trained on")


def read_hints(arguments: argparse.Namespace) -> Hints:
    """The hints given on the command line."""
    return Hints(
        heads=arguments.heads,
        predictor_heads=arguments.predictor_heads,
        positions=arguments.positions,
        frames=arguments.frames,
        crop=arguments.crop,
    )


def read_origin(path: str, weights: Weights = "", hints: Hints | None = None) -> Origin:
    """The weights at `path`; ValueError if `weights` names an encoder that such a file cannot have."""
    if is_pretrained(path):
        if weights in ("target", "context"):
            raise ValueError(f"--weights {weights} is for runs; {path} is not a run, choose {', '.join(ENCODERS)}")
        pretrained = load_pretrained(path, cast("EncoderName | None", weights or None), hints)
        return Origin(pretrained, {"checkpoint": pretrained.source})
    if weights in ENCODERS:
        raise ValueError(f"--weights {weights} is for official checkpoints; a run has target and context")
    origin = describe_run(load_module(path), "context" if weights == "context" else "target", path)
    return replace(origin, run="" if weights == "context" else path)


def describe_run(model: JEPA, weights: Literal["target", "context"], source: str) -> Origin:
    """One of the two encoders of a run (context if there is no moving average), with its latent predictor."""
    encoder = model.trained_encoder if weights == "target" else model.context_encoder
    which = "context" if encoder is model.context_encoder else "target"
    facts = {"weights": which, "steps": model.config.steps, "clips": model.position, "checkpoint": source}
    predictor = model.predictor.eval() if model.predictor is not None and model.predictor.latent else None
    return Origin(Pretrained(encoder.eval(), predictor, source), facts)


def read_head(path: str, encoder: Encoder) -> SavedHead[AttentiveHead]:
    """The attentive head trained by a probe of this encoder; ValueError if it belongs to another encoder."""
    saved = load_attentive(path)
    saved.check_encoder(encoder.config.shape.width, hash_weights(encoder.float()))
    return saved
