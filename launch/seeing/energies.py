"""The energy of what is seen: how far predictions are from what happens, beside cheap substitutes for a model.

n windows, T frames of a window, C context lengths, t steps of the token grid, S = h*w tokens of a step, W width.
Energies are [C, n, t]: the mean over tokens and channels of each step, nan where a step is visible.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from data.loading.clips import Timing
from launch.exchange.features import plan_windows
from launch.seeing.imagination import Imagination, closest_mask, latent_energy, split_at
from vjepa.pixels import normalise

Measure = Callable[[Tensor], Tensor]  # windows uint8 [n, T, H, W, 3] -> energies [C, n, t]


def cut_windows(frames: Tensor, length: int, stride: int, name: str) -> Tensor:
    """Windows of frames [F, H, W, 3] -> [n, length, H, W, 3]; ValueError if there are fewer frames than a window.

    Padding is refused: repeated frames would enter the energy.
    """
    if len(frames) < length:
        raise ValueError(
            f"{name}: {len(frames)} frames after taking every step-th, a window needs {length}; lower step"
        )
    return frames[torch.from_numpy(plan_windows(Timing(len(frames), 1.0, None), length, stride))]


def context_steps(imagination: Imagination, contexts: Sequence[int]) -> list[int]:
    """Context lengths in steps of the grid; `contexts` are frames, empty: a quarter, a half, three quarters."""
    steps, tubelet = imagination.config.grid[0], imagination.config.tubelet
    if not contexts:
        return sorted({max(1, min(steps - 1, round(steps * share))) for share in (0.25, 0.5, 0.75)})
    for context in contexts:
        if context % tubelet or not 0 < context < steps * tubelet:
            raise ValueError(
                f"contexts must be multiples of the tubelet ({tubelet} frames) below {steps * tubelet}, got {context}"
            )
    return sorted({context // tubelet for context in contexts})


def model_energy(imagination: Imagination, steps: Sequence[int], mask: str | None = None) -> Measure:
    """Distance of the model's predictions of all later steps from the targets of the whole window."""
    name = mask or closest_mask(imagination)

    def measure(windows: Tensor) -> Tensor:
        video, grid = normalise(windows), imagination.config.grid
        target = imagination.target(video)
        found = []
        for seen in steps:
            split = split_at(grid, len(windows), seen)
            hidden = target[:, split.context.shape[1] :]
            found.append(_by_step(latent_energy(imagination.predict(video, split, name), hidden), grid[0], seen))
        return torch.stack(found)

    return measure


def copied_features(imagination: Imagination, steps: Sequence[int]) -> Measure:
    """Distance of the last visible step's targets from those of all later steps."""

    def measure(windows: Tensor) -> Tensor:
        t = imagination.config.grid[0]
        target = imagination.target(normalise(windows)).unflatten(1, (t, -1))
        found = []
        for seen in steps:
            change = (target[:, seen:] - target[:, seen - 1 : seen]).abs().mean(-1)
            found.append(_by_step(change.flatten(1), t, seen))
        return torch.stack(found)

    return measure


def pixel_energy(imagination: Imagination, steps: Sequence[int], is_moving: bool) -> Measure:
    """Distance in pixels from the last visible frame, or from its linear extrapolation."""

    def measure(windows: Tensor) -> Tensor:
        t, tubelet = imagination.config.grid[0], imagination.config.tubelet
        pixels = windows.float() / 255
        found = []
        for seen in steps:
            last = pixels[:, seen * tubelet - 1]
            ahead = torch.arange(1, (t - seen) * tubelet + 1).view(1, -1, 1, 1, 1)
            slope = last - pixels[:, max(0, seen * tubelet - 2)] if is_moving else torch.zeros_like(last)
            guess = (last[:, None] + ahead * slope[:, None]).clamp(0, 1)
            error = (pixels[:, seen * tubelet :] - guess).abs().mean((2, 3, 4))
            found.append(_by_step(error, t, seen))
        return torch.stack(found)

    return measure


def frame_scores(imagination: Imagination, steps: Sequence[int]) -> dict[str, Measure]:
    """What single frames and differences of frames say, as one number of a window in all steps and contexts."""

    def spread(number: Callable[[Tensor], Tensor]) -> Measure:
        return lambda windows: number(windows.float() / 255)[None, :, None].expand(
            len(steps), -1, imagination.config.grid[0]
        )

    def jumps(pixels: Tensor) -> Tensor:
        return pixels.diff(dim=1).abs().mean((2, 3, 4))

    def imbalance(pixels: Tensor) -> Tensor:
        moved, half = jumps(pixels), pixels.shape[1] // 2
        return (moved[:, :half].mean(1) - moved[:, half:].mean(1)).abs()

    return {
        "single frame (contrast)": spread(lambda pixels: pixels.std((2, 3, 4)).mean(1)),
        "largest frame difference": spread(lambda pixels: jumps(pixels).amax(1)),
        "motion energy": spread(lambda pixels: jumps(pixels).mean(1)),
        "change of motion energy": spread(imbalance),
    }


def all_measures(imagination: Imagination, steps: Sequence[int], mask: str | None, seed: int) -> dict[str, Measure]:
    """The model first, then every baseline."""
    return {
        "model": model_energy(imagination, steps, mask),
        "untrained model": model_energy(imagination.untrained(seed), steps, mask),
        "copy of the last features": copied_features(imagination, steps),
        "copy of the last frame": pixel_energy(imagination, steps, is_moving=False),
        "linear extrapolation in pixels": pixel_energy(imagination, steps, is_moving=True),
        **frame_scores(imagination, steps),
    }


def measure_windows(windows: Tensor, measures: Mapping[str, Measure], batch: int) -> dict[str, Tensor]:
    """Energies [C, n, t] of windows [n, T, H, W, 3] by every measure, `batch` windows at a time."""
    with torch.no_grad():
        return {
            name: torch.cat([measure(part) for part in windows.split(batch)], 1) for name, measure in measures.items()
        }


def _by_step(energy: Tensor, t: int, seen: int) -> Tensor:
    """Means of the hidden steps of energies [n, (t - seen) * S] -> [n, t] with nan for the visible ones."""
    found = energy.new_full((len(energy), t), torch.nan)
    found[:, seen:] = energy.unflatten(1, (t - seen, -1)).mean(-1)
    return found
