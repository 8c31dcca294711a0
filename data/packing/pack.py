"""Videos -> numbered tar shards and a manifest; after an interruption `pack` continues and writes the same bytes.

Sources are packed in a fixed shuffled order, so that neighbours in a shard have different labels. A shard gets its
final name once it is complete; a journal then records where the next one begins. Equal sources and options give equal
bytes, regardless of the number of processes and of interruptions.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.decoder_process import MEMORY, limit_memory, memory_in_use
from data.manifest import NAME, Manifest, Rejection, parse_manifest
from data.packing.examine import Examined, Task, examine_source
from data.packing.journal import Journal, Totals
from data.packing.shardwriter import ShardFile
from data.packing.sources import Listing, Source, list_sources
from data.packing.transcode import TranscodeConfig
from data.parallel import count_cores, map_in_order

Progress = Callable[[int, int, int, int], None]  # sources done, sources in total, samples, rejected


@dataclass(frozen=True)
class PackConfig:
    """How to pack. All options except `jobs`, `timeout` and `strict` change the packed bytes."""

    shard_mb: float = 512.0  # a shard is closed once it reaches this size (in 10^6 bytes)
    order: Literal["shuffled", "listed"] = "shuffled"
    short_side: int = 0  # pixels; 0: keep. This and the next four options re-encode the videos
    fps: float = 0.0  # 0: keep
    crf: int = -1  # H.264 quality, 0 to 51; -1: 20 if another option requires re-encoding
    fast_decode: bool = False  # encode for fast decoding, with larger files
    split: float = 0.0  # seconds per clip; 0: do not split
    repair: bool = False  # re-encode videos whose frames cannot be read by random access
    val_fraction: float = 0.0  # of each label's videos, packed into OUTPUT/val next to OUTPUT/train
    part: str = ""  # "i/n" with i from 1: pack only this slice of the sources
    strict: bool = False  # any rejected source is an error
    jobs: int = -1  # worker processes; 0: only this process, unprotected; -1: one per core
    timeout: float = 600.0  # seconds per source

    def __post_init__(self) -> None:
        if self.shard_mb <= 0 or self.timeout <= 0 or self.jobs < -1:
            found = f"shard_mb {self.shard_mb}, timeout {self.timeout}, jobs {self.jobs}"
            raise ValueError(f"need shard_mb > 0, timeout > 0 and jobs >= -1, got {found}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")
        self.slice_of_all()
        self.transcoding()

    def slice_of_all(self) -> tuple[int, int]:
        """Part number (0-based) and number of parts."""
        if not self.part:
            return 0, 1
        numbers = self.part.split("/")
        if len(numbers) != 2 or not all(map(str.isdigit, numbers)) or not 1 <= int(numbers[0]) <= int(numbers[1]):
            raise ValueError(f"part must be i/n with 1 <= i <= n, such as 3/8, got {self.part!r}")
        return int(numbers[0]) - 1, int(numbers[1])

    def transcoding(self) -> TranscodeConfig | None:
        """Settings for re-encoding; None if videos are packed as they are."""
        if not (self.short_side or self.fps or self.split or self.fast_decode or self.crf >= 0):
            return None
        crf = 20 if self.crf < 0 else self.crf
        return TranscodeConfig(self.short_side, self.fps, crf, self.fast_decode, self.split)


@dataclass
class PackReport:
    """Summary of a packing run, over all folders written."""

    folders: list[str] = field(default_factory=list)
    samples: int = 0
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rejected: list[Rejection] = field(default_factory=list)


def pack(source: str, output: str, config: PackConfig, progress: Progress | None = None) -> PackReport:
    """Pack the videos of SOURCE (see sources.py) into OUTPUT, or into OUTPUT/train and OUTPUT/val."""
    listing = list_sources(source)
    check_output(source, output)
    report = PackReport()
    for subset, sources in plan_subsets(listing, config).items():
        folder = Path(output) / subset
        manifest = _pack_folder(folder, listing, sources, config, progress)
        report.folders.append(str(folder))
        report.samples += manifest.samples
        report.shards += len(manifest.shards)
        report.bytes += manifest.total_bytes
        report.seconds += manifest.totals["seconds"]
        report.rejected += manifest.rejected
    if config.strict and report.rejected:
        first = report.rejected[0]
        raise ValueError(
            f"{len(report.rejected)} sources were rejected and --strict was given; the first is {first.path}: "
            f"{first.reason}. The manifest in {output} lists them all"
        )
    return report


def merge_parts(output: str) -> list[Manifest]:
    """Merge the manifests of all parts in OUTPUT (and OUTPUT/train, OUTPUT/val) into manifest.json."""
    folders = [folder for folder in (Path(output), Path(output) / "train", Path(output) / "val") if folder.is_dir()]
    merged = [_merge_folder(folder) for folder in folders if list(folder.glob("manifest-part-*.json"))]
    if not merged:
        raise FileNotFoundError(f"{output}: no manifest-part-*.json; pack every part with --part i/n first")
    return merged


def plan_subsets(listing: Listing, config: PackConfig) -> dict[str, list[Source]]:
    """Sources of each subfolder ("" for OUTPUT itself) in packing order, for all parts together."""
    sources = list(listing.sources)
    if config.order == "shuffled":
        sources.sort(key=lambda source: hashlib.sha256(source.key.encode()).digest())
    if not config.val_fraction:
        return {"": sources}
    subsets: dict[str, list[Source]] = {"train": [], "val": []}
    held = _hold_out(sources, config.val_fraction)
    for source in sources:
        subsets["val" if source.name in held else "train"].append(source)
    for name, chosen in subsets.items():
        if not chosen:
            raise ValueError(f"val_fraction {config.val_fraction} leaves {name} empty with {len(sources)} sources")
    return subsets


def check_output(source: str, output: str) -> None:
    """Raise ValueError if SOURCE and OUTPUT are the same folder."""
    if os.path.isdir(source) and Path(output).resolve() == Path(source).resolve():
        raise ValueError(f"{output}: SOURCE and OUTPUT are the same folder; use another folder for the shards")


def _hold_out(sources: Sequence[Source], fraction: float) -> set[str]:
    """Names of the videos for val: `fraction` of each label, chosen by hash; at least one if a label has two or more.

    All parts of a video go to the same subset, decided by its first label. For a label with one video the hash decides.
    """
    labels: dict[str, str | None] = {}
    for source in sorted(sources, key=lambda source: source.name):
        labels.setdefault(source.name, source.label)
    classes: dict[str | None, list[tuple[float, str]]] = {}
    for name, label in labels.items():
        digest = hashlib.sha256(b"val\t" + name.encode(errors="surrogateescape")).digest()
        classes.setdefault(label, []).append((int.from_bytes(digest[:8], "big") / 2**64, name))
    held: set[str] = set()
    for members in classes.values():
        members.sort()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        if len(members) == 1:
            count = int(members[0][0] < fraction)
        held |= {name for _, name in members[:count]}
    return held


def _pack_folder(
    folder: Path, listing: Listing, sources: Sequence[Source], config: PackConfig, progress: Progress | None
) -> Manifest:
    part, parts = config.slice_of_all()
    sources = sources[len(sources) * part // parts : len(sources) * (part + 1) // parts]
    ending = f"-part-{part + 1:04d}-of-{parts:04d}" if config.part else ""
    target = folder / NAME.replace(".json", f"{ending}.json")
    made = _describe(listing, config)
    if target.is_file():
        return _already_packed(target, made)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / f".pack{ending}", made) as journal:
        tasks = [Task(s, listing.label(s), config.transcoding(), config.repair) for s in sources]
        _fill_shards(folder, ending, tasks, config, journal, progress)
        manifest = Manifest(
            folder=str(folder),
            shards=tuple(journal.shards),
            classes=listing.classes,
            totals=journal.totals.to_dict(),
            made=made,
            rejected=tuple(journal.rejected),
        )
        if not manifest.samples and not config.part:
            reasons = "; ".join(f"{r.path}: {r.reason}" for r in journal.rejected[:3])
            raise ValueError(f"{folder}: none of {len(sources)} sources can be used ({reasons})")
        manifest.save(target.name)
        journal.remove()
    return manifest


def _fill_shards(
    folder: Path, ending: str, tasks: Sequence[Task], config: PackConfig, journal: Journal, progress: Progress | None
) -> None:
    """Pack all tasks from the journal's cursor on."""
    jobs = config.jobs if config.jobs >= 0 else count_cores()
    first, skip = journal.cursor
    shard: ShardFile | None = None
    samples = sum(done.samples for done in journal.shards)
    results = map_in_order(examine_source, tasks[first:], jobs, config.timeout, _lost, _limit)
    for number, (task, result) in enumerate(zip(tasks[first:], results, strict=True), first):
        if result.rejected:
            journal.rejected.append(Rejection(task.source.name, result.rejected))
        for clip, packed in enumerate(result.samples):
            if number == first and clip < skip:
                continue
            if shard is None:
                shard = ShardFile(folder / f"shard{ending}-{len(journal.shards):06d}.tar")
            shard.add(packed, task.source.path)
            journal.totals.add(packed.meta)
            samples += 1
            if shard.size >= config.shard_mb * 1e6:
                last = clip + 1 == len(result.samples)
                journal.record(shard.finish(), (number + 1, 0) if last else (number, clip + 1))
                shard = None
        if progress is not None:
            progress(number + 1, len(tasks), samples, len(journal.rejected))
    if shard is not None:
        journal.record(shard.finish(), (len(tasks), 0))


