"""FLOPs of the networks, counted from their shapes: matrix products, forward pass unless stated otherwise.

N tokens, D width, L blocks.
"""

import math

from vjepa.encoder import EncoderConfig
from vjepa.registry import ENCODERS


def encoder_flops(encoder: EncoderConfig, tokens: int, embedded: bool = False) -> float:
    """Forward pass of an encoder over `tokens`; with `embedded`, including its patch embedding.

    A custom encoder can define a classmethod `flops(config, tokens)`, embedding included; NaN without it.
    """
    kind = ENCODERS.find(encoder.kind)
    if hasattr(kind, "flops"):
        own: float = kind.flops(encoder, tokens)
        return own
    if not hasattr(kind, "layers"):
        return math.nan
    shape = encoder.shape
    blocks = transformer_flops(tokens, shape.width, shape.depth, shape.mlp_ratio)
    return blocks + embedding_flops(encoder, tokens) if embedded else blocks


def trained_encoder_flops(encoder: EncoderConfig, tokens: int) -> float:
    """Forward and backward pass of an encoder over `tokens`; the embedding counts twice: pixels need no gradient."""
    return 3 * encoder_flops(encoder, tokens) + 2 * embedding_flops(encoder, tokens)


def transformer_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """`depth` blocks over `tokens`: projections, MLP, and both attention products."""
    return depth * (2 * tokens * width * width * (4 + 2 * mlp_ratio) + 4 * tokens * tokens * width)


def embedding_flops(encoder: EncoderConfig, tokens: int) -> float:
    """The patch embedding."""
    return 2 * tokens * encoder.shape.width * 3 * encoder.tubelet * encoder.patch**2
