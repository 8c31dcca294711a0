"""The sample order: stream position p = 0, 1, 2, ... -> (epoch, shard, index in the shard).

A pure function of (sample counts of the shards, seed, epoch), independent of ranks and workers. In each epoch the
shards are permuted and split into groups of `shuffle_shards`; samples are permuted within a group, so a worker needs
only a few open shards. Permutations sort the raw 64-bit output of a counter-based generator, whose stream is the same
in all versions of numpy.

With B samples per rank and W ranks, step s of rank r takes positions s*W*B + r*B ... + B. Batches cross epoch
boundaries: nothing is dropped, and the stream is endless with the same number of steps on all ranks.

With L lanes, the samples of an epoch, in the order of its shards, are cut into L equal parts; lane l goes through the
l-th alone, as if it were a data set of its own. Each lane fills a fixed part of every optimiser step, so a rank reads
the shards of few lanes, while the batch as a whole mixes those of all. Lanes are virtual ranks: how many real ones
share them changes nothing in the order.
"""

import hashlib
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1000  # positions over which a mixture matches its weights exactly
KEPT_GROUPS = 4  # cached permutations per lane: the current groups at the end of one epoch and the start of the next
MIX = 0x6D6978  # never equal to what a Plan seeds its permutations with


@dataclass(frozen=True)
class Address:
    """Where the sample at a stream position is stored, and the positions of its group."""

    epoch: int
    shard: int
    index: int
    group: range  # positions of the whole group, in its lane, for finding a replacement


@dataclass(frozen=True)
class Lanes:
    """How the videos of an optimiser step are divided among virtual ranks."""

    count: int = 1
    step: int = 1  # videos of a step, a multiple of `count`

    def find(self, position: int) -> tuple[int, int]:
        """The lane of a stream position, and the position within that lane."""
        if self.count == 1:
            return 0, position
        share = self.step // self.count
        step, offset = divmod(position, self.step)
        lane, inner = divmod(offset, share)
        return lane, step * share + inner

    def count_touched(self, ranges: Iterable[range]) -> int:
        """How many lanes supply these positions of one step."""
        ends = ((self.find(part[0])[0], self.find(part[-1])[0]) for part in ranges if part)
        return len({lane for first, last in ends for lane in range(first, last + 1)})


