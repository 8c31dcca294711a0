"""Batches of clips from a packed data set, resumable at any stream position.

The stream position counts the clips consumed over all ranks: with k clips per video, position p is clip p mod k of
video p div k in the order of plan.py. A restart at a position gets exactly the next clip, on any number of ranks and
workers. In training, a sample that cannot be decoded is replaced by the next readable one of its group, counted and
logged by name; evaluation replaces nothing and reports it as missing.
Shapes: B clips, V views, T frames, H W pixels, C channels; pixels stay uint8.
"""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.loading.arrays import check_alignments
from data.loading.batch import Batch, DataConfig, MixPart, Views
from data.loading.groups import CLIPS, IMAGES, ImageConfig, Portion, divide
from data.loading.plan import Lanes, Mixture, Plan
from data.loading.processes import check_open_files, start_workers
from data.loading.remote import is_url
from data.loading.workers import ClipReader, EvalBatches, Request, Source, Stream, TrainBatches
from data.manifest import Manifest

__all__ = [
    "Batch",
    "DataConfig",
    "EvalLoader",
    "ImageConfig",
    "MixPart",
    "Request",
    "Tally",
    "TrainLoader",
    "Views",
    "load_manifest",
]

logger = logging.getLogger(__name__)

MAX_OPEN = 256  # shards that a worker keeps open, of each data set
TOLERATED = 8  # this many bad samples never stop a run, unless max_bad_fraction is 0


