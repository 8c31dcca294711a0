"""Arrays that samples bring along stay with the frames they belong to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encode
from loading import make_set, take

from data.decode import DecodeError
from data.loading.arrays import read_arrays, stack_arrays
from data.loading.batch import DataConfig
from data.loading.loader import TrainLoader
from data.loading.shards import Sample


def sample(**arrays: object) -> Sample:
    mass = {"values": {"mass": arrays.pop("mass")}} if "mass" in arrays else {}
    return Sample("one", b"", "mp4", {**arrays, **mass})


def test_each_alignment_takes_the_rows_that_belong_to_the_clip() -> None:
    whole = sample(actions=[[i, -i] for i in range(9)], states=list(range(10)), mass=2.5)
    wanted = {"actions": "steps", "states": "frames", "mass": "sample"}
    found = read_arrays(whole, wanted, np.array([1, 4, 7]), 10)
    assert found["states"].tolist() == [1, 4, 7]
    assert found["actions"][..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert float(found["mass"]) == 2.5


@pytest.mark.parametrize(
    ("arrays", "indices", "message"),
    [
        ({}, [0, 1], "has no actions"),
        ({"actions": [[0]] * 3}, [0, 1], "one row between consecutive frames is needed, 9 in all, found 3"),
        ({"actions": [[0]] * 9}, [0, 4, 9, 9], "evenly spaced"),
        ({"actions": [["x"]] * 9}, [0, 1], "could not convert"),
        ({"actions": [[1e400]] * 9}, [0, 1], "finite"),
        ({"actions": [[1], [2, 3]]}, [0, 1], "inhomogeneous"),
    ],
)
def test_what_does_not_fit_is_a_bad_sample_that_names_its_key(
    arrays: dict[str, object], indices: list[int], message: str
) -> None:
    with pytest.raises(DecodeError, match=rf"one.*{message}"):
        read_arrays(sample(**arrays), {"actions": "steps"}, np.array(indices), 10)


def test_arrays_of_a_batch_are_stacked_or_refused_by_name() -> None:
    rows = [{"mass": torch.tensor([1.0])}, {"mass": torch.tensor([2.0])}]
    assert stack_arrays(rows)["mass"].tolist() == [[1.0], [2.0]]
    with pytest.raises(ValueError, match=r"mass must have one shape .* \(1,\) and \(2,\)|\(2,\) and \(1,\)"):
        stack_arrays([*rows, {"mass": torch.zeros(2)}])


def test_what_would_break_the_alignment_of_actions_is_refused() -> None:
    config = DataConfig(path="nowhere", arrays={"actions": "steps"}, flip=0.0, scale=(1.0, 1.0))
    for change, message in (
        ({"fps": 4.0}, "data.fps=4.0"), ({"flip": 0.5}, "mirrors"), ({"scale": (0.5, 1.0)}, "data.scale"),
        ({"arrays": {"actions": "stepz"}}, "must be one of frames, steps, sample"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            TrainLoader(replace(config, **change), 2, 0)


def test_an_array_of_another_shape_costs_its_sample_not_the_run(tmp_path: Path) -> None:
    video = encode(frames=4)
    rows = [[[0.0, 1.0]] * 4, [[0.0, 1.0]] * 4, [[0.0]] * 4, [[0.0, 1.0]] * 4]
    metas = [json.dumps({"frames": 4, "fps": 12.0, "states": states}).encode() for states in rows]
    make_set(tmp_path, [{"mp4": video, "json": meta} for meta in metas])
    config = DataConfig(path=str(tmp_path), frames=2, stride=1, crop=16, workers=0, arrays={"states": "frames"})
    (batch,) = take(TrainLoader(config, 4, 0), 1)
    assert batch.skipped == {"malformed array": ["sample002"]}
    assert batch.arrays["states"].shape == (4, 2, 2)
