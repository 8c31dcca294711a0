"""Progress of a packing run: one small file per complete shard, so that a killed run continues after the last one."""

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from data.files import InUseError, Lock, describe_holder, remove_leftovers, write_json
from data.manifest import Rejection, Shard


@dataclass
class Totals:
    """Sums over samples, kept as integers so that they do not depend on how the work was divided."""

    milliseconds: int = 0
    frames: int = 0
    labels: Counter[str] = field(default_factory=Counter)  # label number, or "none"
    sizes: Counter[str] = field(default_factory=Counter)  # width x height
    rates: Counter[str] = field(default_factory=Counter)  # frames per second, two decimals
    codecs: Counter[str] = field(default_factory=Counter)

    def add(self, meta: dict[str, Any]) -> None:
        """Count one sample by its sidecar."""
        self.milliseconds += round(meta["duration"] * 1000)
        self.frames += meta["frames"]
        self.labels["none" if meta["label"] is None else str(meta["label"])] += 1
        self.sizes[f"{meta['width']}x{meta['height']}"] += 1
        self.rates[f"{meta['fps']:.2f}"] += 1
        self.codecs[meta["codec"]] += 1

    def merge(self, other: "Totals") -> None:
        """Add the sums of another part."""
        self.milliseconds += other.milliseconds
        self.frames += other.frames
        for name in ("labels", "sizes", "rates", "codecs"):
            getattr(self, name).update(getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain data in a fixed order, whatever the order of counting."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("labels", "sizes", "rates", "codecs")}
        return {"seconds": self.milliseconds / 1000, "frames": self.frames, **counts}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Totals":
        """The inverse of `to_dict`."""
        counts = {name: Counter(content[name]) for name in ("labels", "sizes", "rates", "codecs")}
        return cls(round(content["seconds"] * 1000), content["frames"], **counts)


class Journal:
    """The state of one packing run, stored in a folder; only one process may hold it."""

    def __init__(self, folder: Path, made: dict[str, Any]) -> None:
        self.folder = folder
        self.made = made
        self.shards: list[Shard] = []
        self.rejected: list[Rejection] = []
        self.totals = Totals()
        self.cursor = (0, 0)  # (source, clip) at which the next shard begins

    def __enter__(self) -> "Journal":
        self.folder.mkdir(exist_ok=True)
        self._lock = Lock(self.folder / "lock")
        if not self._lock.held:
            holder = describe_holder(self._lock.holder())
            self._lock.close()
            raise InUseError(f"{self.folder.parent}: another pack is writing here ({holder}); wait for it or stop it")
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def record(self, shard: Shard, cursor: tuple[int, int]) -> None:
        """Record a complete shard; the next one begins at `cursor`."""
        self.shards.append(shard)
        self.cursor = cursor
        content = {
            "shard": asdict(shard),
            "cursor": cursor,
            "totals": self.totals.to_dict(),
            "rejected": [asdict(rejection) for rejection in self.rejected],
        }
        write_json(self.folder / f"{len(self.shards) - 1:06d}.json", content, indent=None)

    def remove(self) -> None:
        """Delete the journal once packing is done."""
        shutil.rmtree(self.folder)

    def _begin(self) -> None:
        plan = self.folder / "plan.json"
        if not plan.is_file():
            write_json(plan, self.made, indent=None)
        elif json.loads(plan.read_bytes()) != self.made:
            raise ValueError(
                f"{self.folder.parent}: contains an unfinished packing with other sources or options; "
                "repeat its command to finish it, or delete the folder to start over"
            )
        ending = self.folder.name.removeprefix(".pack")
        for pattern in (f"shard{ending}-[0-9]*", f"manifest{ending}.json"):
            remove_leftovers(self.folder.parent, pattern)
        remove_leftovers(self.folder)
        while (path := self.folder / f"{len(self.shards):06d}.json").is_file():
            content = json.loads(path.read_bytes())
            shard = Shard(**content["shard"])
            whole = self.folder.parent / shard.name
            if not whole.is_file() or os.path.getsize(whole) != shard.bytes:
                break  # repack from here
            self.shards.append(shard)
            self.cursor = (content["cursor"][0], content["cursor"][1])
            self.totals = Totals.from_dict(content["totals"])
            self.rejected = [Rejection(**rejection) for rejection in content["rejected"]]
