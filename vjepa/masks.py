"""Masks as a pure function of (config, seed, stream position of the clip).

A mask hides part of the token grid from the context encoder; the predictor must predict the hidden part. Blocks span
the whole clip, so no patch can be copied from the next frame (V-JEPA 1, section 3.2). B clips, N = t*h*w tokens, K
context tokens, M target tokens, R boxes per mask.

Every random number is a hash of (seed, mask kind, stream position, counter), computed on the device. So ranks draw
different masks, a resumed run draws the same masks as an uninterrupted one, and two ranks with half the batch each draw
the same masks as one rank with the whole batch. Masks without fixed lengths are the exception: as published, their size
and length follow from the clips that a device has in one forward pass (`MaskConfig.follows_batch`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vjepa.draws import ClipRandom
from vjepa.mask_lengths import draw_enough, find_spares, measure_lengths
from vjepa.positions import Grid
from vjepa.registry import MASKS

__all__ = ["LONG_RANGE", "SHORT_RANGE", "ClipRandom", "MaskConfig", "Masks", "draw_all", "draw_masks", "mask"]


@dataclass(frozen=True)
class MaskConfig:
    """One kind of mask.

    As published (V-JEPA 1 and 2), all masks of a device's batch have boxes of one size and are truncated to the
    shortest, so K, M and the boxes depend on that batch. With `keep` and `predict`, or with `lengths_of_batch`, K and M
    are fixed and every mask depends on its own clip alone.
    """

    kind: str = field(default="blocks", metadata={"registry": MASKS})  # a registered mask
    num_blocks: int = 8  # boxes whose union is hidden (blocks)
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # area of a box, fraction of the h x w grid (blocks)
    aspect: tuple[float, float] = (2 / 3, 4 / 3)  # width / height of a box (blocks); height / width is drawn uniformly
    hidden: tuple[float, float] = (
        0.5,
        0.5,
    )  # fraction hidden (tubes, random: of the tokens; future, past: of the clip's duration)
    keep: float | None = None  # context tokens, fraction of N; None: truncate to the shortest context of the batch
    predict: float | None = None  # target tokens, fraction of N; None: truncate to the shortest target of the batch
    lengths_of_batch: int | None = (
        None  # replaces keep and predict: the mean K and M that truncation leaves with this many clips per device
    )
    borrow: bool = (
        True  # fixed lengths: a mask with too few tokens takes some from the other side; false: draw it again
    )
    drop: Literal["random", "last"] = "random"  # which tokens to drop when a mask is too long; `last`: as published
    max_keep: int | None = None  # maximum number of context tokens; None: no limit
    max_temporal_keep: float = 1.0  # take context tokens only from this first fraction of the clip's duration
    options: dict[str, float] = field(default_factory=dict)  # numeric options of a custom mask

    def __post_init__(self) -> None:
        for name in ("spatial_scale", "hidden"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"masks.{name} must satisfy 0 < low <= high <= 1, got {[low, high]}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"masks.aspect must satisfy 0 < low <= high, got {list(self.aspect)}")
        if self.num_blocks < 1:
            raise ValueError(f"masks.num_blocks must be at least 1, got {self.num_blocks}")
        MASKS.find(self.kind)
        if (self.keep is None) != (self.predict is None):
            raise ValueError(
                f"masks.keep and masks.predict must be set together or not at all, got {self.keep} and {self.predict}"
            )
        if self.keep is not None and self.predict is not None and not _are_shares(self.keep, self.predict):
            raise ValueError(
                f"masks.keep and masks.predict must be fractions of the tokens above 0 with a sum of at most 1, "
                f"got {self.keep} + {self.predict}"
            )
        if self.lengths_of_batch is not None and (self.lengths_of_batch < 1 or self.keep is not None):
            raise ValueError(
                f"masks.lengths_of_batch must be at least 1 clip and replaces masks.keep and masks.predict, got "
                f"{self.lengths_of_batch} with {self.keep} and {self.predict}"
            )
        if not 0 < self.max_temporal_keep <= 1:
            raise ValueError(f"masks.max_temporal_keep must lie in (0, 1], got {self.max_temporal_keep}")

    @property
    def fixed(self) -> bool:
        """Are K and M the same for every batch?"""
        return self.keep is not None or self.lengths_of_batch is not None

    @property
    def follows_batch(self) -> bool:
        """Do the masks of a clip depend on the other clips in the device's batch?"""
        return not self.fixed and MASKS.find(self.kind).varies(self)


