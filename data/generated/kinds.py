"""The registry of generated data: a kind is a config and a function that renders clip `index` of set `seed`.

A render function is pure: (config, index, seed) determine every pixel, so any worker can render any clip. A module in
this folder registers a kind with one decorator; so can a module of another package, if it is imported before use.
T frames, H = W = size pixels, F = T.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Array = npt.NDArray[np.floating[Any]]


class VideoSettings(Protocol):
    """Fields that the config of every kind has."""

    @property
    def size(self) -> int:
        """Side length in pixels."""

    @property
    def frames(self) -> int:
        """Frames per clip."""

    @property
    def fps(self) -> int:
        """Frames per second of the video file."""

    @property
    def crf(self) -> int:
        """H.264 quality, 0 (lossless) to 51."""


@dataclass(frozen=True)
class VideoConfig:
    """Fields shared by all kinds."""

    size: int = 64  # side length in pixels
    frames: int = 16  # per clip
    fps: int = 8  # frames per second of the video file
    crf: int = 20  # H.264 quality, 0 (lossless) to 51

    def __post_init__(self) -> None:
        for name, low, high in (("size", 32, 1024), ("frames", 2, 1024), ("fps", 1, 240), ("crf", 0, 51)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low} to {high}, got {getattr(self, name)}")
        if self.size % 2:
            raise ValueError(f"size must be even (H.264 halves the colour planes), got {self.size}")


@dataclass(frozen=True)
class Clip:
    """One generated clip with its ground truth."""

    frames: Frames  # [T, H, W, 3]
    label: int | None = None  # class index
    values: Mapping[str, float] = field(default_factory=dict)  # regression targets
    arrays: Mapping[str, Array] = field(default_factory=dict)  # actions [F-1, A], states [F, S]


Config = TypeVar("Config", bound=VideoSettings)
Render = Callable[[Config, int, int], Clip]


@dataclass(frozen=True)
class Kind:
    """A registered kind of generated data."""

    name: str
    config: type[Any]
    summary: str  # one line
    render: Callable[[Any, int, int], Clip]  # (config, index, seed)
    classes: Callable[[Any], tuple[str, ...]]  # class names for a config; () for no labels


_KINDS: dict[str, Kind] = {}


def generated(
    name: str, config: type[Config], classes: Callable[[Config], tuple[str, ...]] = lambda _: ()
) -> Callable[[Render[Config]], Render[Config]]:
    """Register a render function as the kind `name`; the first line of its docstring is what `--list` shows."""

    def register(render: Render[Config]) -> Render[Config]:
        other = _KINDS.get(name)
        if other is not None and other.render.__module__ != render.__module__:
            raise ValueError(
                f"{render.__module__}: the kind {name!r} is already registered by {other.render.__module__}; rename it"
            )
        if not render.__doc__:
            raise ValueError(f"the kind {name!r} needs a docstring whose first line says what it shows")
        _KINDS[name] = Kind(name, config, render.__doc__.strip().splitlines()[0], render, classes)
        return render

    return register


def all_kinds() -> dict[str, Kind]:
    """All kinds by name; imports the modules of this folder."""
    package = importlib.import_module("data.generated")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"data.generated.{module.name}")
    return dict(sorted(_KINDS.items()))


def find_kind(name: str) -> Kind:
    """The kind called `name`; the ValueError for an unknown name lists the existing kinds."""
    kinds = all_kinds()
    if name not in kinds:
        raise ValueError(f"there is no kind of generated data {name!r}; the kinds are {', '.join(kinds)}")
    return kinds[name]


def clip_seed(seed: int, index: int) -> int:
    """The seed of clip `index` of set `seed`: 64 bits, statistically independent between clips."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def clip_random(seed: int, index: int) -> np.random.Generator:
    """A random generator seeded with `clip_seed`."""
    return np.random.Generator(np.random.PCG64(clip_seed(seed, index)))


LEVELS = {1: (), 2: ("low", "high"), 3: ("low", "middle", "high"), 4: ("lowest", "low", "high", "highest")}


def draw_level(
    random: np.random.Generator, index: int, levels: int, bounds: tuple[float, float], logarithmic: bool = False
) -> float:
    """A random value from part `index % levels` of `bounds`, split into equal parts: levels are balanced over a set."""
    share = (index % levels + float(random.uniform())) / levels
    low, high = bounds
    return float(low * (high / low) ** share) if logarithmic else low + (high - low) * share


def check_ranges(config: object, *names: str, least: float = 0.0) -> None:
    """Raise ValueError unless the named fields are ranges with least <= low <= high."""
    for name in names:
        low, high = getattr(config, name)
        if not least <= low <= high:
            raise ValueError(f"{name} must satisfy {least:g} <= low <= high, got {getattr(config, name)}")


def check_levels(levels: int) -> None:
    """Raise ValueError unless there are class names for that many levels."""
    if levels not in LEVELS:
        raise ValueError(f"levels must be from 1 (no label) to {max(LEVELS)}, got {levels}")
