"""Train pixel decoders on a frozen model's features, and measure what its predictions look like.

Three decoders see the same clips for the same steps: one on targets, one on predictions, one on the targets of an
encoder with random weights. B clips, M hidden tokens, W width of a feature.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.files import write_json
from data.loading.loader import DataConfig, EvalLoader, Request
from launch.seeing.decoder import (
    DecoderConfig,
    Kind,
    PixelDecoder,
    build_decoder,
    cut_pixels,
    decoding_loss,
)
from launch.seeing.imagination import Imagination
from launch.seeing.measure import Closeness, cheap_guesses, measure_pixels, summarise
from launch.training.stored import load_stored
from vjepa.formats.native import read_safetensors, write_safetensors
from vjepa.masks import Masks
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise

TRAINED = ("targets", "predictions", "random")  # what a decoder is trained on
FOLDER, WEIGHTS, DESCRIPTION, RESULTS = "decode", "decoder.safetensors", "decoder.json", "results.json"


@dataclass(frozen=True)
class DecodeConfig:
    """How pixel decoders are trained and tested; `data` starts from the settings of the run."""

    data: DataConfig = field(default_factory=DataConfig)
    kind: Kind = "convolutions"  # or transformer
    width: int = 128  # channels inside the decoder
    depth: int = 3  # layers of the decoder
    gradient: float = 0.0  # weight of the squared error of differences of neighbouring pixels
    steps: int = 800  # for every decoder
    batch: int = 16  # clips per step
    lr: float = 2e-3  # at the start; a cosine to zero
    held_out: float = 0.2  # fraction of the clips that no decoder is trained on
    test_clips: int = 300  # at most this many held-out clips are measured
    seed: int = 0
    output: str | None = None  # folder; null: RUN/decode

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "test_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.held_out < 1 or self.lr <= 0 or self.gradient < 0:
            raise ValueError(
                f"need 0 < held_out < 1, lr > 0, gradient >= 0, got {self.held_out}, {self.lr}, {self.gradient}"
            )


@dataclass(frozen=True)
class Decoders:
    """Trained decoders by what they were trained on."""

    modules: Mapping[str, PixelDecoder]
    random_seed: int  # of the encoder with random weights

    @property
    def config(self) -> DecoderConfig:
        """The architecture that all share."""
        return self.modules["targets"].config


def data_settings(path: str, imagination: Imagination) -> list[str]:
    """Overrides that give `data` the settings of the run, or of the encoder if `path` is no run directory."""
    stored = Path(path) / "config.yaml"
    own = imagination.config
    if not stored.is_file():
        return [f"data.frames={own.frames}", f"data.crop={own.crop}"]
    data = load_stored(stored).data
    settings = [f"data.frames={data.frames}", f"data.crop={data.crop}", f"data.stride={data.stride}"]
    settings += [f"data.fps={data.fps}"] if data.fps is not None else []
    return settings + ([f"data.path={data.path}"] if data.path else [])


def split_samples(samples: int, held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Sample indices to train and to test on, drawn at random; ValueError if either would be empty."""
    order = np.random.default_rng(seed).permutation(samples).tolist()
    test = round(samples * held_out)
    if not 0 < test < samples:
        raise ValueError(f"data.path holds {samples} clips, too few to hold out a fraction of {held_out}")
    return order[test:], order[:test]


def fit_decoders(imagination: Imagination, config: DecodeConfig, loader: EvalLoader, train: list[int]) -> Decoders:
    """Train the decoders on the samples `train`; nothing else gets a gradient."""
    own = imagination.config
    shape = (own.grid, own.tubelet, own.patch)
    modules = {
        name: build_decoder(
            DecoderConfig(config.kind, config.width, config.depth, imagination.width, *shape), config.seed
        )
        for name in TRAINED
    }
    untrained = imagination.untrained(config.seed)
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01)
    names = list(imagination.masks)
    bar = tqdm(_draw_batches(loader, train, config), total=config.steps, unit="step", desc="decoders")
    for step, clips in enumerate(bar):
        for group in optimiser.param_groups:
            group["lr"] = 0.5 * config.lr * (1 + math.cos(math.pi * step / config.steps)) * min(1, (step + 1) / 20)
        name = names[step % len(names)]
        video = normalise(clips)
        mask = imagination.draw(name, len(clips), own.grid, step * config.batch)
        features = see_features(imagination, untrained, video, mask, name)
        truth = gather_tokens(cut_pixels(clips, modules["targets"].config), mask.target)
        losses = [
            decoding_loss(modules[on](features[on], mask.target), truth, modules[on].config, config.gradient)
            for on in TRAINED
        ]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        bar.set_postfix({on: f"{loss.item():.4f}" for on, loss in zip(TRAINED, losses, strict=True)})
    return Decoders({name: module.eval() for name, module in modules.items()}, config.seed)


