"""Solutions of partial differential equations as videos; the coefficient to regress shows only in how they evolve.

Every clip starts from a smooth random field whose distribution does not depend on the coefficient, and all clips share
one colour scale, so frame 0 reveals nothing and the decay is visible. T frames, H = W = size pixels, n points per side.

    burgers    u_t + u u_x = c u_xx                    c: viscosity
    kdv        u_t + u u_x + c u_xxx = 0               c: dispersion
    kuramoto   u_t + u u_x + u_xx + c u_xxxx = 0       c: hyperviscosity (Kuramoto-Sivashinsky)
    vorticity  w_t + (v . grad) w = c lap w            c: viscosity of a flow in two dimensions
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.generated.kinds import LEVELS, Clip, VideoConfig, check_levels, clip_random, draw_level, generated
from data.generated.spectral import Real, solve_line, solve_vorticity

Equation = Literal["burgers", "kdv", "kuramoto", "vorticity"]

_POINTS = 128  # grid points in one dimension
_GRID = 64  # grid points per side in two dimensions
_ANCHORS = np.array(
    [(13, 24, 66), (28, 86, 150), (78, 164, 190), (240, 238, 222), (240, 160, 86), (198, 62, 58), (92, 12, 44)],
    np.float32,
)  # from most negative to most positive


@dataclass(frozen=True)
class Problem:
    """Setup of an equation."""

    coefficient: tuple[float, float]  # range
    length: float  # period in space
    interval: float  # time per frame
    substeps: int  # integration steps per frame
    scale: float  # field value at the end of the colour scale


PROBLEMS: dict[Equation, Problem] = {
    "burgers": Problem((0.02, 0.3), 2 * math.pi, 0.12, 12, 2.0),
    "kdv": Problem((0.002, 0.05), 2 * math.pi, 0.08, 24, 3.0),
    "kuramoto": Problem((0.3, 2.0), 32.0, 0.6, 6, 3.5),
    "vorticity": Problem((0.003, 0.1), 2 * math.pi, 0.16, 10, 6.0),
}


@dataclass(frozen=True)
class EquationsConfig(VideoConfig):
    """The coefficient is drawn log-uniformly, level by level."""

    equation: Equation = "burgers"
    view: Literal["profile", "bands"] = "profile"  # in one dimension: the curve over x, or its colours alone
    levels: int = 3  # number of classes: equal parts of the coefficient's log range; 1: no label
    amplitude: tuple[float, float] = (0.7, 1.0)  # of the initial field, relative to half the colour scale
    waves: int = 4  # highest wave number of the initial field

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self.levels)
        if not 0 < self.amplitude[0] <= self.amplitude[1]:
            raise ValueError(f"amplitude must satisfy 0 < low <= high, got {self.amplitude}")
        if not 1 <= self.waves <= 12:
            raise ValueError(f"waves must be from 1 to 12, got {self.waves}")


@generated("equations", EquationsConfig, classes=lambda config: LEVELS[config.levels])
def render_equations(config: EquationsConfig, index: int, seed: int) -> Clip:
    """Solutions of Burgers, Korteweg-de Vries, Kuramoto-Sivashinsky or 2-D vorticity (equation=)."""
    random = clip_random(seed, index)
    problem = PROBLEMS[config.equation]
    coefficient = draw_level(random, index, config.levels, problem.coefficient, logarithmic=True)
    start = _draw_field(random, config, problem)
    field = solve(config.equation, start, coefficient, config.frames) / problem.scale
    if not np.isfinite(field).all():
        raise ValueError(
            f"{config.equation}: the solution of clip {index} diverged; lower amplitude {config.amplitude}"
        )
    if config.equation == "vorticity":
        frames = _colour(_resample(_resample(field, config.size, 1), config.size, 2))
    else:
        frames = _draw_lines(_resample(field, config.size, 1), config.view)
    label = index % config.levels if config.levels > 1 else None
    return Clip(frames, label, {"coefficient": coefficient, "log_coefficient": math.log(coefficient)})


def solve(equation: Equation, start: Real, coefficient: float, frames: int) -> Real:
    """The solution from `start` [n] or [n, n], one frame per interval: [T, ...]."""
    problem = PROBLEMS[equation]
    if equation == "vorticity":
        return solve_vorticity(start, coefficient, frames, problem.interval, problem.substeps)
    powers = {
        "burgers": {2: coefficient},
        "kdv": {3: -coefficient},
        "kuramoto": {2: -1.0, 4: -coefficient},
    }[equation]
    return solve_line(start, problem.length, powers, frames, problem.interval, problem.substeps)


def _draw_field(random: np.random.Generator, config: EquationsConfig, problem: Problem) -> Real:
    """A sum of a few waves with random amplitudes and phases, with mean 0; [n] or [n, n]."""
    waves, height = config.waves, 0.5 * problem.scale * random.uniform(*config.amplitude)
    if config.equation == "vorticity":
        noise = np.fft.rfft2(random.normal(size=(_GRID, _GRID)))
        wave = np.hypot(np.fft.fftfreq(_GRID, 1 / _GRID)[:, None], np.arange(_GRID // 2 + 1))
        field: Real = np.fft.irfft2(noise * ((wave > 0) & (wave <= waves)), (_GRID, _GRID))
    else:
        spectrum = np.zeros(_POINTS // 2 + 1, complex)
        spectrum[1 : waves + 1] = random.normal(size=waves) + 1j * random.normal(size=waves)
        field = np.fft.irfft(spectrum, _POINTS)
    scaled: Real = field * (height / np.sqrt((field**2).mean()))
    return scaled


def _resample(field: Real, size: int, axis: int) -> Real:
    """Fourier resampling along one axis, exact for band-limited fields: n -> size points."""
    points = field.shape[axis]
    spectrum = np.fft.rfft(field, axis=axis).take(np.arange(min(points, size) // 2), axis=axis)
    resampled: Real = np.fft.irfft(spectrum, size, axis=axis) * (size / points)
    return resampled


def _draw_lines(field: Real, view: str) -> npt.NDArray[np.uint8]:
    """Profiles [T, W] -> frames [T, H, W, 3]: filled from the middle to the curve, or as vertical bands."""
    size = field.shape[1]
    colours = _colour(field)[:, None]
    if view == "bands":
        return np.ascontiguousarray(np.broadcast_to(colours, (len(field), size, size, 3)))
    height = np.linspace(1, -1, size)[None, :, None]
    value = np.clip(field, -0.98, 0.98)[:, None]
    beyond = np.maximum(height - np.maximum(value, 0), np.minimum(value, 0) - height)
    cover = np.clip(0.5 - beyond * size / 2, 0, 1)[..., None]
    back = np.array([22, 26, 38], float)
    frames: npt.NDArray[np.uint8] = (back + cover * (0.35 * 255 + 0.65 * colours - back) + 0.5).astype(np.uint8)
    return frames


def _colour(field: Real) -> npt.NDArray[np.uint8]:
    """Values from -1 to 1 [...] -> red, green, blue [..., 3]."""
    anchor = (np.clip(field, -1, 1) + 1) / 2 * (len(_ANCHORS) - 1)
    planes = [np.interp(anchor, np.arange(len(_ANCHORS)), _ANCHORS[:, lane]) for lane in range(3)]
    colours: npt.NDArray[np.uint8] = (np.stack(planes, axis=-1) + 0.5).astype(np.uint8)
    return colours