def _limit(task: Task) -> None:
    """Limit the memory of a worker process: decoding one video may take MEMORY in addition to the video itself."""
    global _base
    _base = _base or memory_in_use()
    size = os.path.getsize(task.source.path) if os.path.isfile(task.source.path) else 0
    limit_memory(_base + MEMORY + 3 * size)


_base = 0  # memory of a worker process before its first video


def _lost(task: Task, reason: str) -> Examined:
    return Examined(rejected=reason)


def _describe(listing: Listing, config: PackConfig) -> dict[str, Any]:
    """What the packed bytes depend on; without the part, so that it is equal for all parts."""
    options = {k: v for k, v in asdict(config).items() if k not in ("jobs", "timeout", "strict", "part")}
    return {"by": "python -m launch pack", "options": options, "sources": listing.digest()}


def _already_packed(path: Path, made: dict[str, Any]) -> Manifest:
    manifest = parse_manifest(path.read_bytes(), str(path.parent), str(path), allow_empty=True)
    if manifest.made != made:
        raise ValueError(
            f"{path}: this folder holds a data set made from other sources or with other options; "
            "use another OUTPUT or delete this one"
        )
    return manifest


def _merge_folder(folder: Path) -> Manifest:
    paths = sorted(folder.glob("manifest-part-*.json"))
    parts = [parse_manifest(path.read_bytes(), str(folder), str(path), allow_empty=True) for path in paths]
    count = int(paths[0].stem.rsplit("-", 1)[1])
    expected = [f"manifest-part-{part + 1:04d}-of-{count:04d}.json" for part in range(count)]
    found = [path.name for path in paths]
    if found != expected:
        odd = sorted(set(expected) ^ set(found))
        raise ValueError(f"{folder}: {len(found)} of {count} parts found; missing or unexpected: {', '.join(odd[:5])}")
    for path, manifest in zip(paths, parts, strict=True):
        if manifest.made != parts[0].made or manifest.classes != parts[0].classes:
            raise ValueError(f"{path}: made from other sources or with other options than {paths[0].name}")
    totals = Totals.from_dict(parts[0].totals)
    for manifest in parts[1:]:
        totals.merge(Totals.from_dict(manifest.totals))
    merged = Manifest(
        folder=str(folder),
        shards=tuple(shard for manifest in parts for shard in manifest.shards),
        classes=parts[0].classes,
        totals=totals.to_dict(),
        made=parts[0].made,
        rejected=tuple(rejection for manifest in parts for rejection in manifest.rejected),
    )
    parse_manifest(merged.to_json(), str(folder), str(folder / NAME))
    merged.save()
    return merged
