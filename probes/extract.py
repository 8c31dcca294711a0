"""One pass of frozen extractors over a data set: every sample is decoded once, shard by shard.

A feature shard holds consecutive samples with about 256 MB of pixels, fewer if the set is small, so that many processes
can share the work. It holds at least 16 samples as long as their pixels fit into 1 GB, because every shard is a mapped
file and a process can map only some tens of thousands. B clips or samples, V views of S temporal segments, L layers, N
tokens per view, D width.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from data.loading.loader import Batch, EvalLoader, Request, Tally, Views
from probes.extractors import Extractor
from probes.features import Features, Stored, TokenSource

SHARD_PIXELS = 256 * 2**20  # target size of a feature shard, in bytes of input pixels
MAX_SHARD_PIXELS = 2**30  # bytes of pixels beyond which a shard is not enlarged to reach MIN_SAMPLES
MIN_SAMPLES, MAX_SAMPLES = 16, 256  # per shard
MIN_SHARDS = 64  # of a set with at least this many samples

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Order:
    """An extraction job: the features of the loader's data set for every extractor, by name."""

    extractors: Mapping[str, Extractor]
    loader: EvalLoader
    clips: int = 32  # encoded per forward pass
    tokens: bool = True  # False: keep only the token means, which is all that linear and k-NN heads need
    measured: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)  # see `shape`

    @property
    def streamed(self) -> int:
        """Samples per read when one view of each is needed."""
        return max(1, self.clips // self.loader.views.segments)

    def ranges(self) -> list[range]:
        """Sample indices of each feature shard."""
        data, views = self.loader.config, self.loader.views
        pixels = views.count * views.segments * data.frames * data.crop**2 * 3
        samples = self.loader.manifest.samples
        many = max(SHARD_PIXELS // pixels, min(MIN_SAMPLES, MAX_SHARD_PIXELS // pixels))
        step = max(1, min(MAX_SAMPLES, many, -(-samples // MIN_SHARDS)))
        return [range(start, min(start + step, samples)) for start in range(0, samples, step)]

    def shape(self, name: str) -> tuple[int, int]:
        """(N, D) of an extractor's output for one view, measured on a black clip."""
        if name not in self.measured:
            data = self.loader.config
            clip = torch.zeros(1, data.frames, data.crop, data.crop, 3, dtype=torch.uint8)
            tokens = self.extractors[name](clip)
            self.measured[name] = tokens.shape[1] * self.loader.views.segments, tokens.shape[2]
        return self.measured[name]


@dataclass
class Block:
    """Features of the readable samples of one shard."""

    tokens: Tensor | None  # bf16 [B, V, N, D]
    pooled: Tensor  # float32 [B, V, D]
    labels: Tensor  # int64 [B]
    places: Tensor  # sample indices, int64 [B]
    keys: list[str]
    missing: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One shard to compute."""

    number: int
    places: range  # sample indices
    names: tuple[str, ...]  # of the extractors


def make_blocks(
    order: Order, claims: Iterable[Claim], progress: Progress | None = None
) -> Iterator[tuple[Claim, dict[str, Block]]]:
    """Compute the claimed shards in order; claims are taken slightly ahead of the work, to keep the loader busy."""
    pending: list[tuple[Claim, int, bool]] = []  # batches being read: claim, number of samples, is it the shard's last?

    def request() -> Iterator[Request]:
        for claim in claims:
            for start in range(0, len(claim.places), order.loader.batch):
                places = claim.places[start : start + order.loader.batch]
                pending.append((claim, len(places), places[-1] == claim.places[-1]))
                yield Request(places)

    parts: dict[str, list[Block]] = {}
    for batch in order.loader.read(request()):
        claim, samples, is_last = pending.pop(0)
        for name in claim.names:
            parts.setdefault(name, []).append(_encode_batch(order, name, batch))
        if progress is not None:
            progress(samples)
        if is_last:
            yield claim, {name: _join(blocks) for name, blocks in parts.items()}
            parts = {}


def extract(order: Order, progress: Progress | None = None) -> dict[str, Features]:
    """Features of a whole set in memory, in one pass."""
    features = {}
    for name, blocks in _make_all(order, progress).items():
        tokens = [block.tokens for block in blocks if block.tokens is not None]
        features[name] = assemble(blocks, Stored(tokens, order.shape(name)), order, name)
    return features


def stream(order: Order, progress: Progress | None = None, means: bool = True) -> dict[str, Features]:
    """Features with only the token means in memory: reading tokens decodes and encodes the clips again.

    means: False if the means are not needed either; then only those of the first random view are computed.
    """
    loader, views = order.loader, order.loader.views
    if views.augmented and not means:
        loader = EvalLoader(loader.config, order.streamed, replace(views, augmented=1))
    first = replace(order, loader=loader, tokens=False)
    features = {}
    for name, blocks in _make_all(first, progress).items():
        source = Streamed(order, name, torch.cat([block.places for block in blocks]))
        features[name] = assemble(blocks, source, order, name)
    return features


def assemble(blocks: Sequence[Block], source: TokenSource, order: Order, name: str) -> Features:
    """Join all shards of a set; ValueError if too many samples are missing or a key occurs twice."""
    loader = order.loader
    keys = [key for block in blocks for key in block.keys]
    missing: dict[str, list[str]] = {}
    for block in blocks:
        for reason, names in block.missing.items():
            missing.setdefault(reason, []).extend(names)
    tally = Tally(loader.config.max_bad_fraction)
    tally.count(len(keys), missing)
    tally.check()
    if not keys:
        raise ValueError(f"no sample of {loader.config.path} was readable; check it with `vjepa inspect`")
    twice, times = Counter(keys).most_common(1)[0]
    if times > 1:
        raise ValueError(f"{loader.config.path}: sample {twice} occurs twice; pack the set again")
    labels, pooled = torch.cat([block.labels for block in blocks]), torch.cat([block.pooled for block in blocks])
    description, segments = json.dumps(describe(order, name), sort_keys=True), loader.views.segments
    clip_tokens = source.shape[0] // segments
    return Features(source, labels, keys, pooled, missing, loader.views.count, clip_tokens, description)


def describe(order: Order, name: str) -> dict[str, Any]:
    """Everything that determines the features of an order, as plain data."""
    loader = order.loader
    data, views = loader.config, asdict(loader.views)
    for unused in ("crops",) if loader.views.augmented else ("scale", "aspect", "flip", "seed"):
        del views[unused]
    usual = Views()
    for added in ("augment", "spatial", "temporal"):  # absent at their defaults, so that earlier caches stay valid
        if views[added] == getattr(usual, added):
            del views[added]
    rate = {"fps": data.fps} if data.fps else {"stride": data.stride}
    return {
        "extractor": order.extractors[name].describe(),
        "data": loader.manifest.fingerprint(),
        "clip": {"frames": data.frames, "crop": data.crop, **rate},
        "views": views,
        "tokens": order.tokens,
        "shard": len(order.ranges()[0]),
    }


class Streamed:
    """Tokens computed on demand."""

    def __init__(self, order: Order, name: str, places: Tensor) -> None:
        self.order, self.name, self.places = order, name, places  # places int64 [n]: sample index of each row
        self.shape = order.shape(name)

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        """See `TokenSource`."""
        return next(self.walk([(rows, views)]))

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """See `TokenSource`; the next request is decoded in the background."""
        loader, sizes = self.order.loader, list[int]()

        def request() -> Iterator[Request]:
            for rows, views in places:
                wanted, which = self.places[rows].tolist(), views.tolist()
                sizes.append(len(wanted))
                for start in range(0, len(wanted), self.order.streamed):
                    part = slice(start, start + self.order.streamed)
                    yield Request(wanted[part], which[part])

        found: list[Tensor] = []
        for batch in loader.read(request()):
            if batch.skipped:
                reason, names = next(iter(batch.skipped.items()))
                raise ValueError(f"{names[0]} of {loader.config.path} was readable before and is not now: {reason}")
            found.append(self._encode(batch.clips))
            if sum(map(len, found)) == sizes[0]:
                sizes.pop(0)
                yield torch.cat(found)
                found = []

    def _encode(self, clips: Tensor) -> Tensor:
        return encode(self.order, self.name, clips, views=1)[0][:, 0]


def encode(order: Order, name: str, clips: Tensor, views: int) -> tuple[Tensor, Tensor]:
    """clips uint8 [B, V*S, T, H, W, 3] -> tokens bf16 [B, V, N, D] and their means float32 [B, V, D].

    A view's tokens are those of all its segments, layer by layer; the means are over the last layer.
    """
    extractor, segments = order.extractors[name], order.loader.views.segments
    few = clips.flatten(0, 1).split(order.clips)
    apart = [_by_segment(extractor(some), extractor.layers) for some in few]
    shaped = [torch.cat(parts).unflatten(0, (len(clips), views, segments)) for parts in zip(*apart, strict=True)]
    tokens = shaped[0].transpose(2, 3).flatten(2, 4)  # [B, V, S, L, n, D] -> [B, V, L*S*n, D]
    return tokens, shaped[1].mean(2)


def _make_all(order: Order, progress: Progress | None) -> dict[str, list[Block]]:
    names = tuple(order.extractors)
    claims = [Claim(number, places, names) for number, places in enumerate(order.ranges())]
    made = [found for _, found in make_blocks(order, claims, progress)]
    return {name: [found[name] for found in made] for name in names}


def _by_segment(tokens: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, L*n, D] -> bf16 [B, L, n, D] and the last layer's means float32 [B, D]."""
    by_layer = tokens.unflatten(1, (layers, -1))
    return by_layer.to(torch.bfloat16).cpu(), by_layer[:, -1].float().mean(1).cpu()


def _encode_batch(order: Order, name: str, batch: Batch) -> Block:
    places = torch.tensor(batch.indices, dtype=torch.int64)
    missing = {reason: list(names) for reason, names in batch.skipped.items()}
    if not batch.keys:
        views, (count, width) = order.loader.views.count, order.shape(name)
        tokens, pooled = torch.empty(0, views, count, width, dtype=torch.bfloat16), torch.empty(0, views, width)
        return Block(tokens if order.tokens else None, pooled, batch.labels, places, [], missing)
    tokens, pooled = encode(order, name, batch.clips, order.loader.views.count)
    return Block(tokens if order.tokens else None, pooled, batch.labels, places, batch.keys, missing)


def _join(blocks: list[Block]) -> Block:
    tokens = [block.tokens for block in blocks if block.tokens is not None]
    missing: dict[str, list[str]] = {}
    for block in blocks:
        for reason, names in block.missing.items():
            missing.setdefault(reason, []).extend(names)
    return Block(
        torch.cat(tokens) if tokens else None,
        torch.cat([block.pooled for block in blocks]),
        torch.cat([block.labels for block in blocks]),
        torch.cat([block.places for block in blocks]),
        [key for block in blocks for key in block.keys],
        missing,
    )
