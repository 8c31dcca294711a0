"""The encoders that can be probed: a video encoder in any supported format, or a timm image ViT applied per frame."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from launch.exchange.encoders import Weights, read_origin
from probes.extractors import Extractor, FrameByFrame, FrozenEncoder
from vjepa.encoder import Encoder, build_encoder
from vjepa.formats.native import read_safetensors
from vjepa.formats.pickled import load_pickled
from vjepa.precision import Precision

TIMM = "timm:"


class Subject(Protocol):
    """An encoder to be probed."""

    module: nn.Module
    source: str  # origin of its weights
    frames: int  # per clip, as trained; 0: an image encoder
    crop: int  # pixels
    heads: int  # attention heads
    depth: int  # number of blocks

    def freeze(
        self, device: str, precision: Precision, layers: tuple[int, ...] = (), hierarchical: bool = False
    ) -> Extractor:
        """A frozen extractor that turns clips into tokens; `hierarchical`: with all levels of each joined."""
        ...

    def fresh(self, seed: int) -> "Subject":
        """An encoder of the same architecture, randomly initialised from a seed."""
        ...


class VideoSubject:
    """A video encoder."""

    def __init__(self, encoder: Encoder, source: str) -> None:
        self.module: nn.Module = encoder
        self.encoder, self.source = encoder, source
        self.frames, self.crop, self.heads = encoder.config.frames, encoder.config.crop, encoder.config.shape.heads
        self.depth = encoder.config.shape.depth

    def freeze(
        self, device: str, precision: Precision, layers: tuple[int, ...] = (), hierarchical: bool = False
    ) -> Extractor:
        """See `Subject`."""
        return FrozenEncoder(self.encoder, device, precision, layers, hierarchical)

    def fresh(self, seed: int) -> Subject:
        """See `Subject`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VideoSubject(build_encoder(self.encoder.config), f"{self.source}, weights of seed {seed}")


class ImageSubject:
    """A timm image ViT `name` with weights from `file`, or random weights from a seed; nothing is downloaded."""

    def __init__(self, name: str, file: str = "", seed: int = 0, crop: int = 0) -> None:
        self.name, self.requested_crop = name, crop
        self.image = build_image_vit(name, file, seed, crop)
        self.module: nn.Module = self.image
        self.source = f"{TIMM}{name}:{file}" if file else f"{TIMM}{name}, weights of seed {seed}"
        patches, blocks = self.image.patch_embed, self.image.blocks
        self.frames, self.crop, self.heads = 0, int(patches.img_size[0]), int(blocks[0].attn.num_heads)
        self.depth = len(blocks)

    def freeze(
        self, device: str, precision: Precision, layers: tuple[int, ...] = (), hierarchical: bool = False
    ) -> Extractor:
        """See `Subject`."""
        if hierarchical:
            raise ValueError(f"hierarchical=true is for V-JEPA 2.1 encoders, {self.name} is an image model")
        return FrameByFrame(self.image, self.name, device, precision, layers)

    def fresh(self, seed: int) -> Subject:
        """See `Subject`."""
        return ImageSubject(self.name, "", seed, self.requested_crop)


def read_subject(path: str, weights: Weights = "", seed: int = 0, crop: int = 0) -> Subject:
    """The encoder at `path`, or `timm:NAME` (random weights) or `timm:NAME:FILE`; crop in pixels, 0: the encoder's own.

    Loading is strict: raises FileNotFoundError for a missing file and ValueError for any tensor that does not match.
    """
    if path.startswith(TIMM):
        if weights:
            raise ValueError(f"weights={weights} is for runs and official checkpoints; {path} has only one encoder")
        name, _, file = path.removeprefix(TIMM).partition(":")
        return ImageSubject(name, file, seed, crop)
    pretrained = read_origin(path, weights).pretrained
    return VideoSubject(pretrained.encoder.float(), pretrained.source)


def build_image_vit(name: str, file: str, seed: int, crop: int = 0) -> Any:
    """A timm VisionTransformer without its classifier; crop: input size in pixels, only with random weights."""
    import timm  # local import: slow, and few probes need it

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"{TIMM}{name}: timm {timm.__version__} has no such model; there are {near}")
    sized = {"img_size": crop} if crop and not file else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            image: Any = timm.create_model(name, pretrained=False, num_classes=0, **sized)
        except TypeError as error:  # the model does not take img_size
            raise ValueError(f"{TIMM}{name} is not a vision transformer whose crop can be chosen: {error}") from error
    try:
        _ = image.patch_embed.img_size[0], image.blocks[0].attn.num_heads, image.forward_intermediates
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{TIMM}{name} is not a vision transformer with blocks: {error}") from error
    if file:
        weights = _read_weights(Path(file))
        try:
            image.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{file} does not hold the weights of {name}: {error}") from error
    return image


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by name, without those of the classifier."""
    content: dict[str, Any] = read_safetensors(file) if file.suffix == ".safetensors" else load_pickled(file)
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
    return {name: tensor for name, tensor in content.items() if not name.startswith("head.")}
