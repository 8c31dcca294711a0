"""Which frames a clip takes."""

import numpy as np
import pytest

from data.loading.clips import Timing, choose_frames, segment_centres


def test_a_stride_takes_every_nth_frame() -> None:
    timing = Timing(frames=20, fps=10)
    assert choose_frames(timing, 4, 3, 0, where=0.0).tolist() == [0, 3, 6, 9]
    assert choose_frames(timing, 4, 3, 0, where=1.0).tolist() == [10, 13, 16, 19]


def test_every_start_is_equally_likely() -> None:
    timing = Timing(frames=13, fps=10)
    starts = [int(choose_frames(timing, 4, 3, 0, where)[0]) for where in np.linspace(0, 1, 4000, endpoint=False)]
    assert np.bincount(starts).tolist() == [1000, 1000, 1000, 1000]


def test_a_short_video_repeats_its_last_frame() -> None:
    assert choose_frames(Timing(5, 10), 4, 2, 0, where=0.9).tolist() == [0, 2, 4, 4]
    assert choose_frames(Timing(1, 10), 3, 2, 5.0, where=0.9).tolist() == [0, 0, 0]


def test_a_slow_video_repeats_frames_at_a_higher_rate() -> None:
    assert choose_frames(Timing(10, fps=5), 6, 1, 10.0, where=0.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_fast_video_is_thinned_out() -> None:
    assert choose_frames(Timing(100, fps=30), 4, 1, 10.0, where=0.0).tolist() == [0, 3, 6, 9]


def test_variable_rates_are_taken_by_time_stamp() -> None:
    timing = Timing(5, fps=5, times=(0.0, 0.1, 0.2, 0.9, 1.0))
    assert choose_frames(timing, 5, 1, 4.0, where=0.0).tolist() == [0, 2, 2, 2, 4]


def test_no_index_leaves_the_video() -> None:
    for frames in (1, 2, 7, 40):
        for fps in (0.0, 3.0, 29.97, 120.0):
            for where in (0.0, 0.3, 0.999999999, 1.0):
                indices = choose_frames(Timing(frames, 29.97), 16, 4, fps, where)
                assert indices.min() >= 0
                assert indices.max() < frames
                assert (np.diff(indices) >= 0).all()


def test_segments_lie_evenly() -> None:
    assert segment_centres(1) == [0.5]
    assert segment_centres(2) == [0.25, 0.75]


def test_time_stamps_must_match_the_frames() -> None:
    with pytest.raises(ValueError, match="has 2 time stamps"):
        Timing(3, 10, (0.0, 0.1))


def test_a_frame_is_shown_from_its_time_until_the_next_ones() -> None:
    even, uneven = Timing(4, 2.0), Timing(3, 2.0, (0.0, 0.1, 1.0))
    assert even.shown_at().tolist() == [0.0, 0.5, 1.0, 1.5]
    assert (even.end(), uneven.end()) == (2.0, 1.5)
    for timing in (even, uneven):
        assert timing.frames_at(timing.shown_at()).tolist() == list(range(timing.frames))
    assert uneven.frames_at(np.array([-1.0, 0.09, 0.11, 0.9, 7.0])).tolist() == [0, 0, 1, 1, 2]
