"""A frozen model that imagines: targets of a clip, and predictions of the tokens that a mask hides.

B clips, N tokens, K context tokens, M target tokens, W width of a target, (t, h, w) the token grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from launch.exchange.encoders import Weights, read_origin
from launch.training.checkpoints import load_module
from vjepa.config import published_masks
from vjepa.encoder import EncoderConfig, build_encoder, encode_levels
from vjepa.formats.architecture import Hints
from vjepa.formats.loading import is_pretrained
from vjepa.jepa import JEPA
from vjepa.masks import MaskConfig, Masks, draw_masks
from vjepa.positions import Grid
from vjepa.predictor import Predictor
from vjepa.targets import TargetEncoder, Targets


@dataclass(frozen=True)
class Imagination:
    """Context encoder, source of targets and predictor, all frozen and in evaluation mode."""

    encoder: nn.Module  # encodes what is visible
    teacher: Targets  # makes the targets
    predictor: Predictor
    levels: tuple[int, ...]  # blocks whose features the predictor takes
    masks: Mapping[str, MaskConfig]  # the kinds of mask it was trained with
    source: str  # where the weights come from
    seed: int = 0  # of the masks

    @property
    def config(self) -> EncoderConfig:
        """The encoder's architecture."""
        found: EncoderConfig = self.encoder.config  # type: ignore[assignment]
        return found

    @property
    def width(self) -> int:
        """Width of a target, and of a prediction."""
        return self.teacher.width

    def draw(self, name: str, clips: int, grid: Grid, first: int = 0) -> Masks:
        """Masks of the kind `name` for `clips` clips, with the random numbers of the clips from `first` on."""
        number = list(self.masks).index(name)
        return draw_masks(self.masks[name], grid, torch.arange(first, first + clips), self.seed, number, name)

    @torch.no_grad()
    def target(self, video: Tensor) -> Tensor:
        """Targets of all tokens of video [B, C, T, H, W] -> [B, N, W]."""
        found: Tensor = self.teacher(video, self.encoder)
        return found

    @torch.no_grad()
    def predict(self, video: Tensor, mask: Masks, name: str, latent: Tensor | None = None) -> Tensor:
        """Predictions of the tokens mask.target [B, M] from those in mask.context [B, K] alone -> [B, M, W].

        `name` is the kind of mask, which selects the mask token; `latent` [B, Z] is the predictor's variable, if it has
        one (None: its prior mean).
        """
        grid: Grid = self.encoder.token_grid(video)  # type: ignore[operator]
        features = torch.cat(encode_levels(self.encoder, video, [mask.context], self.levels)[0], -1)
        kind = list(self.masks).index(name)
        options = {} if latent is None else {"latent": latent}
        found: Tensor = self.predictor(features, mask.context, mask.target, kind, grid, **options)
        return found.float()

    def untrained(self, seed: int) -> "Imagination":
        """The same architecture with random weights: a baseline."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = build_encoder(self.config)
            predictor = Predictor(
                self.predictor.config, self.config, len(self.levels), self.predictor.predictor_proj.out_features
            )
        teacher = TargetEncoder(encoder, self.levels) if isinstance(self.teacher, TargetEncoder) else self.teacher
        return _frozen(
            Imagination(
                encoder, teacher, predictor, self.levels, self.masks, f"{self.source}, untrained weights", self.seed
            )
        )


def load_imagination(path: str | Path, weights: Weights = "", hints: Hints | None = None) -> Imagination:
    """The model at `path`: a run or checkpoint of ours, an exported folder, or official weights with a predictor.

    Such weights come with one encoder, which then encodes the context and makes the targets; in an official checkpoint
    it is target_encoder unless `weights` says otherwise. Raises ValueError if there is no predictor of hidden tokens.
    """
    if is_pretrained(path):
        chosen: Weights = weights or ("target_encoder" if Path(path).is_file() else "")
        pretrained = read_origin(str(path), chosen, hints).pretrained
        if pretrained.predictor is None:
            raise ValueError(f"{path} holds an encoder without a predictor, so there is nothing that it imagines")
        encoder = pretrained.encoder.float()
        masks = _enough_masks(len(pretrained.predictor.mask_tokens))
        teacher = TargetEncoder(encoder)
        return _frozen(Imagination(encoder, teacher, pretrained.predictor.float(), (-1,), masks, pretrained.source))
    return imagination_of(load_module(path), str(path))


def imagination_of(model: JEPA, source: str) -> Imagination:
    """The networks of a run; ValueError if its objective predicts no hidden tokens."""
    objective = model.objective
    if not objective.draws_masks or objective.predictor is None:
        raise ValueError(
            f"{source} was trained with objective={model.config.objective}, which predicts no hidden tokens; give a "
            "run of objective=masked or dense"
        )
    levels: Sequence[int] = getattr(objective, "levels", (-1,))
    return _frozen(
        Imagination(
            objective.context_encoder,
            objective.target_encoder,
            objective.predictor,
            tuple(levels),
            model.config.masks,
            source,
            model.config.seed,
        )
    )


def split_at(grid: Grid, clips: int, steps: int) -> Masks:
    """The mask that shows the first `steps` of the grid's t steps and hides all later ones, for every clip."""
    t, h, w = grid
    if not 0 < steps < t:
        raise ValueError(f"a context must have from 1 to {t - 1} of the {t} steps of the token grid, got {steps}")
    index = torch.arange(t * h * w).expand(clips, -1)
    return Masks(index[:, : steps * h * w], index[:, steps * h * w :])


def closest_mask(imagination: Imagination) -> str:
    """The kind of mask to use for predicting the future: the first one that hides the future, else the last."""
    names = list(imagination.masks)
    return next((name for name in names if imagination.masks[name].kind == "future"), names[-1])


def latent_energy(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of each token: two tensors [B, M, W] -> [B, M]."""
    return functional.l1_loss(prediction, target, reduction="none").mean(-1)


def _enough_masks(tokens: int) -> dict[str, MaskConfig]:
    """The published masks, as many as there are mask tokens."""
    return dict(list(published_masks().items())[: max(1, tokens)])


def _frozen(imagination: Imagination) -> Imagination:
    for module in (imagination.encoder, imagination.teacher, imagination.predictor):
        module.eval().requires_grad_(False)
    return imagination
