"""Whatever a video does to a decoder, and whoever kills a process: the run goes on, and the sample has a name."""

import dataclasses
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from conftest import MakeVideo, encode
from loading import keys_of, make_set, take
from PIL import Image

import data.isolation
import data.loading.processes
from data.decode import HAS_DECORD, DecodeError, decode_frames, probe_video
from data.isolation import decode_isolated, probe_isolated, stream_isolated
from data.loading.loader import DataConfig, EvalLoader, TrainLoader
from data.loading.processes import check_shared_memory


def _crash_decord() -> bytes:
    """A video of 24 frames whose table of times promises four thousand million frames."""
    video = encode()
    begin = video.index(b"stts") + 12
    return video[:begin] + struct.pack(">I", 2**32 - 1) + video[begin + 4 :]


def test_frames_are_the_same_on_both_sides_of_the_boundary(make_video: MakeVideo) -> None:
    video = make_video(width=66, height=50)
    for decoder in ("auto", "av"):
        near, far = (decode(video, [3, 3, 20, 7], decoder) for decode in (decode_frames, decode_isolated))
        assert np.array_equal(near, far)
        assert far.flags.writeable
    assert probe_isolated(video) == probe_video(video)
    stamps = [0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 42, 43]
    uneven = make_video(frames=12, stamps=stamps)
    assert probe_isolated(uneven) == probe_video(uneven)
    shown = dict(stream_isolated(video, [2, 9]))
    assert sorted(shown) == [2, 9]
    assert np.array_equal(shown[9], decode_frames(video, [9], "av")[0])


def test_a_refusal_comes_back_with_its_reason(make_video: MakeVideo) -> None:
    for action in (lambda v: decode_isolated(v, [0]), probe_isolated, lambda v: list(stream_isolated(v, [0]))):
        with pytest.raises(DecodeError, match="not a video"):
            action(b"text")
    with pytest.raises(DecodeError, match=r"too few frames.*99"):
        decode_isolated(make_video(), [99])


@pytest.mark.skipif(not HAS_DECORD, reason="only decord crashes")
def test_a_crash_is_a_reason_and_the_next_video_is_read(make_video: MakeVideo) -> None:
    with pytest.raises(DecodeError, match="the decoder crashed: SIG"):
        decode_isolated(_crash_decord(), [0, 5], "decord")
    assert decode_isolated(make_video(), [0], "decord").shape == (1, 48, 64, 3)
    assert decode_isolated(_crash_decord(), [0, 5], "av").shape == (2, 48, 64, 3)


def test_what_takes_too_long_is_ended(make_video: MakeVideo) -> None:
    with pytest.raises(DecodeError, match="timeout: decoding took longer than 0.5 s"):
        decode_isolated(hostile.endless_gif(), [5000], timeout=0.5)
    assert decode_isolated(make_video(), [0]).shape == (1, 48, 64, 3)


def test_a_helper_killed_at_rest_is_replaced_without_a_word(make_video: MakeVideo) -> None:
    decode_isolated(make_video(), [0])
    helper = data.isolation._shared
    assert helper is not None
    assert helper.process is not None
    helper.process.kill()
    helper.process.wait()
    assert decode_isolated(make_video(), [0]).shape == (1, 48, 64, 3)


