"""Memory that a training step needs on each device, from the config alone: parts, total, and whether it fits a card.

The parts that follow from shapes are counted (vjepa/memory.py); RESERVE and FRAGMENTS are assumptions until
`vjepa bench gpu` has measured them.
"""

from dataclasses import dataclass, fields, replace

import torch

from data.loading.batch import DataConfig
from data.loading.groups import IMAGES, Portion, divide
from launch.training.config import TrainConfig
from vjepa.config import JepaConfig
from vjepa.jepa import JEPA
from vjepa.memory import Activations

GIB = 2**30
CARDS = {  # GiB that a program can allocate, as the driver reports them
    "l40s": 44.4, "a100-40": 39.4, "a100": 79.1, "h100": 79.1, "h200": 139.7, "b200": 178.3,
}  # fmt: skip
RESERVE = 3.0  # GiB: the CUDA context, workspaces of cuBLAS, buffers of NCCL
FRAGMENTS = 0.05  # of the rest: blocks that the allocator cannot use
AHEAD = 3  # uint8 batches on the device: the one of the step, and two read ahead


@dataclass(frozen=True)
class Estimate:
    """GiB per device in fields whose names say what for; `clips` and `batches` say for which step."""

    weights: float  # fp32, of all networks
    gradients: float
    moments: float  # Adam's
    saved: float  # activations for the backward pass
    results: float  # clips, targets and predictions
    passing: float  # the most that exists for a moment
    input: float  # batches of uint8 clips
    reserve: float  # assumed: context, workspaces, fragments
    clips: int = 0  # per device and forward pass
    ranks: int = 1

    @property
    def total(self) -> float:
        """GiB in all."""
        return float(sum(getattr(self, name) for name in self.parts()))

    @classmethod
    def parts(cls) -> list[str]:
        """The names of the parts."""
        return [entry.name for entry in fields(cls) if entry.name not in ("clips", "ranks")]

    def describe(self) -> str:
        """One line with the total and the parts."""
        parts = ", ".join(f"{name} {getattr(self, name):.1f}" for name in self.parts())
        return (
            f"memory per device, estimated: {self.total:.1f} GiB for {self.clips} clips on each of {self.ranks} "
            f"devices ({parts})"
        )


def estimate(config: TrainConfig, clips: int, ranks: int = 1) -> Estimate | None:
    """The memory of each of `ranks` devices with `clips` samples per forward pass; the fullest device counts.

    None for an objective or an encoder whose activations are not known. ValueError if images and clips cannot be
    divided like this.
    """
    # With precision=auto the device decides; bf16 is what a GPU does.
    product, jepa = 4 if config.run.precision == "fp32" else 2, _with_teacher(config.jepa)
    groups = [divide(config.data.images, clips, rank, ranks) for rank in {0, ranks - 1}]
    held = [_held(jepa, config.data, portions, product) for portions in groups]
    known = [one for one in held if one is not None]
    if len(known) < len(held):
        return None
    activations = max(known, key=lambda one: one.saved + one.results + one.passing)
    weights, trained = count_parameters(jepa)
    data = config.data
    pixels = AHEAD * clips * data.frames * data.crop**2 * 3
    parts = {
        "weights": 4 * weights, "gradients": 4 * trained, "moments": 8 * trained, "saved": activations.saved,
        "results": activations.results, "passing": activations.passing, "input": pixels,
    }  # fmt: skip
    sizes = {name: size / GIB for name, size in parts.items()}
    return Estimate(**sizes, reserve=RESERVE + FRAGMENTS * sum(sizes.values()), clips=clips, ranks=ranks)


def count_parameters(config: JepaConfig) -> tuple[int, int]:
    """Number of parameters of all networks, and of those that are trained."""
    with torch.device("meta"):
        model = JEPA(_with_teacher(config))
    parameters = list(model.parameters())
    return sum(one.numel() for one in parameters), sum(one.numel() for one in parameters if one.requires_grad)


def check_card(found: Estimate, card: str) -> None:
    """Raise ValueError if the step does not fit a card of this name, or if there is no such card."""
    if card not in CARDS:
        raise ValueError(f"--card must be one of {', '.join(CARDS)}, got {card}")
    if found.total > CARDS[card]:
        raise ValueError(
            f"{found.describe()}, but a card {card} has {CARDS[card]:.1f} GiB; set encoder.checkpoint_activations=true "
            "(with encoder.checkpoint_keeps=products, less is recomputed), give a smaller run.batch_per_device, or ask "
            "for more GPUs"
        )


def describe_memory(config: TrainConfig, clips: int, ranks: int) -> str:
    """The estimate in words, also where there is none, with the cards of 80 GB that it would not fit."""
    try:
        found = estimate(config, clips, ranks)
    except ValueError as error:
        return f"memory per device: not estimated, {error}"
    if found is None:
        return (
            f"memory per device: not estimated for objective={config.objective} with encoder.kind={config.encoder.kind}"
        )
    small = [name for name, size in CARDS.items() if found.total > size]
    return found.describe() + (f"; too much for {', '.join(small)}" if small else "")


def _with_teacher(config: JepaConfig) -> JepaConfig:
    """The config with the architecture of a frozen teacher; it is in a file, which need not be here: the largest."""
    if not config.teacher.weights or config.frozen is not None:
        return config
    largest = replace(config.encoder, size="gigantic", width=None, depth=None, heads=None, mlp_ratio=None)
    return replace(config, frozen=largest)


def _held(config: JepaConfig, data: DataConfig, portions: tuple[Portion, ...], product: int) -> Activations | None:
    """Activations of a rank that reads these groups."""
    total = Activations()
    for portion in portions:
        if not portion.count:
            continue
        of_group = _of_images(config, data) if portion.name == IMAGES else config
        found: Activations | None = of_group.activations(portion.count, product)
        if found is None:
            return None
        total += found
    return total


def _of_images(config: JepaConfig, data: DataConfig) -> JepaConfig:
    """The config with which images are encoded."""
    assert data.images is not None
    encoder = replace(config.encoder, frames=1, crop=data.images.crop or data.crop)
    return replace(config, encoder=encoder, masks=config.image_masks or config.masks)
