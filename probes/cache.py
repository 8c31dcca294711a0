"""Feature cache on disk: an encoder pass is paid for once and can be shared by any number of processes.

A feature set is a folder named by a hash of everything that determines its content: weights, layers, precision, the
data's fingerprint, and how clips and views are sampled. It holds `about.json`, which describes all this, and one file
per shard, written atomically. A process claims a shard with a lock that is released when the process ends. So a killed
pass resumes with the missing shards, ranks and jobs share the work without communicating, and nobody waits for a dead
process. Locks only avoid duplicate work; correctness does not depend on them.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.files import Lock, remove_leftovers, replacing, write_json
from probes.extract import Block, Claim, Order, Progress, assemble, describe, make_blocks
from probes.features import Features, Stored
from vjepa.formats.native import write_safetensors

FORMAT = "video-features-1"
ABOUT, LOCK, DROPPED = "about.json", "in-use.lock", ".dropped-"
TIMEOUT = "timeout"  # reason for a missing sample that may be readable next time
PAUSE = 0.5  # seconds between checks for shards made by others
logger = logging.getLogger(__name__)


class FeatureCache:
    """A folder of feature sets of at most `gigabytes` in total; evicts the least recently used, never one in use."""

    def __init__(self, folder: str | Path, gigabytes: float) -> None:
        self.folder = Path(folder).expanduser()
        self.limit = int(gigabytes * 1e9)

    def fetch(
        self, orders: Sequence[Order], progress: Progress | None = None, rank: int = 0, world: int = 1
    ) -> list[dict[str, Features]]:
        """Features for each order, read or computed. Only rank 0 gets them, other ranks help to compute them.

        Raises ValueError if together they exceed the cache size.
        """
        kept = [{name: FeatureSet.plan(self.folder, order, name) for name in order.extractors} for order in orders]
        lock = self._reserve({one.key: one for sets in kept for one in sets.values()})
        for order, sets in zip(orders, kept, strict=True):
            fill_sets(order, sets, progress, rank, world)
        if rank:
            return []
        return [
            {name: one.open(order, lock, progress) for name, one in sets.items()}
            for order, sets in zip(orders, kept, strict=True)
        ]

    def _reserve(self, wanted: dict[str, "FeatureSet"]) -> list[Lock]:
        """Make room and mark the sets as in use until the locks are closed."""
        need = sum(one.bytes for one in wanted.values())
        if need > self.limit:
            parts = ", ".join(f"{one.facts['name']} {one.bytes / 1e9:.3g}" for one in wanted.values())
            raise ValueError(
                f"these features take {need / 1e9:.3g} GB ({parts}), more than cache_gb {self.limit / 1e9:g} allows: "
                f"raise it, lower views.augmented, views.segments or the baselines, leave out the attentive head, or "
                f"give cache=off to encode the clips again in every epoch"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lock(self.folder / "cache.lock", wait=True):
            others = [one for one in self._list() if one[0].name not in wanted]
            excess = need + sum(size for _, size, _ in others) - self.limit
            for folder, size, _ in sorted(others, key=lambda other: other[2]):
                if excess <= 0:
                    break
                with Lock(folder / LOCK) as lock:
                    if lock.held and lock.supported:
                        logger.warning("cache: dropping %s, the least recently used set", folder)
                        folder.rename(folder.with_name(f"{DROPPED}{folder.name}-{os.getpid()}"))
                        excess -= size
            locks = [one.take() for one in wanted.values()] if excess <= 0 else []
        for folder in self.folder.glob(f"{DROPPED}*"):
            shutil.rmtree(folder, ignore_errors=True)  # other processes may be deleting it too
        if excess > 0:
            raise ValueError(
                f"{self.folder} holds {excess / 1e9:.3g} GB too much for cache_gb {self.limit / 1e9:g}, all in use by "
                "other jobs, or on a file system without locks, where use cannot be detected: wait for them, "
                "raise cache_gb, give another folder, or delete sets by hand"
            )
        return locks

    def _list(self) -> list[tuple[Path, int, float]]:
        """All sets in the cache: folder, planned bytes, time of last use."""
        found = []
        for about in self.folder.glob(f"[!.]*/{ABOUT}"):
            try:
                content = json.loads(about.read_text())
            except ValueError:
                logger.warning("cache: %s cannot be read; its folder is kept and not counted", about)
                continue
            if content.get("format") == FORMAT:
                found.append((about.parent, int(content["bytes"]), about.stat().st_mtime))
        return found


@dataclass(frozen=True)
class FeatureSet:
    """One extractor's features of one data set, as files."""

    folder: Path
    facts: dict[str, Any]  # what determines the content
    bytes: int  # total size if every sample is readable
    ranges: tuple[range, ...]  # sample indices of each shard
    shape: tuple[int, int, int]  # V, N, D
    tokens: bool

    @classmethod
    def plan(cls, folder: Path, order: Order, name: str) -> "FeatureSet":
        """The set for an order, whether it exists or not."""
        views, (count, width) = order.loader.views.count, order.shape(name)
        ranges = tuple(order.ranges())
        facts = {"format": FORMAT, "name": name, **describe(order, name), "samples": order.loader.manifest.samples}
        hashed = {key: value for key, value in facts.items() if key != "name"}
        key = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:24]
        sample = views * width * (2 * count * order.tokens + 4) + 128  # plus key, label and sample index
        size = sample * order.loader.manifest.samples + 1024 * len(ranges)
        return cls(folder / key, facts, size, ranges, (views, count, width), order.tokens)

    @property
    def key(self) -> str:
        """Name of the folder, a hash of the content."""
        return self.folder.name

    def take(self) -> Lock:
        """Mark the set as used now, and in use until the lock is closed."""
        self.folder.mkdir(exist_ok=True)
        about = self.folder / ABOUT
        if not about.is_file():
            content = {"bytes": self.bytes, "shards": len(self.ranges), **self.facts}
            write_json(about, content)
        os.utime(about)
        return Lock(self.folder / LOCK, shared=True)

    def path(self, number: int) -> Path:
        """File of a shard."""
        return self.folder / f"{number:06d}.safetensors"

    def lacks(self) -> list[int]:
        """Numbers of the missing shards."""
        return [number for number in range(len(self.ranges)) if not self.path(number).is_file()]

    def claim(self, number: int) -> Lock:
        """Try to claim a shard; the lock is not held if another process has it or the shard exists."""
        lock = Lock(self.folder / f"{number:06d}.lock")
        if lock.held and self.path(number).is_file():
            lock.close()
        if lock.held and lock.supported:
            remove_leftovers(self.folder, self.path(number).name)
        return lock

    def open(self, order: Order, locks: list[Lock], progress: Progress | None = None) -> Features:
        """The whole set, with tokens mapped from the files; damaged shards are recomputed.

        The features hold `locks`, so the set is not evicted while they are alive. A shard with a sample that timed out
        is used, but its file is deleted: the storage may be faster next time.
        """
        blocks: list[Block] = []
        for number in range(len(self.ranges)):
            block = self.read(number)
            if block is None:
                self.path(number).unlink(missing_ok=True)
                fill_sets(order, {self.facts["name"]: self}, progress)
                block = self.read(number)
            if block is None:
                raise OSError(f"{self.path(number)} is damaged again after being recomputed; check the disk")
            if late := block.missing.get(TIMEOUT):
                logger.warning("cache: %s timed out; the next probe will try to read it again", ", ".join(late))
                self.path(number).unlink(missing_ok=True)  # existing mappings stay valid
            blocks.append(block)
        tokens = [block.tokens for block in blocks if block.tokens is not None]
        source = Stored(tokens, self.shape[1:])
        source.kept = locks
        return assemble(blocks, source, order, self.facts["name"])

    def read(self, number: int) -> Block | None:
        """A verified shard with mapped tokens; None, with a warning, if it is damaged."""
        path = self.path(number)
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            facts = metadata.get("facts", "")
            if metadata.get("checksum") != _checksum(tensors, facts):
                raise ValueError("the checksum differs")
        except (SafetensorError, ValueError, FileNotFoundError) as error:
            logger.warning("cache: %s is damaged (%s); recomputing it", path, error)
            return None
        content = json.loads(facts)
        pooled, labels, places = (tensors[name].clone() for name in ("pooled", "labels", "places"))
        return Block(tensors.get("tokens"), pooled, labels, places, content["keys"], content["missing"])

    def write(self, number: int, block: Block) -> None:
        """Write a shard atomically."""
        tensors = {"pooled": block.pooled, "labels": block.labels, "places": block.places}
        if block.tokens is not None:
            tensors["tokens"] = block.tokens
        facts = json.dumps({"keys": block.keys, "missing": block.missing})
        path = self.path(number)
        try:
            with replacing(path) as part:
                write_safetensors(tensors, part, {"facts": facts, "checksum": _checksum(tensors, facts)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def fill_sets(
    order: Order,
    sets: Mapping[str, FeatureSet],
    progress: Progress | None = None,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Compute missing shards; rank 0 returns when all exist, other ranks when nothing is left to claim."""
    said = False
    while True:
        locks: dict[int, list[Lock]] = {}
        claims = _claim(sets, locks, rank, world)
        first = next(claims, None)
        if first is not None:
            for claim, blocks in make_blocks(order, chain([first], claims), progress):
                for name, block in blocks.items():
                    sets[name].write(claim.number, block)
                for lock in locks.pop(claim.number):
                    lock.close()
            continue
        waiting = sum(len(one.lacks()) for one in sets.values())
        if rank or not waiting:
            return
        if not said:
            logger.warning("cache: waiting for %d shards of features that other processes are making", waiting)
            said = True
        time.sleep(PAUSE)


def _claim(sets: Mapping[str, FeatureSet], locks: dict[int, list[Lock]], rank: int, world: int) -> Iterator[Claim]:
    """Claim missing shards one by one; each rank starts at a different one."""
    ranges = next(iter(sets.values())).ranges
    first = len(ranges) * rank // world
    for number in [*range(first, len(ranges)), *range(first)]:
        claimed = {}
        for name, one in sets.items():
            if one.path(number).is_file():
                continue
            lock = one.claim(number)
            if lock.held:
                claimed[name] = lock
            else:
                lock.close()
        if claimed:
            locks[number] = list(claimed.values())
            yield Claim(number, ranges[number], tuple(claimed))


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    state = zlib.crc32(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        state = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), state)
        state = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, state)
    return f"{state:08x}"
