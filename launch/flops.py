"""How much arithmetic a training step is, counted from its shapes, and how much a device can do, measured."""

import math
from collections.abc import Callable

import torch

from launch.meter import time_in_turn
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JepaConfig
from vjepa.masks import draw_masks
from vjepa.objectives.views import ViewsConfig
from vjepa.positions import Grid


def clip_flops(config: JepaConfig, clips: int) -> float:
    """Floating-point operations of the matrix products of one training step for one clip of a batch of `clips`.

    Teacher forward over all tokens; context encoder and predictor forward and backward for each kind of mask.
    With objective=views: encoder and projection, forward and backward, for each view.
    Recomputed activations do not count: they are a cost, not work done.
    """
    if config.objective == "views":
        return sum(view_flops(config, grid) for grid in view_grids(config.views, config.encoder))
    encoder, predictor, grid = config.encoder, config.predictor, config.encoder.grid
    teacher, total = config.frozen or encoder, 0.0
    if config.teacher.source != "pixels":
        tokens = math.prod(teacher.grid)
        total += encoder_flops(teacher, tokens) + embedding_flops(teacher, tokens)
    levels = config.dense.levels if config.objective == "dense" else 1
    pixels = 3 * encoder.tubelet * encoder.patch**2
    wanted = pixels if config.teacher.source == "pixels" else levels * teacher.width  # width of a target
    for kind, mask in enumerate(config.masks.values()):
        masks = draw_masks(mask, grid, torch.arange(clips), config.seed, kind)
        context, target = masks.context.shape[1], masks.target.shape[1]
        asked = context + target if config.objective == "dense" else target
        guessed = transformer_flops(context + target, predictor.width, predictor.depth, predictor.mlp_ratio)
        entered = predictor.width if levels == 1 else levels * encoder.width + predictor.width  # one layer, or two
        mapped = 2 * (context * encoder.width * entered + asked * wanted * predictor.width)
        total += 3 * (encoder_flops(encoder, context) + guessed + mapped)
        total += 2 * embedding_flops(encoder, context)  # pixels need no gradient
    return total


def view_flops(config: JepaConfig, grid: Grid) -> float:
    """One view of a clip, forward and backward: the encoder over the kept tokens, the projection of their mean."""
    encoder, width = config.encoder, config.views.projection
    kept = round(math.prod(grid) * config.views.keep)
    projected = 2 * (encoder.width * width + 2 * width**2)
    return 3 * (encoder_flops(encoder, kept) + projected) + 2 * embedding_flops(encoder, kept)


def view_grids(views: ViewsConfig, encoder: EncoderConfig) -> list[Grid]:
    """Token grid of every view of a clip, as `draw_view` cuts them."""
    side = views.narrow_crop or max(encoder.patch, encoder.crop // 2 // encoder.patch * encoder.patch)
    narrow = (encoder.grid[0], side // encoder.patch, side // encoder.patch)
    return [encoder.grid] * views.wide + [narrow] * views.narrow


def encoder_flops(encoder: EncoderConfig, tokens: int) -> float:
    """Forward pass of an encoder's blocks."""
    return transformer_flops(tokens, encoder.width, encoder.depth, encoder.mlp_ratio)


def transformer_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """Forward pass of `depth` blocks over `tokens`: projections, MLP, and both products of attention."""
    return depth * (2 * tokens * width * width * (4 + 2 * mlp_ratio) + 4 * tokens * tokens * width)


def embedding_flops(encoder: EncoderConfig, tokens: int) -> float:
    """Forward pass of the patch embedding."""
    return 2 * tokens * encoder.width * 3 * encoder.tubelet * encoder.patch**2


def matrix_rate(dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """Floating-point operations a second of a large matrix product on this device, measured now.

    The run's random numbers stay as they are.
    """
    product, operations = matrix_product(dtype, device)
    return operations / time_in_turn([product], repeats, 3, device)[0]


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], int]:
    """A large matrix product that can be done again and again, and its floating-point operations."""
    side = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return lambda: torch.mm(left, right), 2 * side**3