def see_features(
    imagination: Imagination, untrained: Imagination, video: Tensor, mask: Masks, name: str
) -> dict[str, Tensor]:
    """Features [B, M, W] of the hidden tokens, by what a decoder is trained on."""
    return {
        "targets": gather_tokens(imagination.target(video), mask.target),
        "predictions": imagination.predict(video, mask, name),
        "random": gather_tokens(untrained.target(video), mask.target),
    }


def measure_decoders(
    imagination: Imagination, decoders: Decoders, config: DecodeConfig, loader: EvalLoader, test: list[int]
) -> dict[str, list[dict[str, Any]]]:
    """Rows of results for every kind of mask, on the samples `test`."""
    found: dict[str, dict[str, list[Closeness]]] = {name: {} for name in imagination.masks}
    untrained = imagination.untrained(decoders.random_seed)
    labels: list[int] = []
    starts = range(0, len(test), config.batch)
    for batch in loader.read(Request(test[start : start + config.batch]) for start in starts):
        if len(batch.keys) < 2:
            continue  # another clip is needed for comparison
        clips = batch.clips[:, 0]
        for name in imagination.masks:
            mask = imagination.draw(name, len(clips), imagination.config.grid, len(labels))
            truth = cut_pixels(clips, decoders.config)
            for row, pixels in guess(imagination, untrained, decoders, clips, mask, name).items():
                found[name].setdefault(row, []).append(measure_pixels(pixels, mask.target, truth, decoders.config))
        labels += batch.labels.tolist()
    classes = loader.manifest.classes
    return {
        name: summarise({row: _join(parts) for row, parts in rows.items()}, labels, classes)
        for name, rows in found.items()
    }


@torch.no_grad()
def guess(
    imagination: Imagination, untrained: Imagination, decoders: Decoders, clips: Tensor, mask: Masks, name: str
) -> dict[str, Tensor]:
    """Every guess at the hidden pixels of clips uint8 [B, T, H, W, 3]: [B, M, R] each."""
    video = normalise(clips)
    features = see_features(imagination, untrained, video, mask, name)
    other = imagination.predict(video.roll(1, 0), mask, name)
    on = decoders.modules
    return {
        "predictions, decoder on targets": on["targets"](features["predictions"], mask.target),
        "predictions, decoder on predictions": on["predictions"](features["predictions"], mask.target),
        "another clip's predictions, decoder on predictions": on["predictions"](other, mask.target),
        **cheap_guesses(cut_pixels(clips, decoders.config), mask.target, decoders.config),
        "targets, decoder on targets": on["targets"](features["targets"], mask.target),
        "random encoder's targets, own decoder": on["random"](features["random"], mask.target),
    }


def save_decoders(decoders: Decoders, config: DecodeConfig, source: str, folder: Path) -> None:
    """Write weights and description to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{name}.{key}": value.contiguous()
        for name, module in decoders.modules.items()
        for key, value in module.state_dict().items()
    }
    write_safetensors(weights, folder / WEIGHTS, {"format": "vjepa-decoder-1"})
    content = {"model": source, "decoder": decoders.config.describe(), "random_seed": decoders.random_seed}
    write_json(folder / DESCRIPTION, {**content, "fit": asdict(config)})


def load_decoders(folder: Path, imagination: Imagination) -> Decoders:
    """The decoders in a folder; ValueError if they were made for other features."""
    if not (folder / DESCRIPTION).is_file():
        raise FileNotFoundError(f"there are no decoders in {folder}; make them with `vjepa decode fit RUN`")
    stored = json.loads((folder / DESCRIPTION).read_text())
    config = DecoderConfig.from_stored(stored["decoder"])
    own = imagination.config
    if (config.features, config.grid, config.patch) != (imagination.width, own.grid, own.patch):
        raise ValueError(
            f"{folder} decodes features of width {config.features} on a grid {config.grid}, but those of "
            f"{imagination.source} have width {imagination.width} on {own.grid}; fit decoders for this model"
        )
    weights, modules = read_safetensors(folder / WEIGHTS), {}
    for name in TRAINED:
        module = PixelDecoder(config)
        module.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        )
        modules[name] = module.eval()
    return Decoders(modules, int(stored["random_seed"]))


def _draw_batches(loader: EvalLoader, train: list[int], config: DecodeConfig) -> Iterator[Tensor]:
    """`config.steps` batches of clips [B, T, H, W, 3] drawn from the samples `train`."""
    random = np.random.default_rng(config.seed + 1)

    def requests() -> Iterator[Request]:
        for _ in range(config.steps):
            yield Request([train[number] for number in random.integers(len(train), size=config.batch)])

    for batch in loader.read(requests()):
        if batch.keys:
            yield batch.clips[:, 0]


def _join(parts: list[Closeness]) -> Closeness:
    return Closeness(np.concatenate([part.psnr for part in parts]), np.concatenate([part.ssim for part in parts]))