class Plan:
    """Maps stream positions to samples, for shards with `counts` samples each, divided among `lanes`."""

    def __init__(self, counts: Sequence[int], seed: int, shuffle_shards: int, lanes: int = 1) -> None:
        if sum(counts) < 1:
            raise ValueError("a plan needs at least one sample")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self.lanes = lanes
        if self.samples < lanes:
            raise ValueError(f"data.lanes={lanes} needs at least as many samples, got {self.samples}")
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._parts: OrderedDict[tuple[int, int], _Part] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = OrderedDict()
        self._lanes_seen: set[int] = set()

    def find(self, position: int, lane: int = 0) -> Address:
        """The sample at `position` >= 0 of a lane."""
        size = self.samples * (lane + 1) // self.lanes - self.samples * lane // self.lanes
        epoch, offset = divmod(position, size)
        part = self._part(epoch, lane)
        group = bisect_right(part.starts, offset) - 1
        first, end = part.starts[group], part.starts[group + 1] if group + 1 < len(part.starts) else size
        pieces = slice(group * self.shuffle_shards, (group + 1) * self.shuffle_shards)
        inside = int(self._group(epoch, lane, group, end - first)[offset - first])
        bounds = np.cumsum(part.sizes[pieces])
        piece = int(np.searchsorted(bounds, inside, side="right"))
        index = inside - (int(bounds[piece - 1]) if piece else 0) + int(part.begins[pieces][piece])
        base = epoch * size
        return Address(epoch, int(part.shards[pieces][piece]), index, range(base + first, base + end))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards in the order of this epoch (empty ones left out), and the sample at which each ends."""
        if epoch not in self._epochs:
            shards = permute(len(self.counts), (self.seed, epoch, 0))
            shards = shards[self.counts[shards] > 0]
            self._epochs[epoch] = shards, np.cumsum(self.counts[shards])
            _forget_oldest(self._epochs, KEPT_GROUPS)
        return self._epochs[epoch]

    def _part(self, epoch: int, lane: int) -> "_Part":
        """A lane's part of an epoch: whole shards, but for the first and the last, which it may share with others."""
        if (epoch, lane) not in self._parts:
            shards, ends = self._epoch(epoch)
            begin, end = (self.samples * number // self.lanes for number in (lane, lane + 1))
            first, last = (int(np.searchsorted(ends, at, side="right")) for at in (begin, end - 1))
            own = shards[first : last + 1]
            starts = ends[first : last + 1] - self.counts[own]
            begins = np.maximum(begin - starts, 0)
            sizes = np.minimum(ends[first : last + 1], end) - starts - begins
            totals = [0, *np.cumsum(sizes).tolist()]
            self._parts[epoch, lane] = _Part(own, begins, sizes, totals[:-1][:: self.shuffle_shards])
            self._lanes_seen.add(lane)
            _forget_oldest(self._parts, KEPT_GROUPS * len(self._lanes_seen))
        return self._parts[epoch, lane]

    def _group(self, epoch: int, lane: int, group: int, size: int) -> NDArray[np.int64]:
        if (epoch, lane, group) not in self._groups:
            entropy = (self.seed, epoch, group + 1, *((lane + 1,) if self.lanes > 1 else ()))
            self._groups[epoch, lane, group] = permute(size, entropy)
            _forget_oldest(self._groups, KEPT_GROUPS * len(self._lanes_seen))
        return self._groups[epoch, lane, group]


@dataclass(frozen=True)
class _Part:
    """What a lane reads in an epoch, shard by shard."""

    shards: NDArray[np.int64]
    begins: NDArray[np.int64]  # index of the first sample of each
    sizes: NDArray[np.int64]  # samples of each
    starts: list[int]  # offsets in the part at which the groups start


class Mixture:
    """Maps stream positions to (part, position in the part): each BLOCK holds the parts by weight, shuffled."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        share = np.asarray(weights, dtype=np.float64) / sum(weights)
        quotas = np.floor(share * BLOCK).astype(np.int64)
        missing = BLOCK - int(quotas.sum())
        quotas[np.argsort(quotas - share * BLOCK, kind="stable")[:missing]] += 1
        if quotas.min() < 1:
            raise ValueError(f"a weight in data.mix is under 1/{BLOCK} of the sum: {list(weights)}; remove that part")
        self.quotas = quotas
        self.seed = seed
        self._blocks: dict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = {}  # the current one of each lane

    def find(self, position: int, lane: int = 0) -> tuple[int, int]:
        """The part that supplies `position` of a lane, and the position within that lane of the part."""
        if len(self.quotas) == 1:
            return 0, position
        block, offset = divmod(position, BLOCK)
        known, parts, ranks = self._blocks.get(lane, (-1, None, None))
        if block != known or parts is None or ranks is None:
            order = permute(BLOCK, (self.seed, block, MIX, *((lane,) if lane else ())))
            parts = np.repeat(np.arange(len(self.quotas)), self.quotas)[order]
            ranks = np.empty(BLOCK, dtype=np.int64)
            for number, quota in enumerate(self.quotas):
                ranks[parts == number] = np.arange(quota)
            self._blocks[lane] = block, parts, ranks
        part = int(parts[offset])
        return part, block * int(self.quotas[part]) + int(ranks[offset])


def permute(size: int, entropy: Sequence[int]) -> NDArray[np.int64]:
    """A permutation of range(size), seeded with `entropy`."""
    raw = np.random.Philox(np.random.SeedSequence(list(entropy))).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)


def draw_for(seed: int, epoch: int, key: str) -> random.Random:
    """The random generator of one sample: start, flip and crop are the same whichever worker processes the sample."""
    digest = hashlib.blake2b(f"{seed}\t{epoch}\t{key}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def _forget_oldest(memory: OrderedDict[Any, Any], kept: int) -> None:
    while len(memory) > kept:
        memory.popitem(last=False)
