"""The sample order: stream position p = 0, 1, 2, ... -> (epoch, shard, index in the shard).

A pure function of (sample counts of the shards, seed, epoch), independent of ranks and workers. In each epoch the
shards are permuted and split into groups of `shuffle_shards`; samples are permuted within a group, so a worker needs
only a few open shards. Permutations sort the raw 64-bit output of a counter-based generator, whose stream is the same
in all versions of numpy.

With B samples per rank and W ranks, step s of rank r takes positions s*W*B + r*B ... + B. Batches cross epoch
boundaries: nothing is dropped, and the stream is endless with the same number of steps on all ranks.
"""

import hashlib
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1000  # positions over which a mixture matches its weights exactly
KEPT_GROUPS = 4  # cached permutations: the current groups at the end of one epoch and the start of the next


@dataclass(frozen=True)
class Address:
    """Where the sample at a stream position is stored, and the positions of its group."""

    epoch: int
    shard: int
    index: int
    group: range  # positions of the whole group, for finding a replacement


class Plan:
    """Maps stream positions to samples, for shards with `counts` samples each."""

    def __init__(self, counts: Sequence[int], seed: int, shuffle_shards: int) -> None:
        if sum(counts) < 1:
            raise ValueError("a plan needs at least one sample")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.samples = int(self.counts.sum())
        self.seed = seed
        self.shuffle_shards = shuffle_shards
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def find(self, position: int) -> Address:
        """The sample at `position` >= 0."""
        epoch, offset = divmod(position, self.samples)
        shards, starts = self._epoch(epoch)
        group = bisect_right(starts, offset) - 1
        first, end = starts[group], starts[group + 1] if group + 1 < len(starts) else self.samples
        members = shards[group * self.shuffle_shards : (group + 1) * self.shuffle_shards]
        inside = int(self._group(epoch, group, end - first)[offset - first])
        bounds = np.cumsum(self.counts[members])
        member = int(np.searchsorted(bounds, inside, side="right"))
        index = inside - (int(bounds[member - 1]) if member else 0)
        base = epoch * self.samples
        return Address(epoch, int(members[member]), index, range(base + first, base + end))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], list[int]]:
        """Shards in the order of this epoch (empty ones left out), and the offset at which each group starts."""
        if epoch not in self._epochs:
            shards = permute(len(self.counts), (self.seed, epoch, 0))
            shards = shards[self.counts[shards] > 0]
            sizes = self.counts[shards]
            totals = [0, *np.cumsum(sizes).tolist()]
            self._epochs[epoch] = shards, totals[:-1][:: self.shuffle_shards]
            _forget_oldest(self._epochs)
        return self._epochs[epoch]

    def _group(self, epoch: int, group: int, size: int) -> NDArray[np.int64]:
        if (epoch, group) not in self._groups:
            self._groups[epoch, group] = permute(size, (self.seed, epoch, group + 1))
            _forget_oldest(self._groups)
        return self._groups[epoch, group]


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
        self._block = -1
        self._parts = self._ranks = np.empty(0, dtype=np.int64)

    def find(self, position: int) -> tuple[int, int]:
        """The part that supplies `position`, and the position within that part."""
        block, offset = divmod(position, BLOCK)
        if block != self._block:
            order = permute(BLOCK, (self.seed, block, 0x6D6978))  # never equal to the seeds of a Plan
            self._parts = np.repeat(np.arange(len(self.quotas)), self.quotas)[order]
            self._ranks = np.empty(BLOCK, dtype=np.int64)
            for part, quota in enumerate(self.quotas):
                self._ranks[self._parts == part] = np.arange(quota)
            self._block = block
        part = int(self._parts[offset])
        return part, block * int(self.quotas[part]) + int(self._ranks[offset])


def permute(size: int, entropy: Sequence[int]) -> NDArray[np.int64]:
    """A permutation of range(size), seeded with `entropy`."""
    raw = np.random.Philox(np.random.SeedSequence(list(entropy))).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int64)


def draw_for(seed: int, epoch: int, key: str) -> random.Random:
    """The random generator of one sample: start, flip and crop are the same whichever worker processes the sample."""
    digest = hashlib.blake2b(f"{seed}\t{epoch}\t{key}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def _forget_oldest(memory: OrderedDict[Any, Any]) -> None:
    while len(memory) > KEPT_GROUPS:
        memory.popitem(last=False)
