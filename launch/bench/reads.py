"""How often shards are opened and read by ranks that are not there: the loader's own plan, counted instead of read.

For each number of ranks and size of the data set, the loading processes of one node take their batches in the order of
the plan, each with its own open shards, and what they would do is counted over a whole group of shards or more. Nothing
is timed; a cost in seconds is a matter of the storage.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from data.loading.batch import DataConfig
from data.loading.loader import count_open
from data.loading.plan import Lanes, Plan
from launch.training.config import TrainConfig
from probes.tables import align_columns

RANKS, TERABYTES = (8, 64, 512), (1.0, 20.0)
NODE = 8  # ranks of a node
SHARD_MB = 512.0  # as `pack` writes them
MEMBERS = 2  # of a sample: its video and its sidecar
MOST_CLIPS = 48  # of a forward pass
WORKERS = 8  # per rank, where data.workers is null
COUNTED = 60_000  # clips of the counted node, at most
SHUFFLE_IN_LANES = 4  # shards shuffled together in a lane, if the config has no lanes of its own


@dataclass(frozen=True)
class Counts:
    """What one clip costs, on average, and what a node has open."""

    access: str  # headers: as without an index; index; lanes: an index, and lanes
    ranks: int
    terabytes: float
    opens: float  # files opened per clip, index files included
    reads: float  # reads of files per clip; of headers, 512 bytes each
    open_shards: int  # distinct shards that the node reads during one optimiser step
    fetched: float  # bytes that the node fetches from a server, relative to the bytes of its clips
    shards_in_batch: int  # distinct shards in an optimiser step over all ranks: how well clips are mixed


def bench_reads(config: TrainConfig, ranks: str | None, terabytes: str | None, clip_mb: float) -> dict[str, Any]:
    """Count and print the table; ValueError for numbers that do not fit the config."""
    data = config.data
    found = []
    for size in _numbers(terabytes, TERABYTES, "--terabytes"):
        for world in map(int, _numbers(ranks, RANKS, "--ranks")):
            shared = replace(data, lanes=None)
            lanes = data.lanes or math.gcd(config.run.batch, 512)
            laned = replace(data, lanes=lanes, shuffle_shards=data.shuffle_shards if data.lanes else SHUFFLE_IN_LANES)
            for access, chosen in (("headers", shared), ("index", shared), ("lanes", laned)):
                found.append(count_reads(access, chosen, config.run.batch, world, size, clip_mb, config.run.seed))
    heads = ("access", "ranks", "TB", "opens", "reads", "open shards", "fetched", "shards in a batch")
    rows = [
        (c.access, c.ranks, f"{c.terabytes:g}", f"{c.opens:.3f}", f"{c.reads:.2f}", c.open_shards, f"{c.fetched:.2f}",
         c.shards_in_batch)
        for c in found
    ]  # fmt: skip
    print(align_columns([heads, *(tuple(map(str, row)) for row in rows)]))
    return {"batch": config.run.batch, "clip_mb": clip_mb, "shard_mb": SHARD_MB, "counts": [asdict(c) for c in found]}


def count_reads(
    access: str, data: DataConfig, batch: int, world: int, terabytes: float, clip_mb: float, seed: int
) -> Counts:
    """Count for one way of access; the first node stands for all."""
    if batch % world:
        raise ValueError(f"run.batch={batch} must be a multiple of the {world} ranks of --ranks; choose others")
    samples = max(round(SHARD_MB / clip_mb), 1)
    shards = max(round(terabytes * 1e6 / SHARD_MB), 1)
    lanes = Lanes(data.lanes or 1, batch)
    plan = Plan([samples] * shards, seed, data.shuffle_shards, lanes.count)
    own = batch // world
    passes = next(count for count in range(1, own + 1) if own % count == 0 and own // count <= MOST_CLIPS)
    clips, workers = own // passes, WORKERS if data.workers is None else max(data.workers, 1)
    keep = count_open(data.shuffle_shards, lanes.count_touched(_batches(world, 0, clips, own)))
    node = min(NODE, world)
    opens, seen, fetched = 0, 0, set[tuple[int, int]]()
    for rank in range(node):
        held = [_Held(keep) for _ in range(workers)]
        for number, positions in enumerate(_batches(world, rank, clips, COUNTED // node)):
            worker = held[number % workers]
            for position in positions:
                lane, inner = lanes.find(position)
                address = plan.find(inner, lane)
                opens += worker.open(address.shard)
                fetched.add((address.epoch, address.shard))
                seen += 1
    headers = opens * (MEMBERS * samples + 1)
    node_step = {shard for rank in range(node) for shard in _step_shards(plan, lanes, batch, world, rank, clips)}
    whole_step = {plan.find(*lanes.find(p)[::-1]).shard for p in range(batch)}
    return Counts(
        access=access,
        ranks=world,
        terabytes=terabytes,
        opens=(opens if access == "headers" else 2 * opens) / seen,
        reads=(headers + MEMBERS * seen if access == "headers" else opens + seen) / seen,
        open_shards=len(node_step),
        fetched=len(fetched) * samples / seen if access == "headers" else 1.0,
        shards_in_batch=len(whole_step),
    )


def _batches(world: int, rank: int, clips: int, most: int) -> Iterator[range]:
    """Stream positions of a rank's forward passes."""
    for step in range(max(most // clips, 1)):
        start = step * world * clips + rank * clips
        yield range(start, start + clips)


def _step_shards(plan: Plan, lanes: Lanes, batch: int, world: int, rank: int, clips: int) -> Iterator[int]:
    """Shards that a rank reads in the first optimiser step."""
    for positions in _batches(world, rank, clips, batch // world):
        for position in positions:
            lane, inner = lanes.find(position)
            yield plan.find(inner, lane).shard


class _Held:
    """The shards that a process has open."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.open_now: OrderedDict[int, None] = OrderedDict()

    def open(self, shard: int) -> bool:
        """Whether a shard has to be opened."""
        known = shard in self.open_now
        self.open_now[shard] = None
        self.open_now.move_to_end(shard)
        if len(self.open_now) > self.keep:
            self.open_now.popitem(last=False)
        return not known


def _numbers(text: str | None, default: tuple[float, ...], option: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")] if text else list(default)
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise ValueError(f"{option} must be numbers above 0, such as 8,64, got {text!r}")
    return found
