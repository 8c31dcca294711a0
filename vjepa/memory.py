"""Memory of a training step, counted from the shapes of the networks: what the backward pass needs, in bytes.

Counted for eager execution with fused attention; compiled blocks keep less. T tokens of a clip, D width, H hidden width
of the MLP. Weights are fp32; under bf16 autocast products are bf16, while norms take and keep fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vjepa.blocks import Kept
from vjepa.encoder import EncoderConfig

FULL = 4  # bytes of a number in fp32


@dataclass(frozen=True)
class Activations:
    """Bytes on a device beside weights, gradients and optimiser state."""

    saved: int = 0  # kept by the forward pass for the backward pass
    results: int = 0  # clips, targets and predictions, which live until the end of the step
    passing: int = 0  # the most that exists for a moment: one block's gradients, or its recomputed activations

    def __add__(self, other: "Activations") -> "Activations":
        return Activations(self.saved + other.saved, self.results + other.results, max(self.passing, other.passing))


@dataclass(frozen=True)
class Transformer:
    """Equal blocks over the segments of a clip, each of which attends only to itself."""

    width: int
    hidden: int
    heads: int
    depth: int
    segments: Sequence[int]  # tokens per clip
    rotary: bool
    product: int  # bytes of a number in a product: 2 for bf16, 4 for fp32
    stream: int  # bytes of a number between blocks

    @property
    def tokens(self) -> int:
        """Tokens of a clip in all segments."""
        return sum(self.segments)

    def block(self) -> int:
        """Bytes per clip that a block keeps when nothing is recomputed."""
        per_token = (
            2 * norm_bytes(self.width)  # input, mean and scale of both norms
            + 2 * self.width * self.product  # input of qkv and of the MLP
            + (3 + 2 * self.rotary) * self.width * self.product  # qkv, and the rotated queries and keys
            + self.attention()
            + (len(self.segments) > 1) * self.width * self.product  # the segments, joined for the projection
            + 2 * self.hidden * self.product  # before and after the GELU
        )
        return self.tokens * per_token

    def attention(self) -> int:
        """Bytes per token of the result of attention: values, and the logarithm of the normaliser."""
        return self.width * self.product + self.heads * FULL

    def weights(self) -> int:
        """Bytes of a block's weights in bf16, which autocast makes and the backward pass needs."""
        return 0 if self.product == FULL else self.product * (4 * self.width**2 + 2 * self.width * self.hidden)

    def rotations(self) -> int:
        """Bytes per clip of the cosines and sines, which all blocks share."""
        return self.rotary * 2 * self.tokens * (self.width // self.heads) * self.product

    def kept_block(self, kept: Kept) -> int:
        """Bytes per clip that a block keeps when its activations are recomputed: its input and what `kept` says."""
        per_token = self.width * self.stream
        if kept == "products":
            per_token += (5 * self.width + self.hidden) * self.product + self.attention()
        return self.tokens * per_token

    def count(self, clips: int, kept: Kept | None) -> Activations:
        """All blocks for a batch."""
        whole = clips * self.block() + self.weights()
        gradients = clips * self.tokens * (2 * self.hidden * self.product + 2 * self.width * FULL)
        shared = clips * self.rotations()
        if kept is None:
            return Activations(self.depth * whole + shared, 0, gradients)
        return Activations(self.depth * clips * self.kept_block(kept) + shared, 0, gradients + whole)

    def forward_only(self, clips: int) -> Activations:
        """Without a gradient only the block being computed holds memory."""
        per_token = self.width * (FULL + self.stream + self.product) + 2 * self.hidden * self.product
        return Activations(0, 0, clips * self.tokens * per_token + self.weights())


def norm_bytes(width: int) -> int:
    """Bytes per token that a LayerNorm keeps: its input in fp32, mean and scale."""
    return (width + 2) * FULL


def encoder_blocks(encoder: EncoderConfig, segments: Sequence[int], product: int) -> Transformer:
    """The blocks of an encoder over these segments."""
    shape, rotary = encoder.shape, encoder.positions == "rotary"
    hidden = round(shape.width * shape.mlp_ratio)
    stream = product if rotary else FULL  # sin-cos tables are added in fp32
    return Transformer(shape.width, hidden, shape.heads, shape.depth, segments, rotary, product, stream)


def trained_encoder_bytes(
    encoder: EncoderConfig, segments: Sequence[int], clips: int, product: int, levels: int = 1
) -> Activations:
    """An encoder that is trained: blocks, patches, and the norms of its levels."""
    blocks, tokens = encoder_blocks(encoder, segments, product), sum(segments)
    values = 3 * encoder.tubelet * encoder.patch**2
    around = tokens * (values * product + levels * norm_bytes(encoder.shape.width))
    features = levels * tokens * encoder.shape.width * FULL
    return blocks.count(clips, encoder.kept) + Activations(clips * around, clips * features)


def target_encoder_bytes(encoder: EncoderConfig, clips: int, product: int, levels: int = 1) -> Activations:
    """A target encoder over all tokens of the clips, and its targets in fp32."""
    t, h, w = encoder.grid
    targets = levels * t * h * w * encoder.shape.width * FULL
    return encoder_blocks(encoder, (t * h * w,), product).forward_only(clips) + Activations(0, clips * targets)


def video_bytes(encoder: EncoderConfig, clips: int) -> Activations:
    """The clips, normalised, in fp32."""
    return Activations(0, clips * 3 * encoder.frames * encoder.crop**2 * FULL)
