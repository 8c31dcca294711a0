"""Local views: their size, their share of the frame, their colours, and that clips without them stay as they were."""

import colorsys
import dataclasses
import random

import numpy as np
import pytest
import torch
from loading import take

from data.loading.colour import jitter, to_grey, turn_hue
from data.loading.loader import DataConfig, TrainLoader
from data.loading.local import LocalConfig, draw_views

PLAIN = LocalConfig(count=3, crop=16, jitter=0.0, grey=0.0, flip=0.0)


def frames_of(t: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (t, height, width, 3), dtype=np.uint8)


def test_views_are_crops_of_all_frames_alike_and_follow_from_their_generator() -> None:
    frames = np.repeat(frames_of(1), 4, 0)
    views = draw_views(frames, LocalConfig(count=5, crop=16), random.Random(3))
    assert views.shape == (5, 4, 16, 16, 3)
    assert views.dtype == torch.uint8
    assert (views == views[:, :1]).all(), "all frames of a view are changed alike"
    assert torch.equal(views, draw_views(frames, LocalConfig(count=5, crop=16), random.Random(3)))
    assert not torch.equal(views, draw_views(frames, LocalConfig(count=5, crop=16), random.Random(4)))
    assert not torch.equal(views[0], views[1])


def test_a_view_shows_the_asked_share_of_the_frame() -> None:
    """A frame that says where it is: red along the width, green along the height."""
    y, x = np.mgrid[0:200, 0:200]
    frame = np.stack([x, y, np.zeros_like(x)], 2).astype(np.uint8)[None]
    areas = []
    for seed in range(200):
        view = draw_views(frame, dataclasses.replace(PLAIN, count=1, crop=64), random.Random(seed))[0, 0].float()
        red, green = view[..., 0], view[..., 1]
        areas.append(float((red.max() - red.min()) * (green.max() - green.min())) / 200**2)
    assert 0.01 < min(areas) < 0.05
    assert 0.3 < max(areas) < 0.42


def test_shares_of_changed_colours_grey_and_flipped_views_are_the_published_ones() -> None:
    frames = frames_of(1, 64, 64)
    config = LocalConfig(count=400, crop=16, scale=(1.0, 1.0), aspect=(1.0, 1.0))
    whole = dataclasses.replace(PLAIN, count=1, scale=(1.0, 1.0), aspect=(1.0, 1.0))
    plain = draw_views(frames, whole, random.Random(0))[0]
    views = draw_views(frames, config, random.Random(0))
    grey = (views[..., 0] == views[..., 1]).flatten(1).all(1)
    same = torch.stack([(view == plain).all() | (view == plain.flip(2)).all() for view in views])
    assert grey.float().mean() == pytest.approx(0.2, abs=0.05)
    assert same.float().mean() == pytest.approx(0.2 * 0.8, abs=0.05)
    mirrored = torch.stack([(view == plain.flip(2)).all() for view in views[same]])
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.17)


def test_a_turned_hue_is_that_of_colorsys() -> None:
    pixels = torch.rand(1, 6, 6, 3, generator=torch.Generator().manual_seed(0))
    pixels[0, 0, 0] = 0.5  # grey has no hue
    for shift in (-0.3, 0.1, 0.45):
        found = turn_hue(pixels, shift)
        for before, after in zip(pixels.view(-1, 3).tolist(), found.view(-1, 3).tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), abs=1e-5)
    torch.testing.assert_close(turn_hue(pixels, 0.0), pixels)


def test_each_change_of_colour_is_that_of_torchvision() -> None:
    reference = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    planes = pixels.permute(0, 3, 1, 2)

    class Fixed(random.Random):
        """The largest change of one kind alone, in the given order."""

        def uniform(self, a: float, b: float) -> float:
            return b

        def sample(self, population: range, k: int) -> list[int]:  # type: ignore[override]
            return list(range(k))

    for number, change in enumerate(
        (
            lambda x: reference.adjust_brightness(x, 1.4),
            lambda x: reference.adjust_contrast(x, 1.4),
            lambda x: reference.adjust_saturation(x, 1.2),
            lambda x: reference.adjust_hue(x, 0.1),
        )
    ):
        strengths = [0.0] * 4
        strengths[number] = (0.4, 0.4, 0.2, 0.1)[number]
        found = jitter(pixels, Fixed(), tuple(strengths))  # type: ignore[arg-type]
        torch.testing.assert_close(found, change(planes).permute(0, 2, 3, 1), atol=2e-3, rtol=0)
    torch.testing.assert_close(to_grey(pixels)[..., 0], reference.rgb_to_grayscale(planes)[:, 0], atol=2e-3, rtol=0)


def test_a_batch_brings_its_views_and_the_clips_are_those_without_them(config: DataConfig) -> None:
    local = dataclasses.replace(config, local=LocalConfig(count=2, crop=16))
    with_views, without = take(TrainLoader(local, 4, seed=1), 2), take(TrainLoader(config, 4, seed=1), 2)
    for one, other in zip(with_views, without, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert one.arrays["local"].shape == (4, 2, config.frames, 16, 16, 3)
        assert one.arrays["local"].dtype == torch.uint8
        assert not other.arrays
    resumed = TrainLoader(local, 4, seed=1, position=4)
    (second,) = take(resumed, 1)
    assert torch.equal(second.arrays["local"], with_views[1].arrays["local"])
    assert local.clip_bytes() == config.clip_bytes() + 2 * config.frames * 16 * 16 * 3


def test_settings_that_cannot_be_meant_are_refused(config: DataConfig) -> None:
    for values, message in (
        ({"count": 0}, "data.local.count and data.local.crop must be at least 1"),
        ({"scale": (0.5, 1.5)}, "data.local.scale must satisfy"),
        ({"grey": 1.5}, r"data.local.grey must lie in \[0, 1\], got 1.5"),
        ({"hue": 0.7}, r"hue lie in \[0, 0.5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not have the name 'local'"):
        dataclasses.replace(config, local=LocalConfig(), arrays={"local": "frames"})