Hide = Callable[[MaskConfig, Grid, ClipRandom], Tensor]
Divide = Callable[[MaskConfig, Grid, ClipRandom], tuple[Tensor, Tensor]]

REDRAWS = (
    4  # placements drawn per clip; the first that leaves a context is used (the published code redraws until then)
)


class Masks(NamedTuple):
    """Token indices: context [B, K] and target [B, M], disjoint, ascending in each row."""

    context: Tensor
    target: Tensor


@dataclass(frozen=True)
class MaskGenerator:
    """A registered mask generator."""

    hide: Hide  # -> hidden [B, N] bool
    varies: Callable[[MaskConfig], bool]  # can the number of hidden tokens differ between clips?
    divide: Divide | None = None  # for objectives that predict several targets from one context, each by itself


def mask(
    name: str, varies: Callable[[MaskConfig], bool] = lambda config: True, divide: Divide | None = None
) -> Callable[[Hide], Hide]:
    """Decorator: register a function (config, grid, random) -> hidden [B, N] bool as the mask `name`.

    `divide` -> context [B, N] and targets [B, R, N] bool, if the mask has R targets of its own (see `multiblock`).
    """

    def add(hide: Hide) -> Hide:
        MASKS.register(name)(MaskGenerator(hide, varies, divide))
        return hide

    return add


def draw_all(configs: Mapping[str, MaskConfig], grid: Grid, clips: Tensor, seed: int) -> list[Masks]:
    """Masks of every kind in the config; see `draw_masks`."""
    return [draw_masks(config, grid, clips, seed, kind, name) for kind, (name, config) in enumerate(configs.items())]


def draw_masks(config: MaskConfig, grid: Grid, clips: Tensor, seed: int, kind: int = 0, name: str = "") -> Masks:
    """Masks of one kind for the clips at stream positions `clips` [B] (int64, on the device to draw on).

    `seed` and `kind` (the mask's index in the config) seed the random numbers; `name` identifies the mask in errors.
    Raises ValueError if the grid is too small to leave both a context and a target.
    """
    random = ClipRandom(seed * 1009 + kind, clips)
    hidden = _hide(config, grid, random)
    keep, predict = _lengths(config, grid, hidden)
    if keep < 1 or predict < 1:
        t, h, w = grid
        raise ValueError(
            f"masks{name and '.' + name}: a {config.kind} mask on the token grid {t}x{h}x{w} leaves {keep} context and "
            f"{predict} target tokens, at least 1 of each is needed; use a larger data.crop or smaller masks"
        )
    if config.fixed and not config.borrow:
        hide = partial(_hide, config, grid)
        spares = find_spares((repr(config), grid), hide, (keep, predict), f"masks{name and '.' + name}")
        hidden = draw_enough(hide, hidden, (keep, predict), spares, (clips, seed * 1009 + kind))
    order = random.uniform(hidden.shape[1]) if config.drop == "random" else in_order(hidden)
    context = pick_first(order + hidden, keep)  # visible tokens first; hidden ones only if there are too few (`borrow`)
    taken = torch.zeros_like(hidden).scatter_(1, context, True)
    target = pick_first(order + ~hidden + 2 * taken, predict)  # hidden tokens first, never context tokens
    return Masks(context, target)


def _share_varies(config: MaskConfig) -> bool:
    return config.hidden[0] != config.hidden[1]


