"""Views of an evaluation set: fixed ones, random ones that repeat, and batches made to order."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeVideo
from loading import make_set

import data.loading.workers
from data.decode import Decoder, Frames
from data.loading.batch import Batch
from data.loading.loader import DataConfig, EvalLoader, Request, Views

RANDOM = Views(segments=2, augmented=3, flip=0.5, seed=4)


def pixels(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {key: clip for batch in batches for key, clip in zip(batch.keys, batch.clips, strict=True)}


def test_random_views_depend_on_seed_view_and_sample_alone(config: DataConfig) -> None:
    whole = pixels(list(EvalLoader(config, 5, RANDOM)))
    assert whole[min(whole)].shape == (3 * 2, 4, 32, 32, 3)
    shared = dataclasses.replace(config, workers=2)
    ranks = [list(EvalLoader(shared, 3, RANDOM, rank, 2)) for rank in range(2)]
    assert all(torch.equal(clip, whole[key]) for part in ranks for key, clip in pixels(part).items())
    more = pixels(list(EvalLoader(config, 5, dataclasses.replace(RANDOM, augmented=4))))
    assert all(torch.equal(more[key][:6], clip) for key, clip in whole.items()), "further epochs leave the first ones"
    other = pixels(list(EvalLoader(config, 5, dataclasses.replace(RANDOM, seed=5))))
    assert all(not torch.equal(other[key], clip) for key, clip in whole.items())
    assert all(len({view.numpy().tobytes() for view in clip.unflatten(0, (3, 2))}) == 3 for clip in whole.values())


def test_segments_of_a_random_view_share_the_crop_and_lie_in_their_part_of_the_time(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = data.loading.workers.decode_isolated, []

    def decode(video: bytes, indices: list[int], decoder: Decoder, timeout: float) -> Frames:
        asked.append(list(indices))
        return plain(video, indices, decoder, timeout)

    monkeypatch.setattr(data.loading.workers, "decode_isolated", decode)
    meta = json.dumps({"frames": 28, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": make_video(frames=28), "json": meta}])
    config = DataConfig(path=str(tmp_path), frames=4, stride=1, crop=32, workers=0)
    views = Views(segments=4, augmented=20, scale=(0.1, 0.4))
    (batch,) = EvalLoader(config, 1, views)
    starts = np.array([indices[::4] for indices in asked])  # [20 views, 4 segments] of 25 possible starts
    assert starts.shape == (20, 4)
    assert (np.diff(starts, axis=1) >= 0).all()
    for segment in range(4):
        assert len(set(starts[:, segment])) > 2
        assert starts[:, segment].min() >= 25 * segment / 4 - 1
        assert starts[:, segment].max() <= 25 * (segment + 1) / 4
    reds = (batch.clips[0, ..., 0].float() - batch.clips[0, ..., 1].float() > 60).float().mean((1, 2, 3))
    red = reds.unflatten(0, (20, 4))  # the red corner stands still: how much of it is seen is a matter of the crop
    assert (red.max(1).values - red.min(1).values).max() < 0.02
    assert len(set(red[:, 0].tolist())) > 3


def test_a_view_asked_for_alone_is_the_one_among_all(config: DataConfig) -> None:
    for views in (Views(segments=2, crops=3), RANDOM):
        loader = EvalLoader(config, 4, views)
        (whole,) = loader.read([Request([3, 17, 5])])
        (some, rest) = loader.read([Request([17, 5, 17], [2, 0, 1]), Request([3], [2])])
        apart = whole.clips.unflatten(1, (3, 2))
        assert torch.equal(some.clips, torch.stack([apart[1, 2], apart[2, 0], apart[1, 1]]))
        assert torch.equal(rest.clips[0], apart[0, 2])
        assert (some.indices, rest.indices) == ([17, 5, 17], [3])


def test_every_request_is_answered_in_order_and_asked_for_late(make_video: MakeVideo, tmp_path: Path) -> None:
    meta = json.dumps({"frames": 12, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": make_video(frames=12) if n % 3 else b"text", "json": meta} for n in range(12)])
    asked = []

    def requests() -> list[Request]:  # type: ignore[misc]
        for start in range(0, 12, 3):
            asked.append(start)
            yield Request([start])
            yield Request([start + 2, start + 1, start])

    for workers in (0, 2):
        asked.clear()
        config = DataConfig(path=str(tmp_path), frames=4, crop=16, workers=workers, max_bad_fraction=1.0)
        answers = EvalLoader(config, 4).read(requests())
        first = next(answers)
        assert not first.keys
        assert first.skipped == {"not a video": ["sample000"]}
        assert len(asked) < 4, "what is not needed yet is not asked for"
        indices = [batch.indices for batch in answers]
        assert indices == [[2, 1], [], [5, 4], [], [8, 7], [], [11, 10]]


def test_impossible_views_name_the_field() -> None:
    for words, views in (("views.scale", {"scale": (0.5, 2.0)}), ("views.flip", {"flip": 2.0})):
        with pytest.raises(ValueError, match=words):
            Views(**views)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"views.augmented not negative, got 1, 1, -1"):
        Views(augmented=-1)
