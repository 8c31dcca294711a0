"""The world model: encode a frame, step with an action, imagine a sequence of them.

B states, T frames of a clip, H steps ahead, N cells of a state, D width, A numbers of an action, R of a summary.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.config import from_plain
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.formats.accounting import fill
from vjepa.formats.native import read_safetensors, write_safetensors
from vjepa.pixels import normalise
from vjepa.registry import DYNAMICS
from vjepa.world.frames import encode_frames

FORMAT = "vjepa-world-1"
WEIGHTS, DESCRIPTION = "world.safetensors", "world.json"


@dataclass(frozen=True)
class WorldOptions:
    """The parts of a world model besides its encoder."""

    predictor: str = field(default="mlp", metadata={"registry": DYNAMICS})  # a registered predictor of the next state
    width: int = 256  # inside the predictor
    depth: int = 2  # hidden layers or blocks of the predictor
    heads: int = 4  # attention heads (transformer)
    history: int = 8  # steps that the transformer remembers
    action_values: int = 8  # numbers between two frames of a clip: data.stride x those of one action
    readout: int = (
        0  # width of a linear read-out of a map, on which regularisers and energies work; 0: the state itself
    )
    normalise: bool = False  # LayerNorm over D without scale and shift after the encoder, as in V-JEPA 2-AC
    surprise: bool = False  # also learn to predict the model's own one-step error

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "history", "action_values"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")
        if self.readout < 0:
            raise ValueError(f"rollout.readout must be at least 0, got {self.readout}")


@dataclass(frozen=True)
class WorldState:
    """Where an imagined world is: the latent of a frame, and what the predictor remembers of earlier steps."""

    latent: Tensor  # [B, N, D]
    memory: Tensor  # [B, ...]

    def repeat(self, count: int) -> "WorldState":
        """Every state `count` times in a row, [B * count, ...]."""
        return WorldState(self.latent.repeat_interleave(count, 0), self.memory.repeat_interleave(count, 0))


class Transition(nn.Module):
    """Everything of a world model but its encoder: predictor, read-out, inverse dynamics, its own surprise."""

    def __init__(self, options: WorldOptions, encoder: EncoderConfig) -> None:
        super().__init__()
        self.options, self.grid = options, (encoder.grid[1], encoder.grid[2])
        cells = self.grid[0] * self.grid[1] * encoder.shape.width
        self.dynamics = DYNAMICS.find(options.predictor)(options, self.grid, encoder.shape.width)
        self.readout = nn.Linear(cells, options.readout) if options.readout else nn.Identity()
        self.summary_width = options.readout or cells
        self.inverse = two_layers(2 * self.summary_width, options.action_values)
        self.surprise = two_layers(self.summary_width + options.action_values, 1) if options.surprise else None

    def prepare(self, features: Tensor) -> Tensor:
        """What the predictor works on, from the encoder's features [..., N, D]."""
        return functional.layer_norm(features, features.shape[-1:]) if self.options.normalise else features

    def read(self, latents: Tensor) -> Tensor:
        """Summaries of states [..., N, D] -> [..., R]."""
        summary: Tensor = self.readout(latents.flatten(-2))
        return summary

    def begin(self, latent: Tensor) -> WorldState:
        """States [B, N, D] without a past."""
        return WorldState(latent, self.dynamics.begin(latent))

    def step(self, state: WorldState, action: Tensor) -> WorldState:
        """The states after actions [B, A]."""
        return WorldState(*self.dynamics(state.latent, state.memory, action))

    def imagine(self, state: WorldState, actions: Tensor) -> Tensor:
        """The states after each of the actions [B, H, A] -> [B, H, N, D]."""
        found = []
        for number in range(actions.shape[1]):
            state = self.step(state, actions[:, number])
            found.append(state.latent)
        return torch.stack(found, 1)

    def expect_error(self, summaries: Tensor, actions: Tensor) -> Tensor:
        """Log of the squared one-step error expected from summaries [..., R] with actions [..., A] -> [...]."""
        if self.surprise is None:
            raise ValueError("this world model has no estimate of its own error; train it with rollout.surprise=true")
        expected: Tensor = self.surprise(torch.cat([summaries, actions], -1)).squeeze(-1)
        return expected


class WorldModel(nn.Module):
    """An encoder of single frames and a transition.

    world = vjepa.WorldModel.load("runs/world/model")
    state = world.encode(frames)                 # uint8 [B, H, W, 3]
    latents = world.imagine(state, actions)      # actions [B, H, A] -> [B, H, N, D]
    """

    def __init__(self, encoder: Any, transition: Transition) -> None:
        super().__init__()
        self.encoder, self.transition = encoder, transition

    @property
    def options(self) -> WorldOptions:
        """The options of the transition."""
        return self.transition.options

    def encode(self, frames: Tensor) -> WorldState:
        """States of frames: uint8 [B, H, W, 3], or normalised floats [B, 3, H, W]."""
        video = frames.unsqueeze(2) if frames.is_floating_point() else normalise(frames.unsqueeze(1))
        return self.transition.begin(self.encode_clip(video)[:, 0])

    def encode_clip(self, video: Tensor) -> Tensor:
        """Latents of each frame of video [B, C, T, H, W], normalised -> [B, T, N, D]."""
        return self.transition.prepare(encode_frames(self.encoder, video))

    def step(self, state: WorldState, action: Tensor) -> WorldState:
        """The states after actions [B, A]."""
        return self.transition.step(state, action)

    def imagine(self, state: WorldState, actions: Tensor) -> Tensor:
        """The latents after each of the actions [B, H, A] -> [B, H, N, D]."""
        return self.transition.imagine(state, actions)

    def read(self, latents: Tensor) -> Tensor:
        """Summaries [..., R] of latents [..., N, D], on which distances are measured."""
        return self.transition.read(latents)

    def save(self, folder: str | Path, training: Mapping[str, Any] | None = None) -> Path:
        """Write `world.safetensors` and `world.json`; `training`: facts about the training, as plain data."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_safetensors(weights, folder / WEIGHTS, {"format": FORMAT})
        options = {entry.name: getattr(self.options, entry.name) for entry in fields(WorldOptions)}
        description = {
            "format": FORMAT,
            "encoder": self.encoder.config.describe(),
            "options": options,
            "training": dict(training or {}),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "WorldModel":
        """Load what `save` wrote, in evaluation mode, on the CPU.

        Raises FileNotFoundError if a file is missing, ValueError if the weights do not fit the description.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not a saved world model: {DESCRIPTION} is missing")
        description = json.loads(path.read_text())
        if description.get("format") != FORMAT:
            raise ValueError(f"{path}: format must be {FORMAT!r}, got {description.get('format')!r}")
        encoder = EncoderConfig.from_stored(description["encoder"])
        options: WorldOptions = from_plain(WorldOptions, description["options"])
        world = cls(build_encoder(encoder), Transition(options, encoder))
        fill(world, read_safetensors(Path(folder) / WEIGHTS), str(Path(folder) / WEIGHTS))
        return world.eval()


def two_layers(before: int, after: int, hidden: int = 128) -> nn.Sequential:
    """A small MLP."""
    return nn.Sequential(nn.Linear(before, hidden), nn.GELU(), nn.Linear(hidden, after))
