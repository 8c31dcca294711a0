"""Masks as a pure function of (config, seed, position of the clip in the run).

A mask hides part of the token grid from the context encoder; the predictor must say what is there. Blocks span the
whole clip, so no patch can be copied from the next frame (V-JEPA 1, section 3.2). B clips, N = t*h*w tokens, K kept as
context, M to predict, R boxes a mask.

Every random number is a hash of (seed, mask kind, position of the clip, counter), computed on the device: ranks
differ, a resumed run draws what it would have drawn, two ranks with half the batch draw what one rank draws for all of
it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vjepa.positions import Grid

Kind = Literal["blocks", "tubes", "random", "future", "past"]


@dataclass(frozen=True)
class MaskConfig:
    """One kind of mask.

    With `keep` and `predict` the lengths are fixed shares of N, and so is the task, whatever the batch a device holds.
    With both 0 the clips of a batch are cut to the shortest among them, as published; then the task depends on the
    batch.
    """

    kind: Kind = "blocks"
    num_blocks: int = 8  # boxes whose union is hidden (blocks)
    spatial_scale: tuple[float, float] = (0.15, 0.15)  # area of a box, fraction of the h x w grid (blocks)
    aspect: tuple[float, float] = (0.75, 1.5)  # height over width of a box (blocks)
    hidden: tuple[float, float] = (0.5, 0.5)  # share hidden (tubes, random: of the tokens; future, past: of the time)
    keep: float = 0.0  # context tokens, fraction of N; 0: what the shortest context of the batch has
    predict: float = 0.0  # target tokens, fraction of N; 0: what the smallest target of the batch has
    drop: Literal["random", "last"] = (
        "random"  # which tokens go when a mask is longer than wanted; `last`: as published
    )
    max_keep: int = 0  # most context tokens; 0: no limit
    max_temporal_keep: float = 1.0  # context only from the first part of the clip, fraction of the time

    def __post_init__(self) -> None:
        for name in ("spatial_scale", "hidden"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"masks.{name} must satisfy 0 < low <= high <= 1, got {[low, high]}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"masks.aspect must satisfy 0 < low <= high, got {list(self.aspect)}")
        if self.num_blocks < 1:
            raise ValueError(f"masks.num_blocks must be at least 1, got {self.num_blocks}")
        if bool(self.keep) != bool(self.predict):
            raise ValueError(
                f"masks.keep and masks.predict must be set together or not at all, got {self.keep} and {self.predict}"
            )
        if min(self.keep, self.predict) < 0 or self.keep + self.predict > 1:
            raise ValueError(
                f"masks.keep + masks.predict must be fractions of the tokens with a sum of at most 1, "
                f"got {self.keep} + {self.predict}: more mask than grid"
            )
        if not 0 < self.max_temporal_keep <= 1:
            raise ValueError(f"masks.max_temporal_keep must lie in (0, 1], got {self.max_temporal_keep}")

    @property
    def follows_batch(self) -> bool:
        """Do the lengths depend on the other clips of a device's batch?"""
        return not self.keep and (self.kind == "blocks" or self.hidden[0] != self.hidden[1])


# The two kinds of V-JEPA 1 and 2. Lengths: what the published cut leaves of a batch of 24 clips.
SHORT_RANGE = MaskConfig(num_blocks=8, spatial_scale=(0.15, 0.15), keep=0.235, predict=0.477)
LONG_RANGE = MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7), keep=0.069, predict=0.697)


REDRAWS = 4  # placements drawn for a clip; the first that leaves a context is taken (published: again until one does)


class Masks(NamedTuple):
    """Token indices: context [B, K] and target [B, M], disjoint, ascending in each row."""

    context: Tensor
    target: Tensor


def draw_all(configs: Iterable[MaskConfig], grid: Grid, clips: Tensor, seed: int) -> list[Masks]:
    """Masks of every kind of a run, see `draw_masks`."""
    return [draw_masks(config, grid, clips, seed, kind) for kind, config in enumerate(configs)]


def draw_masks(config: MaskConfig, grid: Grid, clips: Tensor, seed: int, kind: int = 0) -> Masks:
    """Masks of one kind for the clips at positions `clips` [B] of the run (int64, on the device to draw on).

    `seed` and `kind` (which of the run's mask kinds) choose the random numbers.
    Raises ValueError where the grid is too small to leave a context and a target.
    """
    t, h, w = grid
    random = ClipRandom(seed * 1009 + kind, clips)
    hidden = HIDERS[config.kind](config, grid, random)
    if config.max_temporal_keep < 1:
        hidden = hidden.view(-1, t, h * w).clone()
        hidden[:, max(1, int(t * config.max_temporal_keep)) :] = True
        hidden = hidden.flatten(1)
    keep, predict = _lengths(config, hidden)
    if keep < 1 or predict < 1:
        raise ValueError(
            f"masks: a {config.kind} mask on the token grid {t}x{h}x{w} leaves {keep} context and {predict} target "
            f"tokens, at least 1 of each is needed; use a larger data.crop or smaller masks"
        )
    order = random.uniform(hidden.shape[1]) if config.drop == "random" else _ascending(hidden)
    context = _first(order + hidden, keep)  # visible tokens first; hidden ones only where those do not suffice
    taken = torch.zeros_like(hidden).scatter_(1, context, True)
    target = _first(order + ~hidden + 2 * taken, predict)  # hidden tokens first, context tokens never
    return Masks(context, target)


