"""Gauges of a world model: a probe of position, rollouts against standing still, walking through walls.

n clips, T frames, H steps of the model, R numbers of a summary, V of a state.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.loading.batch import DataConfig
from data.loading.loader import TrainLoader
from data.manifest import Manifest
from launch.planning.policies import Measure
from vjepa.pixels import normalise
from vjepa.world.frames import within_clip_share
from vjepa.world.model import WorldModel

HORIZONS = (1, 4, 8, 16)  # steps of the model
RIDGE = 1e-4
WALKERS, PUSHES = 200, (1, 2, 4)  # dots pushed at walls, and after how many steps of the model they are looked at


def load_clips(path: str, frames: int, stride: int, crop: int, clips: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clips uint8 [n, T, H, W, 3] of packed videos with their actions [n, T-1, A] and states [n, T, V]."""
    data = DataConfig(
        path=path, frames=frames, stride=stride, crop=crop, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0, workers=0,
        arrays={"actions": "steps", "states": "frames"},
    )  # fmt: skip
    clips = min(clips, Manifest.load(path).samples)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    batches = iter(TrainLoader(replace(data), min(clips, 50), 0))
    while sum(len(one[0]) for one in found) < clips:
        batch = next(batches)
        found.append((batch.clips, batch.arrays["actions"].flatten(2), batch.arrays["states"]))
    batches.close()
    video, actions, states = (torch.cat(parts)[:clips] for parts in zip(*found, strict=True))
    return video, actions, states


@torch.no_grad()
def encode_clips(world: WorldModel, video: Tensor, batch: int = 64) -> Tensor:
    """Latents [n, T, N, D] of clips uint8 [n, T, H, W, 3]."""
    return torch.cat([world.encode_clip(normalise(video[i : i + batch])) for i in range(0, len(video), batch)])


@torch.no_grad()
def fit_measure(world: WorldModel, video: Tensor, actions: Tensor, states: Tensor, stride: int) -> Measure:
    """A linear probe of states (ridge regression) and typical distances, from clips; a fifth of them scores the probe.

    Distances over a step of the model are divided by the actions it holds.
    """
    summaries = world.read(encode_clips(world, video))
    fitted = max(1, len(summaries) * 4 // 5)
    weights = _ridge(summaries[:fitted].flatten(0, 1), states[:fitted].flatten(0, 1))

    def probe(rows: Tensor) -> Tensor:
        values: Tensor = rows @ weights[:-1] + weights[-1]
        return values

    surprise = float("nan")
    if world.options.surprise:
        surprise = float(world.transition.expect_error(summaries[:, :-1], actions).median())
    rest = slice(fitted, None) if fitted < len(summaries) else slice(None)
    error = (probe(summaries[rest]) - states[rest]).square().sum()
    total = (states[rest] - states[rest].mean((0, 1))).square().sum()
    return Measure(
        probe,
        float(summaries.diff(dim=1).norm(dim=-1).median()) / stride,
        float(states.diff(dim=1).norm(dim=-1).median()) / stride,
        surprise,
        float(1 - error / total),
    )


def _ridge(rows: Tensor, values: Tensor) -> Tensor:
    """Weights [R + 1, V] of a linear regression with intercept."""
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    gram = rows.T @ rows + RIDGE * torch.eye(rows.shape[1], dtype=torch.float64)
    weights: Tensor = torch.linalg.solve(gram, rows.T @ values.double()).float()
    return weights


@torch.no_grad()
def score_rollouts(
    world: WorldModel, measure: Measure, video: Tensor, actions: Tensor, states: Tensor
) -> dict[str, Any]:
    """Within-clip share of the variance, and errors after 1, 4, 8, 16 steps: relative to standing still, and probed.

    `relative` is the squared latent error divided by that of a state that does not move, `position` the median distance
    of the probed position from the true one, `still` that of the first position.
    """
    latents = encode_clips(world, video)
    truth = world.read(latents)
    imagined = world.read(world.imagine(world.transition.begin(latents[:, 0]), actions))
    found: dict[str, Any] = {"within_clip": float(within_clip_share(truth)), "rollout": {}}
    for ahead in (steps for steps in HORIZONS if steps <= actions.shape[1]):
        error = (imagined[:, ahead - 1] - truth[:, ahead]).square().sum()
        still = (truth[:, 0] - truth[:, ahead]).square().sum()
        row = {"relative": float(error / still)}
        if measure.probe is not None:
            gap = (measure.probe(imagined[:, ahead - 1]) - states[:, ahead]).norm(dim=-1)
            row |= {
                "position": float(gap.median()),
                "still": float((states[:, 0] - states[:, ahead]).norm(dim=-1).median()),
            }
        found["rollout"][str(ahead)] = row
    return found


@torch.no_grad()
def walk_through_walls(
    world: WorldModel, measure: Measure, environment: Any, stride: int, seed: int
) -> dict[str, float]:
    """Share of imagined dots beyond a wall after being pushed at it for 1, 2 and 4 steps of the model; 0 is right."""
    assert measure.probe is not None
    frames, actions, walls, sides = environment.push_at_walls(WALKERS, seed)
    push = torch.from_numpy(actions).float().repeat(1, stride)[:, None].expand(-1, max(PUSHES), -1)
    paths = measure.probe(world.read(world.imagine(world.encode(torch.from_numpy(frames)), push)))
    beyond = (paths[..., 0].numpy() - walls[:, None]) * sides[:, None] < 0
    return {str(steps): float(np.mean(beyond[:, steps - 1])) for steps in PUSHES}
