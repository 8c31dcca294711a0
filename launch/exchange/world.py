"""World models: loading one from a folder or a run, and exporting one."""

from pathlib import Path
from typing import Any

import torch

from launch.training.checkpoints import load_module
from vjepa.world.model import DESCRIPTION, WorldModel

TOLERANCE = 1e-5
STEPS = 4  # imagined in the comparison


def load_world(path: str) -> WorldModel:
    """The world model of a folder, a run or a checkpoint, in evaluation mode; ValueError if it is none."""
    return _load(path)[0]


def export_world(path: str, output: Path) -> float:
    """Write the world model of a run to `output`, load it again and imagine with both; returns the largest difference.

    Raises ValueError if `path` holds no world model, or if the difference is above the tolerance.
    """
    world, facts = _load(path)
    world.save(output, facts)
    again = WorldModel.load(output)
    generator, crop = torch.Generator().manual_seed(0), world.encoder.config.crop
    frames = torch.randint(0, 256, (2, crop, crop, 3), generator=generator, dtype=torch.uint8)
    actions = torch.randn(2, STEPS, world.options.action_values, generator=generator)
    with torch.no_grad():
        one, two = (each.imagine(each.encode(frames), actions) for each in (world, again))
    difference = float((one - two).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{output}: the reloaded world model differs by {difference:.1e}, allowed is {TOLERANCE:.0e}")
    return difference


def _load(path: str) -> tuple[WorldModel, dict[str, Any]]:
    """A world model, and facts about its training."""
    if (Path(path) / DESCRIPTION).is_file():
        return WorldModel.load(path), {"checkpoint": path}
    module = load_module(path)
    world = getattr(module.objective, "world", None)
    if not isinstance(world, WorldModel):
        raise ValueError(
            f"{path} is a run of objective={module.config.objective}, which has no world model; train one with "
            "objective=rollout"
        )
    return world.eval(), {"checkpoint": path, "steps": module.config.steps, "clips": module.position}
