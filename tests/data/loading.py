"""What tests of the loader share: taking batches, and data sets written by hand."""

import io
import tarfile
from pathlib import Path

from data.loading.loader import Batch, TrainLoader
from data.manifest import Manifest, Shard


def take(loader: TrainLoader, steps: int) -> list[Batch]:
    """The next batches, and an end to the workers."""
    iterator = iter(loader)
    batches = [next(iterator) for _ in range(steps)]
    iterator.close()  # type: ignore[attr-defined]
    return batches


def keys_of(batches: list[Batch]) -> list[str]:
    """All keys in their order."""
    return [key for batch in batches for key in batch.keys]


def make_set(folder: Path, samples: list[dict[str, bytes]]) -> None:
    """A data set of one shard, written by hand."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(samples):
            for extension, content in members.items():
                info = tarfile.TarInfo(f"sample{number:03d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    Manifest(str(folder), (Shard(path.name, len(samples), path.stat().st_size, ""),)).save()
