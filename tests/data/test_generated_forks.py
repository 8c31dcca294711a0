"""One past, two futures: nothing before the fork tells them apart."""

import numpy as np
import pytest

from data.generated.forks import ForksConfig, render_forks


def test_the_two_futures_of_a_scene_share_its_past_and_part_after_it() -> None:
    config = ForksConfig(size=48, flicker=0.02)
    for scene in range(12):
        left, right = (render_forks(config, 2 * scene + branch, 3) for branch in (0, 1))
        assert (left.label, right.label) == (0, 1)
        np.testing.assert_array_equal(left.frames[:8], right.frames[:8])
        assert (left.frames[10:] != right.frames[10:]).any((1, 2, 3)).all()


def test_the_ball_is_out_of_sight_when_the_ways_part() -> None:
    for scene in range(12):
        frames = render_forks(ForksConfig(size=64), 2 * scene, 5).frames.astype(int)
        assert np.abs(frames[7] - frames[8]).max() == 0  # hidden in both, so nothing moves
        assert np.abs(frames[0] - frames[7]).max() > 20  # it was to be seen before


def test_a_branch_goes_to_its_side() -> None:
    for index in range(12):
        frames = render_forks(ForksConfig(size=64), index, 4).frames.astype(int)
        moved = np.abs(frames[12] - frames[7]).sum(2).sum(0)
        centre = np.arange(64) @ moved / moved.sum()
        assert (centre > 32) == bool(index % 2)


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="frames must be at least 8"):
        ForksConfig(frames=6)
