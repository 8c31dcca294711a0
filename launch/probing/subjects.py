"""What a probe examines: a video encoder of whatever format, or a timm image ViT that sees frame by frame."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from launch.exchange.encoders import Weights, read_origin
from probes.extractors import Extractor, FrameByFrame, FrozenEncoder
from vjepa.encoder import Encoder
from vjepa.formats.native import read_safetensors
from vjepa.formats.pickled import load_pickled
from vjepa.precision import Precision

TIMM = "timm:"


class Subject(Protocol):
    """An encoder to be probed, as far as a probe has to know it."""

    module: nn.Module
    source: str  # where its weights came from
    frames: int  # of the clips it was trained on; 0: it sees frames one by one
    crop: int  # pixels
    heads: int  # of its attention
    depth: int  # blocks

    def freeze(self, device: str, precision: Precision, layers: tuple[int, ...] = ()) -> Extractor:
        """What turns clips into its tokens."""
        ...

    def fresh(self, seed: int) -> "Subject":
        """One of the same shape with weights of a seed."""
        ...


class VideoSubject:
    """A video encoder."""

    def __init__(self, encoder: Encoder, source: str) -> None:
        self.module: nn.Module = encoder
        self.encoder, self.source = encoder, source
        self.frames, self.crop, self.heads = encoder.config.frames, encoder.config.crop, encoder.config.shape.heads
        self.depth = encoder.config.shape.depth

    def freeze(self, device: str, precision: Precision, layers: tuple[int, ...] = ()) -> Extractor:
        """See `Subject`."""
        return FrozenEncoder(self.encoder, device, precision, layers)

    def fresh(self, seed: int) -> Subject:
        """See `Subject`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VideoSubject(Encoder(self.encoder.config), f"{self.source}, weights of seed {seed}")


class ImageSubject:
    """A timm image ViT: `name`, its weights from `file` or, without one, of a seed; nothing is downloaded."""

    def __init__(self, name: str, file: str = "", seed: int = 0, crop: int = 0) -> None:
        self.name, self.asked = name, crop
        self.image = build_image_vit(name, file, seed, crop)
        self.module: nn.Module = self.image
        self.source = f"{TIMM}{name}:{file}" if file else f"{TIMM}{name}, weights of seed {seed}"
        patches, blocks = self.image.patch_embed, self.image.blocks
        self.frames, self.crop, self.heads = 0, int(patches.img_size[0]), int(blocks[0].attn.num_heads)
        self.depth = len(blocks)

    def freeze(self, device: str, precision: Precision, layers: tuple[int, ...] = ()) -> Extractor:
        """See `Subject`."""
        return FrameByFrame(self.image, self.name, device, precision, layers)

    def fresh(self, seed: int) -> Subject:
        """See `Subject`."""
        return ImageSubject(self.name, "", seed, self.asked)


def read_subject(path: str, weights: Weights = "", seed: int = 0, crop: int = 0) -> Subject:
    """The encoder at `path`, or `timm:NAME` (weights of a seed) or `timm:NAME:FILE`; crop: pixels, 0: as it says.

    Raises FileNotFoundError or ValueError where a single tensor has no place.
    """
    if path.startswith(TIMM):
        if weights:
            raise ValueError(f"weights={weights} is for runs and official checkpoints; {path} has one encoder")
        name, _, file = path.removeprefix(TIMM).partition(":")
        return ImageSubject(name, file, seed, crop)
    pretrained = read_origin(path, weights).pretrained
    return VideoSubject(pretrained.encoder.float(), pretrained.source)


def build_image_vit(name: str, file: str, seed: int, crop: int = 0) -> Any:
    """A timm VisionTransformer without its classifier; crop: for frames of so many pixels, weights of a seed only."""
    import timm  # takes seconds, and few probes need it

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"{TIMM}{name}: timm {timm.__version__} has no such model; there are {near}")
    sized = {"img_size": crop} if crop and not file else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            image: Any = timm.create_model(name, pretrained=False, num_classes=0, **sized)
        except TypeError as error:  # it knows no img_size
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
    """Tensors by name, those of a classifier left out."""
    content: dict[str, Any] = read_safetensors(file) if file.suffix == ".safetensors" else load_pickled(file)
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), dict):
            content = content[name]
    return {name: tensor for name, tensor in content.items() if not name.startswith("head.")}
