"""I-JEPA's masks: several target blocks and one context block with the targets cut out.

Every target is predicted by itself from the shared context. Blocks lie in the h x w plane and span all frames. As in
the public code, one random number gives a block's area and aspect, and no block reaches the last row and column.
B images, N = t*h*w tokens, R targets, K context tokens, M tokens of a target.
"""

import torch
from torch import Tensor

from vjepa.draws import ClipRandom
from vjepa.masks import MaskConfig, Masks, in_order, mask, pick_first
from vjepa.positions import Grid
from vjepa.registry import MASKS

PLACEMENTS = 4  # of the context block; the first that leaves enough tokens is used
# Numbers under masks.NAME.options: area of the context block as a fraction of the plane; a context must have more than
# `least` cells; reach 1: blocks may reach the last row and column.
OPTIONS = {"context_low": 0.85, "context_high": 1.0, "least": 10.0, "reach": 0.0}


def divide_multiblock(config: MaskConfig, grid: Grid, random: ClipRandom) -> tuple[Tensor, Tensor]:
    """The context [B, N] and the R = num_blocks targets [B, R, N], bool (I-JEPA, section 3).

    All blocks of a batch have one size. If too little context is left, the last targets are not cut out, one after the
    other, as in the public code.
    """
    t, h, w = grid
    options = read_options(config)
    rows, columns = (h, w) if options["reach"] else (h - 1, w - 1)
    if min(rows, columns) < 1:
        raise ValueError(f"a multiblock mask needs at least 2x2 patches, got {h}x{w}")
    sizes = random.uniform(2)[:1]  # one size a batch: for the targets, and for the context
    share, ratio = (
        _between(config.spatial_scale, sizes[:, :1]),
        _between((1 / config.aspect[1], 1 / config.aspect[0]), sizes[:, :1]),
    )
    targets = _place((h, w), (rows, columns), share, ratio, random.uniform(config.num_blocks, 2))
    share = _between((options["context_low"], options["context_high"]), sizes[:, 1:])
    blocks = _place((h, w), (rows, columns), share, torch.ones_like(share), random.uniform(PLACEMENTS, 2))
    if (cells := int(blocks[0, 0].sum())) <= options["least"]:
        raise ValueError(
            f"a multiblock mask on {h}x{w} patches has a context block of {cells} cells, but needs more than "
            f"masks.options.least={options['least']:g}; lower that, or use a larger data.crop"
        )
    left = (blocks & ~targets.any(1, keepdim=True)).sum(2) > options["least"]
    images = torch.arange(len(blocks), device=blocks.device)
    block = blocks[images, left.int().argmax(1)]
    cut = (
        torch.cat([torch.zeros_like(targets[:, :1]), targets], 1).int().cumsum(1).bool()
    )  # by the first 0 .. R targets
    visible = block.unsqueeze(1) & ~cut
    enough = (visible.sum(2) > options["least"]).int() * torch.arange(cut.shape[1], device=cut.device)
    context = visible[images, enough.argmax(1)]
    return context.repeat(1, t), targets.repeat(1, 1, t)


@mask("multiblock", divide=divide_multiblock)
def hide_multiblock(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """All that is not context -> [B, N] bool, for objectives that predict it as a whole."""
    return ~divide_multiblock(config, grid, random)[0]


def draw_parts(config: MaskConfig, grid: Grid, clips: Tensor, seed: int, kind: int = 0, name: str = "") -> list[Masks]:
    """The R targets of each image, with the context that they share; arguments as for `vjepa.masks.draw_masks`.

    Contexts and targets are truncated to the shortest of the batch. Raises ValueError for a mask without targets of its
    own, or a grid too small for its context.
    """
    divide = MASKS.find(config.kind).divide
    if divide is None:
        raise ValueError(f"masks.{name}.kind={config.kind} has no separate targets; take multiblock")
    random = ClipRandom(seed * 1009 + kind, clips)
    context, targets = divide(config, grid, random)
    keep, predict = int(context.sum(1).min()), int(targets.sum(2).min())
    keep = keep if config.max_keep is None else min(keep, config.max_keep)
    order = random.uniform(context.shape[1]) if config.drop == "random" else in_order(context)
    seen = pick_first(order + ~context, keep)
    return [Masks(seen, pick_first(order + ~target, predict)) for target in targets.unbind(1)]


def read_options(config: MaskConfig) -> dict[str, float]:
    """The mask's numbers, with defaults; ValueError for a name that there is not, or an impossible value."""
    unknown = config.options.keys() - OPTIONS.keys()
    if unknown:
        raise ValueError(
            f"masks.options of a multiblock mask are {', '.join(OPTIONS)}; there is no {', '.join(sorted(unknown))}"
        )
    found = {**OPTIONS, **config.options}
    if not 0 < found["context_low"] <= found["context_high"] <= 1 or found["least"] < 0:
        raise ValueError(
            "masks.options of a multiblock mask must satisfy 0 < context_low <= context_high <= 1 and least >= 0, got "
            f"{config.options}"
        )
    return found


def _between(limits: tuple[float, float], drawn: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * drawn


def _place(plane: tuple[int, int], within: tuple[int, int], share: Tensor, ratio: Tensor, where: Tensor) -> Tensor:
    """Boxes in the plane h x w, inside its first rows and columns -> [B, R, h*w] bool.

    share, ratio [1, 1]: area as a fraction of the plane, height / width; where [B, R, 2] in [0, 1): top and left.
    """
    (h, w), (rows, columns) = plane, within
    area = (h * w * share).floor()
    height = (area * ratio).sqrt().round().clamp(1, rows)
    width = (area / ratio).sqrt().round().clamp(1, columns)
    top, left = where.unbind(2)
    top = (top * (rows - height + 1)).floor().unsqueeze(2)
    left = (left * (columns - width + 1)).floor().unsqueeze(2)
    y, x = torch.arange(h, device=where.device), torch.arange(w, device=where.device)
    in_rows = (y >= top) & (y < top + height.unsqueeze(2))
    in_columns = (x >= left) & (x < left + width.unsqueeze(2))
    return (in_rows.unsqueeze(3) & in_columns.unsqueeze(2)).flatten(2)
