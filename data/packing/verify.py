"""Check a packed data set against its manifest: checksums of all shards, and a few decoded samples of each."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.decode import DecodeError, Frames
from data.isolation import decode_isolated
from data.loading.clips import choose_frames
from data.loading.remote import hash_file
from data.loading.shards import Sample, ShardReader, choose_decoder, read_timing
from data.manifest import Manifest


def verify_shards(manifest: Manifest, decode: int = 4, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Problems found, each naming its shard: size, checksum, sample count, and `decode` decoded samples per shard."""
    problems: list[str] = []
    reader = ShardReader(manifest, keep=1)
    for number, shard in enumerate(manifest.shards):
        path = Path(manifest.folder) / shard.name
        try:
            if shard.sha256 and path.is_file() and hash_file(path) != shard.sha256:
                problems.append(f"{path}: the content has changed, its sha256 is not the one in the manifest")
            for index in spread(shard.samples, decode):
                problem = _check_sample(reader, number, index)
                if problem:
                    problems.append(f"{path}: {problem}")
        except (OSError, ValueError) as error:
            problems.append(str(error))
        if progress is not None:
            progress(number + 1, len(manifest.shards))
    reader.close()
    return problems


def draw_contact_sheet(manifest: Manifest, rows: int = 8, columns: int = 6, side: int = 128) -> Image.Image:
    """A picture of `rows` samples spread over the data set, each with `columns` frames spread over its length."""
    caption = 14
    sheet = Image.new("RGB", (columns * side, rows * (side + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    reader = ShardReader(manifest)
    for row, (shard, index) in enumerate(_spread_samples(manifest, rows)):
        top = row * (side + caption)
        try:
            sample = reader.read(shard, index)
            frames = _spread_frames(sample, columns)
            label = sample.meta.get("class")
            text = f"{sample.key}  {label if label is not None else ''}"[:200]
        except DecodeError as error:
            frames, text = None, f"not readable: {error}"[:200]
        pen.text((2, top + 1), text.encode("ascii", "replace").decode(), fill="black")
        for column in range(columns if frames is not None else 0):
            picture = Image.fromarray(frames[column])  # type: ignore[index]  # None has no columns
            picture.thumbnail((side - 2, side - 2))
            sheet.paste(picture, (column * side + 1, top + caption))
    reader.close()
    return sheet


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` evenly spaced integers below `count`, including the first and the last."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()))


def _spread_samples(manifest: Manifest, wanted: int) -> Iterator[tuple[int, int]]:
    starts = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    for position in spread(manifest.samples, wanted):
        shard = int(np.searchsorted(starts, position, side="right")) - 1
        yield shard, position - int(starts[shard])


def _check_sample(reader: ShardReader, shard: int, index: int) -> str:
    key = reader.key(shard, index)
    try:
        _spread_frames(reader.read(shard, index), 3)
    except DecodeError as error:
        return f"sample {key}: {error}"
    return ""


def _spread_frames(sample: Sample, wanted: int) -> Frames:
    timing = read_timing(sample)
    indices: Sequence[int] = choose_frames(
        timing, wanted, max((timing.frames - 1) // max(wanted - 1, 1), 1), 0, 0
    ).tolist()
    return decode_isolated(sample.video, indices, choose_decoder(sample))