@mask("blocks")
def hide_blocks(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Union of `num_blocks` boxes, each spanning all frames -> [B, N] bool.

    All boxes of a clip have the same size: area n = int(h*w*scale), height = round(sqrt(n*aspect)), width =
    round(sqrt(n/aspect)). The published code draws one size per batch, so that truncating to the shortest loses less;
    we do the same unless the lengths are fixed.
    """
    t, h, w = grid
    area = (h * w * random.between(config.spatial_scale, 1)).floor()
    aspect = random.between((1 / config.aspect[1], 1 / config.aspect[0]), 1)  # height over width
    if not config.fixed:
        area, aspect = area[:1], aspect[:1]
    height = (area * aspect).sqrt().round().clamp(1, h)
    width = (area / aspect).sqrt().round().clamp(1, w)
    # A box covering the whole plane would never leave a context.
    height = torch.where((height >= h) & (width >= w), height - 1, height)
    top, left = random.uniform(2, REDRAWS, config.num_blocks).unbind(1)
    top = (top * (h - height + 1).unsqueeze(-1)).floor().unsqueeze(-1)
    left = (left * (w - width + 1).unsqueeze(-1)).floor().unsqueeze(-1)
    rows, columns = torch.arange(h, device=top.device), torch.arange(w, device=top.device)
    in_rows = (rows >= top) & (rows < top + height[..., None, None])
    in_columns = (columns >= left) & (columns < left + width[..., None, None])
    planes = (in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)).any(2).flatten(2)
    return _first_with_context(planes, random).repeat(1, t)


@mask("tubes", _share_varies)
def hide_tubes(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The same random spatial cells in all frames -> [B, N] bool (VideoMAE's tubes)."""
    t, h, w = grid
    return _hide_share(random, h * w, config.hidden).repeat(1, t)


@mask("random", _share_varies)
def hide_random(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Random tokens -> [B, N] bool."""
    t, h, w = grid
    return _hide_share(random, t * h * w, config.hidden)


@mask("future", _share_varies)
def hide_future(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The last part of the clip -> [B, N] bool: predict what comes next."""
    t, h, w = grid
    hidden = (random.between(config.hidden, 1) * t).round().clamp(1, max(1, t - 1))
    late = torch.arange(t, device=hidden.device) >= t - hidden
    return late.repeat_interleave(h * w, dim=1)


@mask("past", _share_varies)
def hide_past(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The first part of the clip -> [B, N] bool: predict what came before."""
    return hide_future(config, grid, random).flip(1)


def _first_with_context(planes: Tensor, random: ClipRandom) -> Tensor:
    """The first of the planes [B, REDRAWS, h*w] with a visible cell; if there is none, one cell is revealed."""
    full = planes.all(2)
    chosen = full.int().argmin(1)
    plane = planes[torch.arange(len(planes), device=planes.device), chosen]
    cell = pick_first(random.uniform(plane.shape[1]), 1)
    return plane.scatter(1, cell, plane.gather(1, cell) & ~full.all(1, keepdim=True))


def _are_shares(keep: float, predict: float) -> bool:
    return min(keep, predict) > 0 and keep + predict <= 1


def _hide(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """What the mask and `max_temporal_keep` hide of each clip -> [B, N] bool."""
    t, h, w = grid
    hidden: Tensor = MASKS.find(config.kind).hide(config, grid, random)
    if config.max_temporal_keep < 1:
        hidden = hidden.view(-1, t, h * w).clone()
        hidden[:, max(1, int(t * config.max_temporal_keep)) :] = True
        hidden = hidden.flatten(1)
    return hidden


def _lengths(config: MaskConfig, grid: Grid, hidden: Tensor) -> tuple[int, int]:
    """K and M for a batch of masks [B, N]."""
    tokens = hidden.shape[1]
    if config.lengths_of_batch is not None:
        truncated = replace(config, lengths_of_batch=None)
        keep, predict = measure_lengths((repr(config), grid), partial(_hide, truncated, grid), config.lengths_of_batch)
    elif config.keep is not None and config.predict is not None:
        keep = round(tokens * config.keep)
        predict = min(round(tokens * config.predict), tokens - keep)  # both may have been rounded up
    else:
        counts = hidden.sum(1)
        keep, predict = tokens - int(counts.max()), int(counts.min())
    return (keep if config.max_keep is None else min(keep, config.max_keep)), predict


def _hide_share(random: ClipRandom, cells: int, limits: tuple[float, float]) -> Tensor:
    """A random fraction of `cells` -> [B, cells] bool, at least one hidden and one visible."""
    share = (random.between(limits, 1) * cells).round().clamp(1, cells - 1)
    rank = random.uniform(cells).argsort(1).argsort(1)
    return rank < share


def pick_first(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest scores of each row, ascending: [B, N] -> [B, count]."""
    return score.argsort(dim=1, stable=True)[:, :count].sort(1).values


def in_order(hidden: Tensor) -> Tensor:
    """Scores in [0, 1) that preserve token order: [B, N]."""
    return (torch.arange(hidden.shape[1], device=hidden.device) / hidden.shape[1]).expand_as(hidden)


# V-JEPA's two masks with fixed lengths: what truncation leaves of 24 clips on the grid 8x14x14 (224 pixels, 16 frames).
SHORT_RANGE = MaskConfig(num_blocks=8, spatial_scale=(0.15, 0.15), keep=0.235, predict=0.477)
LONG_RANGE = MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7), keep=0.069, predict=0.697)
