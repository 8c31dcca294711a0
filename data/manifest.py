"""The contents of a folder of shards: `manifest.json`, validated when read and written in one canonical form.

The manifest is the loader's source of truth: a shard with fewer samples than listed is an error, never a shorter
epoch. Its fingerprint identifies the data set: equal fingerprints mean equal shards, hence the same sample order.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.files import write_bytes
from data.loading.remote import OUTAGE, is_url, join_url, read_url
from data.text import printable

NAME = "manifest.json"
FORMAT = "video-shards/1"
MIN_SAMPLE_BYTES = 512  # of a sample in a tar: its header alone
MAX_SHARD_SAMPLES = 4_000_000  # samples are permuted in memory
MAX_TOTAL = 1e18
HEXADECIMAL = frozenset("0123456789abcdef")
COUNTS = ("labels", "sizes", "rates", "codecs")  # the totals that count values


@dataclass(frozen=True)
class Shard:
    """One tar file of the data set."""

    name: str  # relative to the manifest's folder
    samples: int
    bytes: int
    sha256: str  # of the whole file; "" if not computed


@dataclass(frozen=True)
class Rejection:
    """A source that did not become a sample, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """A whole data set: shards in order, class names, totals and how it was made."""

    folder: str
    shards: tuple[Shard, ...]
    classes: list[str] = field(default_factory=list)  # name of label i
    totals: dict[str, Any] = field(default_factory=dict)  # seconds, frames and histograms, for `inspect`
    made: dict[str, Any] = field(default_factory=dict)  # options, versions and digest of the sources
    rejected: tuple[Rejection, ...] = ()
    indexed: bool = False  # foreign shards: their samples and frame times are those of the index beside each

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def total_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any shard's name, sample count, size or content changes."""
        lines = "".join(f"{s.name}\t{s.samples}\t{s.bytes}\t{s.sha256}\n" for s in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], allow_pipe: bool = False, outage: float = OUTAGE) -> "Manifest":
        """Read `folder`/manifest.json; a ValueError or FileNotFoundError says what is wrong with it.

        `allow_pipe`: `folder` may be a command, `outage`: seconds to wait for a server, see remote.py.
        """
        if is_url(str(folder)):
            url = join_url(str(folder), NAME)
            return parse_manifest(read_url(url, allow_pipe, outage), str(folder), url)
        path = Path(folder) / NAME
        if not path.is_file():
            raise FileNotFoundError(_missing(Path(folder)))
        return parse_manifest(path.read_bytes(), str(folder), str(path))

    def to_json(self) -> bytes:
        """The canonical text of this manifest: equal data sets give equal bytes."""
        content = {
            "format": FORMAT,
            "samples": self.samples,
            "bytes": self.total_bytes,
            "classes": self.classes,
            "totals": self.totals,
            "made": self.made,
            "shards": [asdict(shard) for shard in self.shards],
            "rejected": [asdict(rejection) for rejection in self.rejected],
            **({"indexed": True} if self.indexed else {}),
        }
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")

    def save(self, name: str = NAME) -> None:
        """Write `folder`/`name` atomically."""
        write_bytes(Path(self.folder) / name, self.to_json())


def parse_manifest(text: bytes, folder: str, name: str, allow_empty: bool = False) -> Manifest:
    """Parse and validate a manifest; `name` appears in error messages, `folder` holds the shards."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON ({error}); pack the data set again or restore the file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{name}: format must be {FORMAT!r}, found {found!r}; this file was not written by `pack`")
    try:
        shards = tuple(_parse_shard(shard) for shard in content["shards"])
        rejected = tuple(Rejection(str(r["path"]), str(r["reason"])) for r in content.get("rejected", []))
        manifest = Manifest(
            folder=folder,
            shards=shards,
            classes=_parse_classes(content.get("classes", [])),
            totals=_parse_totals(content.get("totals", {})),
            made=_parse_made(content.get("made", {})),
            rejected=rejected,
            indexed=content.get("indexed", False) is True,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"{name}: a field is missing or has the wrong type ({error!r}); see docs/data.md") from error
    if not manifest.samples and not allow_empty:
        raise ValueError(f"{name}: the data set has no samples; pack a folder that holds readable videos")
    if content.get("samples", manifest.samples) != manifest.samples:
        raise ValueError(f"{name}: says {content['samples']} samples, but its shards add up to {manifest.samples}")
    names = [shard.name for shard in shards]
    if len(set(names)) != len(names):
        raise ValueError(f"{name}: a shard is listed twice")
    return manifest


def _parse_shard(content: dict[str, Any]) -> Shard:
    samples, size, name = content["samples"], content["bytes"], content["name"]
    if type(samples) is not int or type(size) is not int or type(name) is not str:
        raise TypeError(f"shard {name!r}: samples and bytes must be integers and name a string")
    if samples * MIN_SAMPLE_BYTES > size or samples > MAX_SHARD_SAMPLES:
        raise ValueError(
            f"shard {name}: {samples} samples do not fit into {size} bytes, or are more than the {MAX_SHARD_SAMPLES} "
            "that a shard may have"
        )
    if samples < 0 or size < 0:
        raise ValueError(f"shard {name}: samples and bytes must not be negative")
    if name.startswith("/") or ".." in name.split("/") or ":/" in name or "::" in name or printable(name) != name:
        raise ValueError(
            f"shard {printable(name)}: the name must be relative, stay inside the folder of the data set, and have no "
            "address in it (:/ or ::) and no control characters"
        )
    sha256 = content.get("sha256", "")
    if type(sha256) is not str or not set(sha256) <= HEXADECIMAL:
        raise ValueError(f"shard {name}: sha256 must be hexadecimal digits, or empty")
    return Shard(name, samples, size, sha256)


def _parse_classes(content: Any) -> list[str]:
    if not isinstance(content, list):
        raise TypeError(f"classes must be a list of names, not {type(content).__name__}")
    return [str(name) for name in content]


def _parse_totals(content: dict[str, Any]) -> dict[str, Any]:
    """Sums over all samples: numbers, and how often each value occurs."""
    for name, value in content.items():
        counts = value.values() if isinstance(value, dict) else (value,)
        if not all(type(count) in (int, float) and 0 <= count < MAX_TOTAL for count in counts):
            raise TypeError(f"totals.{name} must be a number, or an object of numbers, from 0 to {MAX_TOTAL:g}")
        if isinstance(value, dict) != (name in COUNTS):
            raise TypeError(f"totals.{name} must be {'an object' if name in COUNTS else 'a number'}")
    return dict(content)


def _parse_made(content: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(content.get("options", {}), dict):
        raise TypeError("made.options must be an object")
    return dict(content)


def _missing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: no such folder; give the folder that `vjepa pack` wrote"
    if (folder / "train" / NAME).is_file():
        return f"{folder}: no {NAME} here, but there is one in {folder / 'train'}; give that folder"
    found = any(path.suffix == ".tar" for path in folder.iterdir())
    hint = "packing did not finish; run the same pack command again" if found else "pack videos first"
    return f"{folder}: no {NAME}; {hint} (vjepa pack SOURCE {folder})"