class ClipRandom:
    """Uniform random numbers for each of the clips at positions [B]: counters hashed by splitmix64's finaliser."""

    def __init__(self, seed: int, clips: Tensor) -> None:
        seeded = _mix(torch.tensor(seed, dtype=torch.int64) + _signed(0x9E3779B97F4A7C15))
        self.state = _mix(_mix(clips) + seeded)
        self.counter = 0

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) with 24 random bits: [B, *shape] float32."""
        count = torch.Size(shape).numel()
        steps = torch.arange(self.counter + 1, self.counter + count + 1, device=self.state.device)
        self.counter += count
        bits = _mix(self.state[:, None] + steps * _signed(0x9E3779B97F4A7C15))
        return ((bits >> 40) & 0xFFFFFF).float().mul_(2.0**-24).view(-1, *shape)

    def between(self, limits: tuple[float, float], *shape: int) -> Tensor:
        """Numbers in [low, high): [B, *shape]."""
        low, high = limits
        return low + (high - low) * self.uniform(*shape)


def hide_blocks(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Union of `num_blocks` boxes through all time -> [B, N] bool.

    One box size for all boxes of a clip: area n = int(h*w*scale), height = round(sqrt(n*aspect)), width =
    round(sqrt(n/aspect)). The published code draws one size for a batch, to waste less in the cut to the shortest; so
    do we where the lengths are not fixed.
    """
    t, h, w = grid
    area = (h * w * random.between(config.spatial_scale, 1)).floor()
    aspect = random.between(config.aspect, 1)
    if not config.keep:
        area, aspect = area[:1], aspect[:1]
    height = (area * aspect).sqrt().round().clamp(1, h)
    width = (area / aspect).sqrt().round().clamp(1, w)
    # A box over the whole plane leaves nothing to see, whatever is drawn.
    height = torch.where((height >= h) & (width >= w), height - 1, height)
    top, left = random.uniform(2, REDRAWS, config.num_blocks).unbind(1)
    top = (top * (h - height + 1).unsqueeze(-1)).floor().unsqueeze(-1)
    left = (left * (w - width + 1).unsqueeze(-1)).floor().unsqueeze(-1)
    rows, columns = torch.arange(h, device=top.device), torch.arange(w, device=top.device)
    in_rows = (rows >= top) & (rows < top + height[..., None, None])
    in_columns = (columns >= left) & (columns < left + width[..., None, None])
    planes = (in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)).any(2).flatten(2)
    return _first_with_context(planes, random).repeat(1, t)


def hide_tubes(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The same random places in all frames -> [B, N] bool (VideoMAE's tubes)."""
    t, h, w = grid
    return _hide_share(random, h * w, config.hidden).repeat(1, t)


def hide_random(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Random tokens -> [B, N] bool."""
    t, h, w = grid
    return _hide_share(random, t * h * w, config.hidden)


def hide_future(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The last part of the time -> [B, N] bool: predict what comes next."""
    t, h, w = grid
    hidden = (random.between(config.hidden, 1) * t).round().clamp(1, max(1, t - 1))
    late = torch.arange(t, device=hidden.device) >= t - hidden
    return late.repeat_interleave(h * w, dim=1)


def hide_past(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """The first part of the time -> [B, N] bool: predict what came before."""
    return hide_future(config, grid, random).flip(1)


HIDERS: dict[Kind, Callable[[MaskConfig, Grid, ClipRandom], Tensor]] = {
    "blocks": hide_blocks,
    "tubes": hide_tubes,
    "random": hide_random,
    "future": hide_future,
    "past": hide_past,
}


def _first_with_context(planes: Tensor, random: ClipRandom) -> Tensor:
    """Of the planes [B, REDRAWS, h*w] the first that leaves something to see; one place revealed where none does."""
    full = planes.all(2)
    chosen = full.int().argmin(1)
    plane = planes[torch.arange(len(planes), device=planes.device), chosen]
    place = _first(random.uniform(plane.shape[1]), 1)
    return plane.scatter(1, place, plane.gather(1, place) & ~full.all(1, keepdim=True))


def _lengths(config: MaskConfig, hidden: Tensor) -> tuple[int, int]:
    """K and M for a batch of masks [B, N]."""
    tokens = hidden.shape[1]
    if config.keep:
        keep, predict = round(tokens * config.keep), round(tokens * config.predict)
    else:
        counts = hidden.sum(1)
        keep, predict = tokens - int(counts.max()), int(counts.min())
    return (min(keep, config.max_keep) if config.max_keep else keep), predict


def _hide_share(random: ClipRandom, places: int, limits: tuple[float, float]) -> Tensor:
    """A random share of `places` -> [B, places] bool, at least one hidden and one visible."""
    share = (random.between(limits, 1) * places).round().clamp(1, places - 1)
    rank = random.uniform(places).argsort(1).argsort(1)
    return rank < share


def _first(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` smallest scores of each row, ascending: [B, N] -> [B, count]."""
    return score.argsort(dim=1, stable=True)[:, :count].sort(1).values


def _ascending(hidden: Tensor) -> Tensor:
    """Scores in [0, 1) that keep the order of the tokens: [B, N]."""
    return (torch.arange(hidden.shape[1], device=hidden.device) / hidden.shape[1]).expand_as(hidden)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (Steele, Lea and Flood 2014); products wrap around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _signed(value: int) -> int:
    """An unsigned 64-bit constant as the signed number of the same bits."""
    return value - 2**64 if value >= 2**63 else value
