"""Reload an export with the library it is for, and compare it with the original on a clip."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.heads import AttentiveHead
from vjepa.encoder import Encoder, all_levels, levels_of
from vjepa.formats.accounting import Pretrained
from vjepa.formats.graph import ONNX, PROGRAM
from vjepa.patches import gather_tokens
from vjepa.predictor import Predictor

Features = Callable[[Tensor], Tensor]
Prediction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reader:
    """A reloaded export: `features` of a clip, `prediction` if it has a predictor, `logits` if it is a classifier."""

    features: Features
    prediction: Prediction | None = None
    logits: Features | None = None


@torch.no_grad()
def measure_difference(original: Pretrained, reader: Reader, clip: Tensor, head: AttentiveHead | None = None) -> float:
    """Largest absolute difference of the features, and of the predictions and logits if there are any.

    clip is normalised, float32 [1, 3, T, H, W]. Half of the tokens are the predictor's context, the rest its targets.
    """
    encoder = original.encoder.float().eval()
    features = encoder(clip)
    difference = float((features - reader.features(clip)).abs().max())
    if head is not None:
        if reader.logits is None:
            raise ValueError("the reloaded export has no classifier")
        logits = head(features)
        difference = max(difference, float((logits - reader.logits(clip)).abs().max()))
    if original.predictor is None or reader.prediction is None:
        return difference
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(0))
    half = max(1, len(order) // 2)
    context, target = order[:half].sort().values[None], order[half:].sort().values[None]
    grid = encoder.token_grid(clip)
    expected = _predict(original.predictor, encoder, clip, context, target, grid)
    return max(difference, float((expected - reader.prediction(clip, context, target)).abs().max()))


def read_ours(loaded: Pretrained) -> Reader:
    """An export in one of our own formats."""

    def predict(clip: Tensor, context: Tensor, target: Tensor) -> Tensor:
        if loaded.predictor is None:
            raise ValueError(f"{loaded.source} lost its predictor")
        grid = loaded.encoder.token_grid(clip)
        return _predict(loaded.predictor, loaded.encoder, clip, context, target, grid)

    return Reader(loaded.encoder, predict)


def read_transformers(folder: Path) -> Reader:
    """A folder of transformers' VJEPA2Model."""
    from transformers import AutoModel

    return _theirs(AutoModel.from_pretrained(folder).eval())


def read_classifier_again(folder: Path) -> Reader:
    """A folder of transformers' video classifier."""
    from transformers import AutoModelForVideoClassification

    model = AutoModelForVideoClassification.from_pretrained(folder).eval()

    def logits(clip: Tensor) -> Tensor:
        found: Tensor = model(clip.transpose(1, 2)).logits
        return found

    return replace(_theirs(model.vjepa2), logits=logits)


def _theirs(model: Any) -> Reader:
    def features(clip: Tensor) -> Tensor:
        found: Tensor = model.get_vision_features(clip.transpose(1, 2))
        return found

    def predict(clip: Tensor, context: Tensor, target: Tensor) -> Tensor:
        output = model(clip.transpose(1, 2), context_mask=[context], target_mask=[target])
        found: Tensor = output.predictor_output.last_hidden_state
        return found

    return Reader(features, predict)


def read_onnx(folder: Path) -> Reader:
    """An ONNX file, run by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    return Reader(lambda clip: torch.from_numpy(session.run(None, {"video": clip.numpy()})[0]))


def read_program(folder: Path) -> Reader:
    """A torch.export program."""
    module = torch.export.load(folder / PROGRAM).module()
    return Reader(lambda clip: module(clip))


def _predict(
    predictor: Predictor, encoder: Encoder, clip: Tensor, context: Tensor, target: Tensor, grid: Any
) -> Tensor:
    predictor = predictor.float().eval()
    features = torch.cat(all_levels(encoder, clip, levels_of(encoder.config, predictor.levels)), -1)
    prediction: Tensor = predictor(gather_tokens(features, context), context, target, grid=grid)
    return prediction


def count_parameters(encoder: Encoder) -> int:
    """Number of parameters of an encoder."""
    return sum(parameter.numel() for parameter in encoder.parameters())