class TrainLoader:
    """Endless batches of random clips. `position` follows the batches handed out, not those being prefetched.

    step: clips of an optimiser step over all ranks, which data.lanes divide; None: one batch of every rank.
    """

    def __init__(
        self,
        config: DataConfig,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        position: int = 0,
        step: int | None = None,
    ) -> None:
        _check_share(batch, rank, world)
        if seed < 0 or position < 0:
            raise ValueError(f"seed and position must not be negative, got {seed} and {position}")
        self.config, self.batch, self.seed, self.rank, self.world = config, batch, seed, rank, world
        self.parts = config.parts()
        for part, _ in self.parts:
            check_alignments(part.arrays, part.fps, part.flip, part.scale)
        self.manifests = [Manifest.load(part.path, config.allow_pipe, config.outage) for part, _ in self.parts]
        if config.images is not None and not config.mix:
            raise ValueError("data.images needs parts of data.mix with images: true, got data.path alone")
        self.groups = [IMAGES if part.images else CLIPS for part in config.mix] or [CLIPS]
        self.portions = divide(config.images if config.mix else None, batch, rank, world)
        self.mixtures = {
            group: Mixture(
                [weight for (_, weight), own in zip(self.parts, self.groups, strict=True) if own == group], seed
            )
            for group in dict.fromkeys(self.groups)
        }
        self.step = step or batch * world
        self.lanes = {portion.name: self._divide_lanes(portion) for portion in self.portions}
        self.position = position
        self.tally = Tally(config.max_bad_fraction)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Continue at `position`."""
        total = self.batch * self.world
        if self.position % total and len(self.mixtures) > 1:
            raise ValueError(
                f"images beside clips continue at whole steps only: stream position {self.position} is not a multiple "
                f"of the {total} samples of a forward pass over all ranks; use the checkpoint's batch and ranks"
            )
        batches = TrainBatches(self.open_sources(), total)
        for batch in start_workers(
            batches, self.position, self.config.count_workers(), self.config.timeout, _outage(self.config)
        ):
            self.tally.add(batch)
            self.position = batch.position
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """State to continue with exactly the next clip, on any number of ranks and workers."""
        return {
            "position": self.position,
            "seed": self.seed,
            "shuffle_shards": self.config.shuffle_shards,
            "clips_per_video": self.config.clips_per_video,
            "lanes": None if self.config.lanes is None else [self.config.lanes, self.step],
            "fingerprint": self._fingerprint(),
            "seen": self.tally.seen,
            "skipped": dict(self.tally.skipped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was saved; ValueError if another data set or seed would change the sample order."""
        own = self.state_dict()
        for name, remedy in (
            ("fingerprint", "the shards or weights are not those of the checkpoint; use the original data"),
            ("seed", "use the checkpoint's seed"),
            ("shuffle_shards", "use the checkpoint's data.shuffle_shards"),
            ("clips_per_video", "use the checkpoint's data.clips_per_video"),
            ("lanes", "use the checkpoint's data.lanes and run.batch (the second number)"),
        ):
            if state.get(name) != own[name]:
                raise ValueError(f"data {name} is {own[name]}, the checkpoint has {state[name]}: {remedy}")
        self.position = int(state["position"])
        self.tally.seen = int(state.get("seen", 0))
        self.tally.skipped = Counter(state.get("skipped", {}))

    @property
    def manifest(self) -> Manifest:
        """The data set, or the first of several."""
        return self.manifests[0]

    def open_sources(self) -> list[Source]:
        """What this rank reads: the clips, the images, or both."""
        return [
            Source(
                portion,
                self._open_streams(portion),
                self.mixtures[portion.name],
                self.config.clips_per_video,
                self.lanes[portion.name],
            )
            for portion in self.portions
        ]

    def _divide_lanes(self, portion: Portion) -> Lanes:
        """The lanes of a group of samples; ValueError if its part of an optimiser step cannot be divided evenly."""
        count = self.config.lanes
        if count is None:
            return Lanes()
        per_forward, total = portion.per_step, self.batch * self.world
        videos, rest = divmod(self.step * per_forward, total * self.config.clips_per_video)
        if rest or videos % count:
            raise ValueError(
                f"data.lanes={count} must divide the {self.step * per_forward / total:g} {portion.name} of an "
                f"optimiser step (of {self.config.clips_per_video} per video); choose a divisor, or change run.batch"
            )
        return Lanes(count, videos)

    def _open_streams(self, portion: Portion) -> list[Stream]:
        """A stream for each data set of a group; labels are used only if all its data sets have the same classes."""
        chosen = [
            (config, manifest)
            for (config, _), manifest, own in zip(self.parts, self.manifests, self.groups, strict=True)
            if own == portion.name
        ]
        labelled = all(manifest.classes == chosen[0][1].classes for _, manifest in chosen)
        lanes = self.lanes[portion.name]
        clips, passes = self.config.clips_per_video, max(self.step // (self.batch * self.world), 1)
        starts = (number * portion.per_step + portion.first for number in range(passes))
        parts = (range(start // clips, (start + portion.count - 1) // clips + 1) for start in starts)
        keep = count_open(self.config.shuffle_shards, lanes.count_touched(parts))
        check_open_files(keep * len(chosen))
        streams = []
        for config, manifest in chosen:
            plan = Plan([shard.samples for shard in manifest.shards], self.seed, config.shuffle_shards, lanes.count)
            streams.append(Stream(ClipReader(config, manifest, keep), plan, labelled))
        return streams

    def _fingerprint(self) -> str:
        """The manifest's fingerprint; for a mixture, all fingerprints and shares."""
        names = [manifest.fingerprint() for manifest in self.manifests]
        if len(names) == 1:
            return names[0]
        shares = {group: iter(mixture.quotas.tolist()) for group, mixture in self.mixtures.items()}
        marks = [f"{name}*{next(shares[group])}" for name, group in zip(names, self.groups, strict=True)]
        images = self.config.images
        return "+".join(marks) if images is None else f"{'+'.join(marks)}; images {images.share:g} {self.groups}"


class EvalLoader:
    """One pass: every sample exactly once over all ranks, without padding, so ranks may differ in length.

    `missing` names, by reason, what could not be read so far. clips [B, V*S, T, H, W, C] with V views of S segments:
    all segments of the first view come first.
    """

    def __init__(
        self, config: DataConfig, batch: int, views: Views | None = None, rank: int = 0, world: int = 1
    ) -> None:
        _check_share(batch, rank, world)
        self.config, self.batch, self.views = config, batch, views or Views()
        if config.mix:
            raise ValueError("evaluation takes one data set: give data.path instead of data.mix")
        self.manifest = load_manifest(config)
        samples = self.manifest.samples
        self.share = range(samples * rank // world, samples * (rank + 1) // world)
        self.missing: dict[str, list[str]] = {}

    def __len__(self) -> int:
        """Number of batches, unless all samples of a batch are missing."""
        return -(-len(self.share) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        """Start a new pass over the data set."""
        starts = range(0, len(self.share), self.batch)
        for batch in self.read(Request(self.share[start : start + self.batch]) for start in starts):
            if batch.keys:
                yield batch

    def read(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """A batch for each request, in order, without the samples that cannot be read.

        `requests` is consumed in this process, a few requests ahead of the batches, so it may depend on changing state.
        """
        self.missing = {}
        tally = Tally(self.config.max_bad_fraction)
        batches = EvalBatches(ClipReader(self.config, self.manifest), requests, self.views, self.batch)
        for batch in start_workers(batches, 0, self.config.count_workers(), self.config.timeout, _outage(self.config)):
            for reason, names in batch.skipped.items():
                self.missing.setdefault(reason, []).extend(names)
            tally.add(batch, replaced=False)
            yield batch


class Tally:
    """Counts skipped samples, logs their names and raises an error once there are too many."""

    def __init__(self, limit: float, on_skip: Callable[[str, str], None] | None = None) -> None:
        self.limit = limit
        self.on_skip = on_skip  # called with (reason, name) in addition to logging
        self.seen = 0
        self.skipped: Counter[str] = Counter()
        self._latest: list[str] = []

    def add(self, batch: Batch, replaced: bool = True) -> None:
        """Count a batch; ValueError once more than a fraction `limit` of the samples seen are bad."""
        for reason, names in batch.skipped.items():
            for name in names:
                logger.warning("skipped %s (%s)", name, reason)
                if self.on_skip is not None:
                    self.on_skip(reason, name)
        bad = sum(map(len, batch.skipped.values()))
        self.count(batch.samples - (bad if replaced else 0), batch.skipped)
        if bad:
            self.check()

    def count(self, good: int, skipped: Mapping[str, Sequence[str]]) -> None:
        """Count `good` samples and those skipped, by reason, without logging or checking."""
        bad = [(reason, name) for reason, names in skipped.items() for name in names]
        self.seen += good + len(bad)
        self.skipped.update(reason for reason, _ in bad)
        self._latest = [f"{name} ({reason})" for reason, name in bad] + self._latest[:3]

    def check(self) -> None:
        """Raise ValueError if more than a fraction `limit` of the samples counted are bad."""
        if self.skipped.total() > max(TOLERATED if self.limit else 0, self.limit * self.seen):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.skipped.most_common())
            raise ValueError(
                f"{self.skipped.total()} of {self.seen} samples could not be read, more than data.max_bad_fraction="
                f"{self.limit:g} allows: {reasons}; the latest: {', '.join(self._latest[:3])}. Check the shards with "
                "`vjepa inspect FOLDER --verify`, repack without these videos, or raise the limit"
            )


def count_open(shuffle_shards: int, lanes: int) -> int:
    """Shards that a loading process keeps open, of each data set, to read from that many lanes."""
    return min(shuffle_shards * lanes, max(MAX_OPEN, shuffle_shards))


def load_manifest(config: DataConfig) -> Manifest:
    """The manifest at data.path; ValueError if no path is given."""
    return Manifest.load(config.parts()[0][0].path, config.allow_pipe, config.outage)


def _outage(config: DataConfig) -> float:
    """Seconds that a batch may have to wait for a server."""
    return config.outage if any(is_url(part.path) for part, _ in config.parts()) else 0.0


def _check_share(batch: int, rank: int, world: int) -> None:
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(f"need batch >= 1 and 0 <= rank < world, got batch {batch}, rank {rank}, world {world}")