def test_a_helper_killed_while_it_starts_is_started_again(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = subprocess.Popen, []

    def kill_the_first(*words: Any, **options: Any) -> Any:
        process = start(*words, **options)
        started.append(process)
        if len(started) <= kills:
            process.kill()
        return process

    monkeypatch.setattr(data.isolation.subprocess, "Popen", kill_the_first)
    data.isolation._stop_own()
    kills = 2
    assert decode_isolated(make_video(), [0]).shape == (1, 48, 64, 3)
    data.isolation._stop_own()
    kills = 10
    with pytest.raises(OSError, match="did not start in 3 attempts"):
        decode_isolated(make_video(), [0])


def test_a_helper_killed_at_work_is_a_reason(make_video: MakeVideo) -> None:
    decode_isolated(make_video(), [0])
    helper = data.isolation._shared
    assert helper is not None
    assert helper.process is not None
    threading.Timer(0.5, helper.process.kill).start()
    with pytest.raises(DecodeError, match="the decoder was killed"):
        decode_isolated(hostile.endless_gif(), [5000])
    assert decode_isolated(make_video(), [0]).shape == (1, 48, 64, 3)


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_bombs_are_refused_before_they_are_unpacked() -> None:
    for content in (_png(13_300, 13_300), hostile.gif(16_000, 16_000)):
        for action in (lambda v: decode_frames(v, [0]), probe_video):
            with pytest.raises(DecodeError, match="too large"):
                action(content)


@pytest.mark.skipif(not HAS_DECORD, reason="only decord crashes")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_crash_in_the_loader_is_skipped_counted_and_named(tmp_path: Path, workers: int) -> None:
    meta = json.dumps({"frames": 24, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": encode() if n != 2 else _crash_decord(), "json": meta} for n in range(6)])
    config = DataConfig(path=str(tmp_path), frames=4, stride=2, crop=16, workers=workers, decoder="decord")
    loader = TrainLoader(config, batch=6, seed=0)
    (batch,) = take(loader, 1)
    assert batch.skipped == {"the decoder crashed": ["sample002"]}
    assert len(batch.keys) == 6
    assert loader.tally.skipped == {"the decoder crashed": 1}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_worker_costs_no_batch(config: DataConfig, caplog: pytest.LogCaptureFixture) -> None:
    whole = take(TrainLoader(config, batch=4, seed=3), 12)
    before = set(_children(os.getpid()))
    batches = iter(TrainLoader(dataclasses.replace(config, workers=2), batch=4, seed=3))
    found = [next(batches)]
    for child in set(_children(os.getpid())) - before:
        os.kill(child, signal.SIGKILL)
    found += [next(batches) for _ in range(11)]
    batches.close()
    assert keys_of(found) == keys_of(whole)
    assert all(torch.equal(one.clips, other.clips) for one, other in zip(found, whole, strict=True))
    assert "are restarted" in caplog.text
    ask = EvalLoader(dataclasses.replace(config, workers=2), batch=4)
    seen = []
    for number, batch in enumerate(ask):
        seen += batch.keys
        if not number:
            for child in set(_children(os.getpid())) - before:
                os.kill(child, signal.SIGKILL)
    assert seen == keys_of(list(EvalLoader(config, batch=4)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_cost_no_batch(config: DataConfig) -> None:
    draw, kills, plain = random.Random(0), 0, iter(TrainLoader(config, batch=4, seed=3))
    expected = chain([next(plain)], plain)
    before = set(_children(os.getpid()))  # with the helper of the undisturbed loader, which is not to be killed
    batches = iter(TrainLoader(dataclasses.replace(config, workers=2, max_bad_fraction=1.0), batch=4, seed=3))
    while kills < 50:
        batch, whole = next(batches), next(expected)
        if batch.skipped:
            assert set(batch.skipped) == {"the decoder was killed"}
        else:
            assert batch.keys == whole.keys
            assert torch.equal(batch.clips, whole.clips)
        if draw.random() < 0.5:
            workers = sorted(set(_children(os.getpid())) - before)
            helpers = [child for worker in workers for child in _children(worker)]
            os.kill(draw.choice((*workers, *helpers)), signal.SIGKILL)
            kills += 1


_FAIL = """
import sys
from data.loading.loader import DataConfig, TrainLoader
batches = iter(TrainLoader(DataConfig(path=sys.argv[1], frames=4, crop=16, workers=1), 4, 0))
next(batches)
raise ValueError("with a loader that is still open")
"""


def test_a_process_that_fails_ends_although_its_loader_is_open(config: DataConfig) -> None:
    words = [sys.executable, "-c", _FAIL, config.path]
    ended = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "ValueError: with a loader" in ended.stderr


def test_full_shared_memory_is_named_before_a_run_begins(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_shared_memory(free // 20, 2, str(tmp_path))
    with pytest.raises(OSError, match=r"MB free, 2 workers with 2 batches each .* lower data.workers or the batch"):
        check_shared_memory(free, 2, str(tmp_path))
    check_shared_memory(free, 0, str(tmp_path))


def test_full_shared_memory_is_compared_with_whole_batches_in_evaluation(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(data.loading.processes, "check_shared_memory", lambda size, workers: asked.append(size))
    next(iter(EvalLoader(config, batch=5)))
    assert asked == [5 * config.frames * config.crop**2 * 3]
