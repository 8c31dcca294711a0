"""Writes one tar shard and its index: under a hidden name first, renamed once it is complete.

webdataset's TarWriter lays out the members; owner and modification time are fixed, so equal samples give equal bytes.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import webdataset

from data.files import name_part, publish
from data.manifest import Shard
from data.packing.examine import Packed
from data.packing.indexing import write_index


class ShardFile:
    """A shard being written; counts its samples and hashes its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = 0
        self._part = name_part(path)
        self._file = _HashingFile(self._part)
        self._tar: Any = webdataset.TarWriter(self._file, encoder=False, mtime=0.0)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.size

    def add(self, packed: Packed, source: str) -> None:
        """Write one sample; OSError if the disk is full or the source has changed since it was examined."""
        content = packed.content
        if content is None:
            content = Path(source).read_bytes()
            if hashlib.sha256(content).hexdigest() != packed.meta["sha256"]:
                raise OSError(f"{source}: changed while it was being packed; run the command again")
        text = json.dumps(packed.meta, ensure_ascii=False, separators=(",", ":"))
        meta = text.encode(errors="backslashreplace")  # file-name bytes that are not UTF-8 become JSON escapes, \\udcff
        try:
            self._tar.write({"__key__": packed.key, packed.extension: content, "json": meta})
        except OSError as error:
            raise self._explain(error) from error
        self.samples += 1

    def finish(self) -> Shard:
        """Close the shard and give it its final name."""
        try:
            self._tar.close()
            self._file.finish()
            publish(self._part, self.path)
            write_index(self.path, self._file.sha256.hexdigest())
        except OSError as error:
            raise self._explain(error) from error
        return Shard(self.path.name, self.samples, self._file.size, self._file.sha256.hexdigest())

    def _explain(self, error: OSError) -> OSError:
        self._file.abandon()
        self._part.unlink(missing_ok=True)
        return OSError(
            f"{self.path}: the shard cannot be written ({error.strerror or error}); make room or fix the disk, "
            "then run the same command again: it continues after the last complete shard"
        )


class _HashingFile:
    def __init__(self, path: Path) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 -- closed by finish
        self._abandoned = False

    def write(self, content: bytes) -> int:
        if self._abandoned:  # tarfile writes its last block when garbage-collected
            return len(content)
        self.sha256.update(content)
        self.size += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    def abandon(self) -> None:
        self._abandoned = True
        with suppress(OSError):  # there is no room for the buffered bytes either
            self._file.close()

    def finish(self) -> None:
        self._file.close()
