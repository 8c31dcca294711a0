"""V-JEPA's evaluation views and training augmentation by name, against numbers from its public protocol."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from data.loading.augment import square_boxes
from data.loading.clips import Timing, choose_frames, choose_published
from data.loading.randaugment import ALTERATIONS, erase, rand_augment


@pytest.mark.parametrize(("fps", "seconds"), [(30, 3.70), (25, 3.80), (24, 3.96), (60, 3.98)])
def test_sixteen_published_frames_at_4_fps_span_a_whole_stride_and_ours_the_exact_time(
    fps: float, seconds: float
) -> None:
    timing = Timing(20 * fps, fps)
    found = choose_published(timing, 16, 1, 4.0, 1)[0]
    assert found[0] == 0
    assert (found[-1] - found[0]) / fps == pytest.approx(seconds, abs=0.005)
    exact = choose_frames(timing, 16, 1, 4.0, 0.0)
    assert (exact[-1] - exact[0]) / fps == pytest.approx(3.75, abs=1 / fps)


def test_published_segments_begin_with_their_part_of_the_video() -> None:
    first, second = choose_published(Timing(300, 29.97), 16, 4, 0.0, 2)
    assert first.tolist() == [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    assert second.tolist() == [150 + index for index in first]
    drawn = [choose_published(Timing(300, 30), 16, 4, 0.0, 2, random.Random(seed))[1][0] for seed in range(200)]
    assert 150 <= min(drawn) < 160
    assert 220 < max(drawn) < 236


def test_published_segments_of_a_short_video_overlap_evenly() -> None:
    first, second = choose_published(Timing(80, 30), 16, 4, 0.0, 2)
    assert second[0] == 16
    assert (second - first).tolist() == [16] * 16
    assert (first[-1], len(first)) == (62, 16)
    for frames in (1, 2, 5, 63, 64, 65):
        for clip in choose_published(Timing(frames, 30), 16, 4, 0.0, 3):
            assert len(clip) == 16
            assert 0 <= clip.min() <= clip.max() < frames
    assert choose_published(Timing(10, 2), 4, 1, 4.0, 1)[0].tolist() == [0, 1, 2, 3], "slower than the wanted rate"


def test_the_published_square_is_224_of_256_of_the_short_side() -> None:
    (box,) = square_boxes(480, 640, 1, published=True)
    assert (box.height, box.width, box.top, box.left) == (420, 420, 30, 110)
    assert square_boxes(480, 640, 3, published=True) == square_boxes(480, 640, 3)


def still(t: int = 3, side: int = 40) -> np.ndarray:
    frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.stack([frame] * t)


def test_rand_augment_alters_all_frames_alike_and_follows_from_its_generator() -> None:
    frames = still()
    results = [rand_augment(frames, random.Random(seed)) for seed in range(30)]
    for seed, found in enumerate(results):
        assert found.shape == frames.shape
        assert found.dtype == np.uint8
        assert (found == found[:1]).all()
        assert np.array_equal(found, rand_augment(frames, random.Random(seed)))
    unchanged = sum(np.array_equal(found, frames) for found in results)
    assert 0 < unchanged < 10, "each of four operations is applied half of the time: 1 in 16, and some change little"


def test_there_are_fifteen_operations_and_each_changes_a_picture() -> None:
    assert len(ALTERATIONS) == 15
    ramp = np.linspace(30, 200, 40).astype(np.uint8)
    planes = [ramp[None] + ramp[:, None] // 4, np.tile(ramp, (40, 1)), np.full((40, 40), 90)]
    pixels = np.stack(planes, 2).astype(np.uint8)
    pixels[18:22, 18:22] = 250  # an edge to sharpen
    image = Image.fromarray(pixels)
    for number, (alter, _) in enumerate(ALTERATIONS):
        assert np.asarray(alter(image, 0.7)).shape == (40, 40, 3)
        assert not np.array_equal(np.asarray(alter(image, 0.7)), np.asarray(image)), number


def test_a_quarter_of_the_clips_lose_a_box_of_the_published_size() -> None:
    frames = torch.from_numpy(still(2, 64))
    shares = []
    for seed in range(600):
        changed = (erase(frames, random.Random(seed)) != frames).any(-1)
        if changed.any():
            shares.append(float((changed[0] | changed[1]).float().mean()))
    assert len(shares) / 600 == pytest.approx(0.25, abs=0.05)
    assert min(shares) > 0.015
    assert max(shares) < 0.36
