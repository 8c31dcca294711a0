"""Crops and flips are one for all frames, within the frame, and repeatable."""

import random

import numpy as np
import torch

from data.loading.augment import Box, crop_resize, random_box, square_boxes


def _frames(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)


def test_random_boxes_keep_inside_and_in_their_ranges() -> None:
    draw = random.Random(0)
    areas = []
    for _ in range(500):
        box = random_box(100, 160, (0.3, 1.0), (0.75, 1.35), draw)
        assert box.top >= 0
        assert box.top + box.height <= 100
        assert box.left >= 0
        assert box.left + box.width <= 160
        assert 0.7 < box.width / box.height < 1.45
        areas.append(box.height * box.width / 16000)
    assert min(areas) > 0.29
    assert max(areas) > 0.6


def test_a_frame_too_long_for_any_box_is_cropped_at_its_centre() -> None:
    assert random_box(10, 1000, (0.9, 1.0), (1.0, 1.0), random.Random(0)) == Box(0, 495, 10, 10)


def test_square_boxes_spread_along_the_long_side() -> None:
    assert [box.left for box in square_boxes(40, 60, 3)] == [0, 10, 20]
    assert [box.top for box in square_boxes(60, 40, 1)] == [10]


def test_a_crop_of_its_own_size_is_not_resampled() -> None:
    frames = _frames()
    out = crop_resize(frames, Box(5, 7, 20, 20), 20)
    assert torch.equal(out, torch.from_numpy(frames[:, 5:25, 7:27]))
    assert torch.equal(crop_resize(frames, Box(5, 7, 20, 20), 20, flip=True), out.flip(2))


def test_resizing_averages_what_it_shrinks() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, :, ::2] = 200
    out = crop_resize(frames, Box(0, 0, 32, 32), 8)
    assert out.shape == (2, 8, 8, 3)
    assert out.dtype == torch.uint8
    assert (out.int() - 100).abs().max() <= 30
    assert abs(float(out.float().mean()) - 100) < 3
