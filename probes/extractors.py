"""Frozen feature extractors: a video encoder, an image model applied frame by frame, pixels.

B clips, T frames, L layers of n tokens each, D width.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.encoder import Encoder, all_levels
from vjepa.encoder21 import join_levels
from vjepa.pixels import normalise
from vjepa.precision import Precision, choose_precision


class Extractor(Protocol):
    """Anything that maps clips uint8 [B, T, H, W, 3] to tokens [B, L*n, D] with fixed weights."""

    layers: int  # L; the tokens are concatenated layer by layer, in order

    def __call__(self, clips: Tensor) -> Tensor: ...

    def describe(self) -> dict[str, Any]:
        """Plain data that identifies the tokens; used as a cache key, so it must differ if the tokens may differ."""
        ...


class FrozenEncoder:
    """Features of a frozen encoder after the chosen blocks; `hierarchical`: all of its levels joined in each token."""

    def __init__(
        self,
        encoder: Encoder,
        device: str = "cpu",
        precision: Precision = "auto",
        layers: Sequence[int] = (),
        hierarchical: bool = False,
    ) -> None:
        if hierarchical and layers:
            raise ValueError(f"hierarchical features are those of all levels, give no layers; got {list(layers)}")
        self.hierarchical = hierarchical
        self.encoder = encoder.eval().requires_grad_(False).to(device)
        self.device, self.precision = device, choose_precision(precision, device)
        self.which = choose_layers(layers, encoder.config.shape.depth)
        self.layers = len(self.which)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> [B, L*n, D], or [B, n, levels * D] if hierarchical."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.hierarchical:
                return join_levels(self.encoder, normalise(clips.to(self.device)))
            return torch.cat(all_levels(self.encoder, normalise(clips.to(self.device)), self.which), 1)

    @cached_property
    def weights(self) -> str:
        """What tells them from others."""
        return hash_weights(self.encoder, str(self.encoder.config))

    def describe(self) -> dict[str, Any]:
        """See `Extractor`."""
        found = {"kind": "encoder", "weights": self.weights, "layers": self.which, "precision": self.precision}
        return {**found, "hierarchical": True} if self.hierarchical else found


class FrameByFrame:
    """A timm image ViT applied to each frame; the patch tokens of all frames are concatenated."""

    def __init__(
        self,
        image: nn.Module,
        name: str,
        device: str = "cpu",
        precision: Precision = "auto",
        layers: Sequence[int] = (),
    ) -> None:
        self.image = image.eval().requires_grad_(False).to(device)
        self.name, self.device, self.precision = name, device, choose_precision(precision, device)
        blocks: Any = image.blocks
        patches: Any = image.patch_embed
        self.which = choose_layers(layers, len(blocks))
        self.layers = len(self.which)
        settings: Any = image.pretrained_cfg
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.size = int(patches.img_size[0])  # pixels; frames of another size are resized

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> [B, L*n, D] with n = T*h*w."""
        frames = clips.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (self.mean, self.std))
        if frames.shape[-1] != self.size:
            frames = functional.interpolate(frames, size=(self.size, self.size), mode="bilinear", antialias=True)
        image: Any = self.image
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = image.forward_intermediates(
                (frames - mean) / std, indices=self.which, norm=True, output_fmt="NLC", intermediates_only=True
            )
        joined = [tokens.unflatten(0, (len(clips), -1)).flatten(1, 2) for tokens in found]
        return torch.cat(joined, 1)

    @cached_property
    def weights(self) -> str:
        """What tells them from others."""
        return hash_weights(self.image, f"{self.name} {self.mean} {self.std}")

    def describe(self) -> dict[str, Any]:
        """See `Extractor`."""
        return {"kind": "image", "weights": self.weights, "layers": self.which, "precision": self.precision}


class FirstFrame:
    """An extractor applied to the first frame repeated: shows what appearance alone, without motion, can predict."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor, self.layers = extractor, extractor.layers

    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> [B, L*n, D]."""
        return self.extractor(clips[:, :1].expand_as(clips))

    def describe(self) -> dict[str, Any]:
        """See `Extractor`."""
        return {"kind": "first frame", "of": self.extractor.describe()}


class Pixels:
    """The clip's downscaled pixels: a baseline without an encoder."""

    layers = 1

    def __init__(self, side: int = 16) -> None:
        self.side = side  # pixels

    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> one token [B, 1, T*side*side*3], values in [0, 1]."""
        frames = clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        small = functional.interpolate(frames, size=(self.side, self.side), mode="area")
        return small.reshape(len(clips), 1, -1)

    def describe(self) -> dict[str, Any]:
        """See `Extractor`."""
        return {"kind": "pixels", "side": self.side}


def choose_layers(layers: Sequence[int], depth: int) -> list[int]:
    """0-based block indices, ascending; negative ones count from the end, an empty list means the last."""
    found = sorted({layer % depth for layer in layers if -depth <= layer < depth})
    if len(found) < len(layers):
        raise ValueError(f"layers must be distinct and in [{-depth}, {depth - 1}], got {list(layers)}")
    return found or [depth - 1]


def hash_weights(module: nn.Module, context: str = "") -> str:
    """Hash of a module's weights, 16 hexadecimal digits; `context` is hashed before them."""
    state = hashlib.sha256(context.encode())
    for tensor in module.state_dict().values():
        state.update(tensor.detach().cpu().contiguous().numpy())
    return state.hexdigest()[:16]
