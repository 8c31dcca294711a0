"""Two Rooms: walls stop, layouts are split, the dot is where it should be, the interface is gymnasium's."""

import io
import subprocess
import sys

import av
import numpy as np
import pytest

from data.generated.rooms import DOORS, WALLS, Layout, RoomsConfig, find_dot, is_free, is_held_out, move, render_rooms
from data.generated.rooms_env import TwoRooms, make_gymnasium_class
from data.generated.videos import encode_clip


def test_nothing_goes_through_a_wall() -> None:
    random, layout = np.random.default_rng(0), Layout(32, 30)
    position = random.uniform(5, 28, (500, 2))
    for _ in range(40):
        position = move(position, np.array([1.0, 0.0]), layout)
        assert is_free(position, layout).all()
    through = position[:, 0] > 32
    assert 0 < through.sum() < 500
    assert (np.abs(position[through, 1] - 30) <= 5).all()
    assert np.allclose(position[~through, 0], 32 - 3.5, atol=0.01)


def test_a_diagonal_move_stops_at_the_wall_and_does_not_slide() -> None:
    end = move(np.array([27.0, 20.0]), np.array([0.6, 0.8]), Layout(32, 45))
    np.testing.assert_allclose(end, [28.5, 22.0], atol=0.01)


def test_a_long_action_is_shortened_to_four_pixels() -> None:
    np.testing.assert_allclose(move(np.array([10.0, 10.0]), np.array([3.0, 4.0]), Layout(40, 30)), [12.4, 13.2])


def test_a_fifth_of_the_layouts_is_held_out() -> None:
    held = [is_held_out("random", w, d) for w in range(WALLS[0], WALLS[1] + 1) for d in range(DOORS[0], DOORS[1] + 1)]
    assert sum(held) * 5 == len(held)
    assert sum(is_held_out("fixed", 32, door) for door in range(DOORS[0], DOORS[1] + 1)) == 9
    for index in range(30):
        values = render_rooms(RoomsConfig(split="held_out"), index, 0).values
        assert is_held_out("random", int(values["wall"]), int(values["door"]))


def test_walks_follow_their_actions_and_h264_keeps_the_dot() -> None:
    for index in range(6):
        clip = render_rooms(RoomsConfig(), index, 0)
        states, actions = clip.arrays["states"], clip.arrays["actions"]
        layout = Layout(clip.values["wall"], clip.values["door"])
        np.testing.assert_allclose(move(states[:-1], actions, layout), states[1:])
        buffer = io.BytesIO()
        encode_clip(clip.frames, buffer, 8, 20)
        buffer.seek(0)
        with av.open(buffer) as video:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        assert np.linalg.norm(find_dot(decoded) - states, axis=-1).max() < 0.8


def test_an_episode_repeats_from_its_seed_and_ends_after_48_actions() -> None:
    rooms = TwoRooms(split="held_out", render_mode="rgb_array")
    first, info = rooms.reset(seed=7)
    again, same = rooms.reset(seed=7)
    np.testing.assert_array_equal(first, again)
    assert info["layout"] == same["layout"]
    assert (info["position"][0] - info["layout"][0]) * (info["goal"][0] - info["layout"][0]) < 0  # different rooms
    ends = [rooms.step(np.zeros(2))[3] for _ in range(48)]
    assert ends == [False] * 47 + [True]
    rooms.reset(options={"layout": (32, 30), "position": (10, 10), "goal": (13, 10)})
    _, reward, _, _, info = rooms.step(np.array([0.5, 0.0]))
    assert reward == 1 and info["success"] and info["distance"] == pytest.approx(1)  # noqa: PT018


def test_the_module_does_not_import_gymnasium() -> None:
    program = "import sys, data.generated.rooms_env; assert 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_gymnasium_accepts_the_adapter() -> None:
    checker = pytest.importorskip("gymnasium.utils.env_checker")
    checker.check_env(make_gymnasium_class()(render_mode="rgb_array"), skip_render_check=True)
