"""Write generated clips as H.264 files in class folders, and as packed shards with a table for each value.

A clip depends only on (kind, config, seed, index), so neither the number of processes nor an interruption changes a
byte. A video with values or arrays has a sidecar next to it, INDEX.json, which `pack` copies into the shards.
T frames, H = W = size pixels.
"""

import csv
import dataclasses
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from data.files import write_bytes
from data.generated.kinds import Clip, Kind, VideoSettings
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack
from data.packing.sources import Source

Progress = Callable[[int, int], None]  # clips done, clips in total
Prepare = Callable[[], object]  # called first in every worker process, such as to import the module of a kind

FEWEST = 48  # clips for one more process: starting an interpreter takes as long as rendering some dozens

_NOTE = ".generated.json"  # records the kind, seed and config of a folder of videos
_UNLABELLED = "clips"  # folder for videos without labels


def encode_clip(frames: npt.NDArray[np.uint8], path_or_buffer: str | Path | io.BytesIO, fps: int, crf: int) -> None:
    """Write frames [T, H, W, 3] as H.264 mp4; the same frames and FFmpeg build give the same bytes."""
    target = path_or_buffer if isinstance(path_or_buffer, io.BytesIO) else str(path_or_buffer)
    with av.open(target, mode="w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        # Slower presets use a macroblock-tree lookahead, whose result on small pictures varies from run to run.
        stream.options = {"crf": str(crf), "preset": "superfast"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class _Job:
    render: Callable[[Any, int, int], Clip]
    classes: tuple[str, ...]
    config: VideoSettings
    folder: Path
    index: int
    seed: int


def write_kind(
    kind: Kind,
    config: VideoSettings,
    folder: Path,
    clips: int,
    seed: int,
    jobs: int = 1,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> None:
    """Write clips 0 ... clips-1 of a kind as folder/<class>/<index>.mp4, with a sidecar for those that have values.

    Existing clips are kept, so an interrupted call continues. A kind that a worker process cannot import by itself
    needs `prepare`. Raises ValueError if the folder was made with another
    kind, seed or config.
    """
    if clips < 1 or seed < 0 or jobs < 1:
        raise ValueError(f"need clips >= 1, seed >= 0, jobs >= 1, got {clips=}, {seed=}, {jobs=}")
    folder, classes = Path(folder), kind.classes(config)
    _claim_folder(folder, clips, {"kind": kind.name, "seed": seed, "config": dataclasses.asdict(config)}, classes)  # type: ignore[call-overload]
    written = {int(path.stem) for path in folder.glob("*/[0-9]*.mp4")}
    missing = [index for index in range(clips) if index not in written]
    done = clips - len(missing)
    for _ in _run([_Job(kind.render, classes, config, folder, index, seed) for index in missing], jobs, prepare):
        done += 1
        if progress is not None:
            progress(done, clips)


def write_set(
    kind: Kind,
    config: VideoSettings,
    output: Path,
    clips: int,
    seed: int,
    jobs: int = 1,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
) -> Manifest:
    """Write clips of a kind to OUTPUT/videos, pack them into OUTPUT/shards, write OUTPUT/values/*.csv for `targets=`.

    Raises ValueError if OUTPUT holds another set.
    """
    output = Path(output)
    write_kind(kind, config, output / "videos", clips, seed, jobs, progress, prepare)
    pack(str(output / "videos"), str(output / "shards"), PackConfig(jobs=jobs if jobs > 1 else 0, strict=True))
    manifest = Manifest.load(str(output / "shards"))
    if manifest.samples != clips:
        raise ValueError(
            f"{output / 'shards'} holds {manifest.samples} clips, {clips} were requested; use a new folder"
        )
    _write_tables(output)
    return manifest


def _write_tables(output: Path) -> None:
    """One table per value with one row per sample, under the keys that the samples have in the shards."""
    tables: dict[str, list[tuple[str, float]]] = {}
    for path in sorted((output / "videos").glob("*/[0-9]*.json"), key=lambda path: path.stem):
        name = path.with_suffix(".mp4").relative_to(output / "videos").as_posix()
        for value, number in json.loads(path.read_text()).get("values", {}).items():
            tables.setdefault(value, []).append((Source(name, name).key, number))
    if tables:
        (output / "values").mkdir(exist_ok=True)
    for value, rows in tables.items():
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerows([("key", "value"), *rows])
        write_bytes(output / "values" / f"{value}.csv", buffer.getvalue().encode())


def _run(jobs: list[_Job], processes: int, prepare: Prepare | None) -> Iterator[None]:
    processes = min(processes, -(-len(jobs) // FEWEST))
    if processes < 2:
        yield from map(_write_video, jobs)
        return
    # Spawned, not forked: a fork would copy locks held by the caller's threads.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), prepare) as pool:
        yield from pool.map(_write_video, jobs, chunksize=8)


def _write_video(job: _Job) -> None:
    clip = job.render(job.config, job.index, job.seed)
    buffer = io.BytesIO()
    encode_clip(clip.frames, buffer, job.config.fps, job.config.crf)
    name = _UNLABELLED if clip.label is None else job.classes[clip.label]
    path = job.folder / name / f"{job.index:06d}.mp4"
    if clip.values or clip.arrays:
        arrays = {name: np.round(array.astype(float), 4).tolist() for name, array in clip.arrays.items()}
        values = {name: float(f"{value:.7g}") for name, value in clip.values.items()}
        content = {"values": values, **arrays}
        write_bytes(path.with_suffix(".json"), (json.dumps(content, separators=(",", ":")) + "\n").encode())
    write_bytes(path, buffer.getvalue())  # after the sidecar, so that every existing video has one


def _claim_folder(folder: Path, clips: int, made: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Create the class folders, after checking that an existing folder was made with the same arguments."""
    note = folder / _NOTE
    wanted: dict[str, Any] = json.loads(json.dumps(made))
    if note.exists():
        found = json.loads(note.read_text())
        if found != wanted:
            raise ValueError(
                f"{folder} was made with {found}, now requested: {wanted}; use another folder or delete it"
            )
    elif any(folder.glob("*/*.mp4")):
        raise ValueError(f"{folder} holds videos but no {_NOTE}; use a new folder")
    surplus = sum(int(path.stem) >= clips for path in folder.glob("*/[0-9]*.mp4"))
    if surplus:
        raise ValueError(f"{folder} holds {surplus} clips beyond the {clips} requested; request more or delete them")
    for name in classes or (_UNLABELLED,):
        (folder / name).mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted, indent=1) + "\n")
