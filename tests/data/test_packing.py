"""Packing: what goes in comes out, the same whatever happens on the way."""

import argparse
import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import MakeVideo

import data.packing.examine
import data.packing.shardwriter
import launch.commands.pack
from data.decode import HAS_DECORD, DecodeError, decode_frames, probe_video
from data.loading.shards import ShardReader
from data.manifest import Manifest
from data.packing.examine import Task, examine_source, find_decoder
from data.packing.pack import PackConfig, PackReport, _limit, merge_parts, pack, plan_subsets
from data.packing.sources import Listing, Source, list_sources
from data.packing.transcode import TranscodeConfig, transcode_video

QUICK = PackConfig(shard_mb=0.012, jobs=0)


def _contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _samples(folder: Path) -> list[tuple[str, bytes, dict[str, object]]]:
    manifest = Manifest.load(folder)
    reader = ShardReader(manifest)
    samples = [reader.read(s, i) for s, shard in enumerate(manifest.shards) for i in range(shard.samples)]
    reader.close()
    return [(sample.key, sample.video, sample.meta) for sample in samples]


def test_a_folder_is_packed_untouched_with_its_labels(videos: Path, packed: Path) -> None:
    manifest = Manifest.load(packed)
    assert manifest.classes == ["jump", "run", "walk"]
    assert manifest.samples == 24
    assert len(manifest.shards) > 4
    for key, video, meta in _samples(packed):
        source = videos / str(meta["path"])
        assert video == source.read_bytes()
        assert meta["label"] == manifest.classes.index(source.parent.name)
        assert meta["frames"] == probe_video(video).frames
        assert meta["sha256"] == hashlib.sha256(video).hexdigest()
        assert key.startswith("clip_")
    for shard in manifest.shards:
        content = (packed / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    files = ["manifest.json", *(name for s in manifest.shards for name in (s.name, f"{s.name}.index"))]
    assert sorted(path.name for path in packed.iterdir()) == files


def test_webdataset_reads_what_is_packed(packed: Path) -> None:
    import webdataset

    urls = [str(packed / shard.name) for shard in Manifest.load(packed).shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [key for key, _, _ in _samples(packed)]
    assert all(json.loads(sample["json"])["frames"] > 0 and sample["mp4"] for sample in samples)


def test_the_number_of_processes_changes_nothing(videos: Path, packed: Path, tmp_path: Path) -> None:
    pack(str(videos), str(tmp_path), PackConfig(shard_mb=0.012, jobs=2))
    assert _contents(tmp_path) == _contents(packed)


def test_packing_again_changes_nothing_and_other_options_are_refused(videos: Path, tmp_path: Path) -> None:
    pack(str(videos), str(tmp_path), QUICK)
    before = _contents(tmp_path)
    assert pack(str(videos), str(tmp_path), QUICK).samples == 24
    assert _contents(tmp_path) == before
    with pytest.raises(ValueError, match="other options"):
        pack(str(videos), str(tmp_path), PackConfig(shard_mb=5, jobs=0))


def test_keys_survive_odd_names(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video(frames=3)
    names = [
        "a.b.c.mp4",
        "with space.mp4",
        "hash#1.mp4",
        "ümläut 日本.mp4",
        "x/same.mp4",
        "y/same.mp4",
        "same.mp4",
        "-.mp4",
    ]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video)
    pack(str(tmp_path / "in"), str(tmp_path / "out"), QUICK)
    samples = _samples(tmp_path / "out")
    assert sorted(str(meta["path"]) for _, _, meta in samples) == sorted(names)
    assert len({key for key, _, _ in samples}) == len(names)
    assert all(key.isascii() and not set(key) & set(".#/ ") for key, _, _ in samples)


def test_bad_files_are_rejected_with_their_reasons(make_video: MakeVideo, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(make_video())
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("hello " * 100)
    (folder / "half.mp4").write_bytes(make_video()[:900])
    (folder / "gone.mp4").symlink_to(folder / "nowhere")
    report = pack(str(folder), str(tmp_path / "out"), QUICK)
    reasons = {rejection.path: rejection.reason for rejection in report.rejected}
    assert report.samples == 1
    assert set(reasons) == {"empty.mp4", "text.mp4", "half.mp4", "gone.mp4"}
    assert "empty file" in reasons["empty.mp4"]
    assert "cannot be read: No such file" in reasons["gone.mp4"]
    assert {r.path for r in Manifest.load(tmp_path / "out").rejected} == set(reasons)
    with pytest.raises(ValueError, match="4 sources were rejected"):
        pack(str(folder), str(tmp_path / "strict"), PackConfig(jobs=0, strict=True))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no videos found"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"), QUICK)
    (tmp_path / "in" / "a.mp4").write_text("text")
    with pytest.raises(ValueError, match=r"none of 1 sources can be used \(a.mp4"):
        pack(str(tmp_path / "in"), str(tmp_path / "out"), QUICK)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pack(str(tmp_path / "nowhere"), str(tmp_path / "out"), QUICK)


@pytest.mark.parametrize(
    ("name", "text", "classes", "labels"),
    [
        ("a.csv", "path,label\na.mp4,run\nb c.mp4,jump\n", ["jump", "run"], {"a.mp4": 1, "b c.mp4": 0}),
        ("a.csv", 'path,label\na.mp4,"run, fast"\nb c.mp4,\n', ["run, fast"], {"a.mp4": 0, "b c.mp4": None}),
        ("a.tsv", "label\tpath\n1\ta.mp4\n3\tb c.mp4\n", ["0", "1", "2", "3"], {"a.mp4": 1, "b c.mp4": 3}),
        ("a.csv", "a.mp4 2\nb c.mp4 0\n", ["0", "1", "2"], {"a.mp4": 2, "b c.mp4": 0}),
        ("a.csv", "a.mp4,x\nb c.mp4,y\n", ["x", "y"], {"a.mp4": 0, "b c.mp4": 1}),
        ("a.txt", "a.mp4\n\nb c.mp4\n", [], {"a.mp4": None, "b c.mp4": None}),
    ],
)
def test_lists_of_all_kinds_are_read(
    make_video: MakeVideo, tmp_path: Path, name: str, text: str, classes: list[str], labels: dict[str, int | None]
) -> None:
    for video in ("a.mp4", "b c.mp4"):
        (tmp_path / video).write_bytes(make_video(frames=2))
    (tmp_path / name).write_text(text)
    listing = list_sources(str(tmp_path / name))
    assert listing.classes == classes
    assert {source.name: listing.label(source) for source in listing.sources} == labels
    assert all(Path(source.path).is_file() for source in listing.sources)


def test_a_wrong_list_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for text, message in (
        ("path,label\na.mp4\n", "line 2: 2 columns"),
        ("path,start,end\na.mp4,5,3\n", "line 2: need 0 <= start < end"),
        ("path,start\na.mp4,x\n", "line 2: start and end must be numbers of seconds"),
        ("path,labels\na.mp4,x\n", "found labels"),
        ("", "empty"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            list_sources(str(file))


def test_a_pattern_is_a_folder_in_part(videos: Path) -> None:
    listing = list_sources(f"{videos}/*/clip 0*.mp4")
    assert len(listing.sources) == 10
    assert listing.classes == ["jump", "run", "walk"]


def test_held_out_videos_are_the_same_every_time(videos: Path, tmp_path: Path) -> None:
    config = PackConfig(jobs=0, val_fraction=0.3)
    report = pack(str(videos), str(tmp_path), config)
    train, val = (Manifest.load(tmp_path / name) for name in ("train", "val"))
    assert report.samples == 24 == train.samples + val.samples
    assert 2 <= val.samples <= 13
    assert train.classes == val.classes == ["jump", "run", "walk"]
    names = {str(meta["path"]) for _, _, meta in _samples(tmp_path / "val")}
    assert not names & {str(meta["path"]) for _, _, meta in _samples(tmp_path / "train")}
    half = [source for source in list_sources(f"{videos}/run").sources if f"run/{source.name}" in names]
    assert len(half) == len([name for name in names if name.startswith("run/")])


def test_merged_parts_equal_one_run(videos: Path, packed: Path, tmp_path: Path) -> None:
    for part in (2, 3, 1):
        pack(str(videos), str(tmp_path), PackConfig(shard_mb=0.012, jobs=0, part=f"{part}/3"))
        if part == 3:
            with pytest.raises(ValueError, match="2 of 3 parts"):
                merge_parts(str(tmp_path))
    (merged,) = merge_parts(str(tmp_path))
    assert _samples(tmp_path) == _samples(packed)
    assert merged.totals == Manifest.load(packed).totals
    assert merged.made == Manifest.load(packed).made


def test_long_videos_are_split_into_clips(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.mp4").write_bytes(make_video(frames=28, fps=12))
    pack(str(tmp_path / "in"), str(tmp_path / "out"), PackConfig(jobs=0, split=1.0, crf=10))
    samples = _samples(tmp_path / "out")
    assert [meta["frames"] for _, _, meta in samples] == [12, 12]  # the last third of a second is dropped
    assert [(meta["start"], meta["end"]) for _, _, meta in samples] == [(0.0, 1.0), (1.0, 2.0)]
    whole = decode_frames((tmp_path / "in" / "long.mp4").read_bytes(), range(28)).astype(int)
    for number, (_, video, _) in enumerate(samples):
        assert abs(decode_frames(video, range(12)).astype(int) - whole[12 * number : 12 * number + 12]).mean() < 3


def test_parts_of_videos_are_cut_out(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video(frames=24, fps=12))
    (tmp_path / "a.csv").write_text("path,label,start,end\na.mp4,x,0.5,1.0\na.mp4,y,1.5,\na.mp4,z,7,8\n")
    report = pack(str(tmp_path / "a.csv"), str(tmp_path / "out"), PackConfig(jobs=0, order="listed"))
    samples = _samples(tmp_path / "out")
    assert [(meta["class"], meta["frames"]) for _, _, meta in samples] == [("x", 6), ("y", 6)]
    assert [round((decode_frames(v, [0])[0, -5:, -5:].mean() - 20) / 8) for _, v, _ in samples] == [6, 18]
    assert "no frames in the requested part" in report.rejected[0].reason


def test_reencoding_changes_size_and_rate(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video(frames=24, width=128, height=96, fps=12))
    config = PackConfig(jobs=0, short_side=48, fps=6, fast_decode=True)
    pack(str(tmp_path / "a.mp4"), str(tmp_path / "out"), config)
    ((_, video, meta),) = _samples(tmp_path / "out")
    assert (meta["width"], meta["height"], meta["fps"], meta["frames"]) == (64, 48, 6.0, 12)
    numbers = [round((frame[-5:, -5:].mean() - 20) / 8) for frame in decode_frames(video, range(12))]
    assert numbers == list(range(0, 24, 2))


_PACK = """
import sys
from data.packing.pack import PackConfig, pack
print("ready", flush=True)
pack(sys.argv[1], sys.argv[2], PackConfig(shard_mb=0.012, jobs=int(sys.argv[3])))
"""


@pytest.mark.parametrize(("kills", "jobs"), [(3, 0), pytest.param(20, 4, marks=pytest.mark.slow)])
def test_a_killed_packing_goes_on_to_the_same_bytes(
    videos: Path, packed: Path, tmp_path: Path, kills: int, jobs: int
) -> None:
    output, moment = tmp_path / "out", random.Random(0)
    while kills:
        words = [sys.executable, "-c", _PACK, str(videos), str(output), str(jobs)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            process.wait((0.3 + 0.7 * (jobs > 0)) * moment.random())
            assert _contents(output) == _contents(packed)
            shutil.rmtree(output)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills -= 1
        process.stdout.close()
        for path in output.glob("shard*.tar"):
            with tarfile.open(path) as tar:
                assert tar.getnames()
    pack(str(videos), str(output), QUICK)
    assert _contents(output) == _contents(packed)


def test_a_full_disk_is_explained_and_packing_goes_on_later(
    videos: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    plain = data.packing.shardwriter._HashingFile.write

    def write(self: object, content: bytes) -> int:
        nonlocal written
        written += len(content)
        if written > 70_000 and not self._abandoned:  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, content)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(data.packing.shardwriter._HashingFile, "write", write)
        with pytest.raises(OSError, match=r"shard-00000\d.tar: .*No space left on device.*make room"):
            pack(str(videos), str(tmp_path), QUICK)
    assert not list(tmp_path.glob(".shard*"))
    assert not (tmp_path / "manifest.json").exists()
    pack(str(videos), str(tmp_path), QUICK)
    assert _contents(tmp_path) == _contents(packed)


def test_an_unfinished_packing_with_other_options_is_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        pack(str(videos), str(tmp_path), QUICK, _interrupt)
    with pytest.raises(ValueError, match="unfinished packing with other sources or options"):
        pack(str(videos), str(tmp_path), PackConfig(shard_mb=0.02, jobs=0))
    assert pack(str(videos), str(tmp_path), QUICK).samples == 24


def _interrupt(done: int, total: int, samples: int, rejected: int) -> None:
    if done == 10:
        raise KeyboardInterrupt


def test_a_video_that_changes_its_size_is_rejected_or_repaired(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first = make_video(frames=8, container="mpegts", stamps=list(range(8)))
    second = make_video(frames=8, width=96, height=64, container="mpegts", stamps=list(range(8, 16)))
    (tmp_path / "in" / "a.ts").write_bytes(first + second)
    (tmp_path / "in" / "b.mp4").write_bytes(make_video())
    report = pack(str(tmp_path / "in"), str(tmp_path / "out"), QUICK)
    assert [rejection.path for rejection in report.rejected] == ["a.ts"]
    assert "size changes" in report.rejected[0].reason
    assert pack(str(tmp_path / "in"), str(tmp_path / "repaired"), PackConfig(jobs=0, repair=True)).rejected == []
    meta = {str(meta["path"]): (video, meta) for _, video, meta in _samples(tmp_path / "repaired")}
    assert (meta["a.ts"][1]["width"], meta["a.ts"][1]["height"]) == (64, 48)
    assert meta["b.mp4"][0] == (tmp_path / "in" / "b.mp4").read_bytes()  # what is whole stays untouched


def test_containers_that_decord_reads_wrongly_are_left_to_pyav(make_video: MakeVideo) -> None:
    programme = make_video(frames=100, width=160, height=128, codec="mpeg2video", container="mpeg", fps=25)
    info, decoder = find_decoder(programme)
    assert (info.frames, decoder) == (100, "av")
    video = bytearray(make_video(frames=48))
    begin = video.find(b"elst") + 12
    length, start = struct.unpack(">Ii", video[begin : begin + 8])
    struct.pack_into(">Ii", video, begin, length // 2, start + 12288)  # shows only the second of four seconds
    info, decoder = find_decoder(bytes(video))
    assert (info.frames, decoder) == (24, "av")
    assert find_decoder(make_video())[1] == ("auto" if HAS_DECORD else "av")


@pytest.mark.parametrize("pixels", ["yuvj420p", "yuv420p10le"])
def test_reencoding_keeps_the_colours(make_video: MakeVideo, pixels: str) -> None:
    video = make_video(frames=6, pixels=pixels)
    (new,) = transcode_video(video, TranscodeConfig(crf=5))
    assert np.abs(decode_frames(new, [0, 5]).astype(int) - decode_frames(video, [0, 5])).mean() < 2


def test_reencoding_makes_rates_even_and_turns_frames(
    make_video: MakeVideo, rotate_video: Callable[[bytes, int], bytes], frame_number: Callable[[np.ndarray], int]
) -> None:
    (even,) = transcode_video(make_video(frames=5, stamps=[0, 1, 2, 6, 7]), TranscodeConfig(fps=12, crf=5))
    assert [frame_number(frame) for frame in decode_frames(even, range(8))] == [0, 1, 2, 2, 2, 2, 3, 4]
    turned = rotate_video(make_video(width=64, height=128), 90)
    (new,) = transcode_video(turned, TranscodeConfig(crf=5))
    assert np.abs(decode_frames(new, [3]).astype(int) - decode_frames(turned, [3])).mean() < 3


def test_every_label_is_in_both_halves_whatever_the_order() -> None:
    names = [(f"{label}/{number}.mp4", label) for label in ("a", "b", "c") for number in range(2 + 9 * (label == "a"))]
    sources = [Source(name, name, label) for name, label in names] + [Source("d/0.mp4", "d/0.mp4", "d")]
    parts = [Source("a/0.mp4", "a/0.mp4", "a", start, start + 1.0) for start in (0.0, 1.0)]
    for order in (sources, sources[::-1]):
        split = plan_subsets(Listing((*order, *parts), ["a", "b", "c", "d"]), PackConfig(val_fraction=0.2))
        val = {source.name for source in split["val"]}
        counts = [sum(name.startswith(f"{label}/") for name in val) for label in "abc"]
        assert counts == [2, 1, 1]  # of 11, 2 and 2
        assert not val & {source.name for source in split["train"]}
        if order is sources:
            first = val
    assert val == first


def test_each_of_many_labels_of_two_videos_is_in_both_halves() -> None:
    labels = [f"label{number}" for number in range(20)]
    sources = tuple(Source(f"{label}/{n}.mp4", f"{label}/{n}.mp4", label) for label in labels for n in range(2))
    split = plan_subsets(Listing(sources, labels), PackConfig(val_fraction=0.1))
    assert [len({source.label for source in split[half]}) for half in ("train", "val")] == [20, 20]


def test_links_in_circles_and_pipes_are_left_out_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"text")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.mp4")
    assert [source.name for source in list_sources(str(tmp_path)).sources] == ["a/x.mp4"]
    assert "was already read" in caplog.text
    assert "not a regular file" in caplog.text


def test_a_pipe_or_device_in_a_list_is_a_rejection(make_video: MakeVideo, tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(make_video(frames=4))
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "l.txt").write_text("good.mp4\npipe.mp4\nfolder.mp4\n/dev/zero\n")
    report = pack(str(tmp_path / "l.txt"), str(tmp_path / "out"), QUICK)
    assert report.samples == 1
    reasons = {rejection.path: rejection.reason for rejection in report.rejected}
    assert reasons.keys() == {"pipe.mp4", "folder.mp4", "/dev/zero"}
    assert all("cannot be read" in reason for reason in reasons.values())


def test_a_list_that_is_no_text_or_has_odd_labels_is_named(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    for text, message in (
        ("path,label\na\0.mp4,b\n", "zero byte"),
        (f"path,label\n{'x' * 200_000},b\n", "not a readable table"),
        ("path,start,end\na.mp4,nan,\n", "line 2: need 0 <= start < end"),
        ("path,start,end\na.mp4,0,nan\n", "line 2: need 0 <= start < end"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"l.csv.*{message}"):
            list_sources(str(file))
    file.write_text(f"path,label\na.mp4,{'9' * 5000}\nb.mp4,1\n")
    assert list_sources(str(file)).classes == ["1", "9" * 5000]


_LISTING = """
import logging, os, sys
from data.packing.sources import list_sources
logging.basicConfig()
os.setgid(65534), os.setuid(65534)
print([source.name for source in list_sources(sys.argv[1]).sources])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_folder_that_may_not_be_read_is_left_out_in_words(tmp_path: Path) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"text")
    (tmp_path / "closed").chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest's own folders are closed to others
        folder.chmod(folder.stat().st_mode | 0o005)
    words = [sys.executable, "-c", _LISTING, str(tmp_path)]
    ended = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "['open/a.mp4']", ended.stderr
    assert "closed: skipped, the folder cannot be read (Permission denied)" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits only on Linux")
@pytest.mark.parametrize(("size", "fits"), [(3 << 29, True), (3 << 31, False)])
def test_a_worker_of_pack_has_a_memory_limit(size: int, fits: bool) -> None:
    """1.5 GiB fit, 6 GiB do not: the limit is 4 GiB beyond what the process takes by itself."""
    child = os.fork()
    if not child:
        _limit(Task(Source("nowhere.mp4", "nowhere.mp4"), None, None, False))
        try:
            np.empty(size, np.uint8)
        except MemoryError:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if fits else 1)


def test_a_video_that_needs_more_memory_is_a_rejection(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise MemoryError

    (tmp_path / "a.mp4").write_bytes(make_video(frames=2))
    monkeypatch.setattr(data.packing.examine, "probe_video", explode)
    result = examine_source(Task(Source(str(tmp_path / "a.mp4"), "a.mp4"), None, None, False))
    assert result.rejected == "out of memory: more than 4 GiB"


def test_zero_jobs_of_the_command_still_survive_a_crash(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(launch.commands.pack, "pack", lambda *words: seen.append(words[2].jobs) or PackReport())
    parser = argparse.ArgumentParser()
    launch.commands.pack.add_arguments(parser)
    launch.commands.pack.run(parser.parse_args([str(tmp_path), str(tmp_path / "out"), "--jobs", "0"]))
    assert seen == [1], "a worker process, which may die"


@pytest.mark.skipif(not HAS_DECORD, reason="only decord crashes")
def test_a_video_that_crashes_decord_is_packed_for_pyav(make_video: MakeVideo, tmp_path: Path) -> None:
    video = make_video()
    begin = video.index(b"stts") + 12
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(video[:begin] + struct.pack(">I", 2**32 - 1) + video[begin + 4 :])
    report = pack(str(tmp_path / "in"), str(tmp_path / "out"), QUICK)
    ((_, _, meta),) = _samples(tmp_path / "out")
    assert (report.rejected, meta["decoder"]) == ([], "av")


def test_a_cut_off_video_with_an_intact_index_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream: Any = output.add_stream("libx264", rate=12, options={"g": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(48):
            pixels = noise.integers(0, 255, (48, 64, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    video = path.read_bytes()
    assert find_decoder(video)[0].frames == 48
    for share in (0.3, 0.7):
        with pytest.raises(DecodeError, match=r"damaged: only \d+ of 48 frames decode"):
            find_decoder(video[: int(share * len(video))])


def test_frames_years_apart_are_a_rejection_in_words(make_video: MakeVideo) -> None:
    with pytest.raises(DecodeError, match="no frame rate"):
        list(transcode_video(make_video(frames=3, stamps=[0, 1, 10**5]), TranscodeConfig(short_side=32)))


def _open_groups(frames: int, between: int) -> bytes:
    """A video whose frames before each key frame refer to it, and are shown before it."""
    file = io.BytesIO()
    words = f"open-gop=1:keyint={between}:min-keyint={between}:bframes=3:scenecut=0:b-adapt=0:threads=1"
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=12, options={"x264-params": words})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            pixels = np.full((48, 64, 3), 20 + 37 * number % 200, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return file.getvalue()


@pytest.mark.skipif(not HAS_DECORD, reason="PyAV seeks correctly")
@pytest.mark.parametrize("between", [15, 50])
def test_open_groups_are_left_to_pyav(between: int) -> None:
    assert find_decoder(_open_groups(100, between))[1] == "av"


def test_a_hole_is_rejected_with_its_size(make_video: MakeVideo, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    video = _open_groups(100, 10)
    begin = video.index(b"mdat") + 4
    middle = begin + (len(video) - begin) // 3
    (folder / "hole.mp4").write_bytes(video[:middle] + bytes(len(video) // 4) + video[middle + len(video) // 4 :])
    (folder / "good.mp4").write_bytes(make_video())
    (rejection,) = pack(str(folder), str(tmp_path / "shards"), PackConfig(jobs=0)).rejected
    assert rejection.path == "hole.mp4"
    assert re.search(r"damaged: only \d+ of \d+ frames decode", rejection.reason)


def test_a_companion_nested_too_deeply_is_a_rejection(make_video: MakeVideo, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_bytes(make_video())
    (folder / "a.json").write_bytes(b"[" * 100_000)
    (rejection,) = pack(str(folder), str(tmp_path / "shards"), PackConfig(jobs=0)).rejected
    assert rejection.path == "a.mp4"
    assert rejection.reason.startswith("malformed companion")
