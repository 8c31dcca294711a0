"""Several clips of a video in training: decoded together, counted one by one."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeVideo
from loading import keys_of, make_set, take

import data.loading.workers
from data.decode import Decoder, Frames
from data.loading.loader import DataConfig, EvalLoader, MixPart, TrainLoader


@pytest.fixture
def several(config: DataConfig) -> DataConfig:
    return dataclasses.replace(config, clips_per_video=3)


def test_clips_of_a_video_are_neighbours_and_differ(config: DataConfig, several: DataConfig) -> None:
    (batch,) = take(TrainLoader(several, batch=72, seed=7), 1)
    (single,) = take(TrainLoader(config, batch=24, seed=7), 1)
    assert batch.keys == [key for key in single.keys for _ in range(3)]
    assert (batch.clips.shape, batch.position) == ((72, 4, 32, 32, 3), 72)
    assert torch.equal(batch.clips[::3], single.clips)
    distinct = [len({clip.numpy().tobytes() for clip in batch.clips[i : i + 3]}) for i in range(0, 72, 3)]
    assert np.mean(distinct) > 2.5


def test_a_video_is_decoded_once_for_all_its_clips(several: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = data.loading.workers.decode_isolated, []

    def decode(video: bytes, indices: list[int], decoder: Decoder, timeout: float) -> Frames:
        asked.append(len(indices))
        return plain(video, indices, decoder, timeout)

    monkeypatch.setattr(data.loading.workers, "decode_isolated", decode)
    take(TrainLoader(several, batch=6, seed=7), 4)
    assert asked == [12] * 8


def test_ranks_workers_and_batches_across_a_video_change_nothing(several: DataConfig) -> None:
    whole = take(TrainLoader(several, batch=20, seed=7), 8)
    pixels = torch.cat([batch.clips for batch in whole])
    for world, workers in ((2, 0), (1, 2), (4, 1)):
        shared = dataclasses.replace(several, workers=workers)
        ranks = [take(TrainLoader(shared, 20 // world, 7, rank, world), 8) for rank in range(world)]
        parts = [ranks[rank][step] for step in range(8) for rank in range(world)]
        assert keys_of(parts) == keys_of(whole)
        assert torch.equal(torch.cat([part.clips for part in parts]), pixels)


def test_resume_in_the_middle_of_a_video_is_exact(several: DataConfig) -> None:
    whole = take(TrainLoader(several, batch=4, seed=1), 20)
    first = TrainLoader(several, batch=4, seed=1)
    take(first, 4)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["position"] == 16
    pair = [TrainLoader(several, batch=2, seed=1, rank=rank, world=2) for rank in range(2)]
    for loader in pair:
        loader.load_state_dict(state)
    ranks = [take(loader, 16) for loader in pair]
    resumed = torch.cat([ranks[rank][step].clips for step in range(16) for rank in range(2)])
    assert torch.equal(resumed, torch.cat([batch.clips for batch in whole[4:]]))
    with pytest.raises(ValueError, match="data clips_per_video is 1, the checkpoint has 3"):
        TrainLoader(dataclasses.replace(several, clips_per_video=1), 4, 1).load_state_dict(state)


def test_a_bad_video_is_replaced_in_all_its_clips(make_video: MakeVideo, tmp_path: Path) -> None:
    meta = json.dumps({"frames": 20, "fps": 12.0}).encode()
    samples = [{"mp4": make_video(frames=20, offset=n), "json": meta} for n in range(6)]
    samples[2]["mp4"] = b"text instead of a video"
    make_set(tmp_path, samples)
    config = DataConfig(
        path=str(tmp_path), frames=4, stride=2, crop=16, workers=0, max_bad_fraction=0.5, clips_per_video=2
    )
    (batch,) = take(TrainLoader(config, batch=12, seed=0), 1)
    assert batch.skipped == {"not a video": ["sample002"] * 2}
    assert sorted(batch.keys.count(f"sample00{n}") for n in (0, 1, 3, 4, 5)) == [2, 2, 2, 2, 4]
    assert batch.keys[::2] == batch.keys[1::2]
    twice = next(key for key in batch.keys if batch.keys.count(key) == 4)
    copies = {batch.clips[i].numpy().tobytes() for i, key in enumerate(batch.keys) if key == twice}
    assert len(copies) > 2  # the replacement's clips are others than the video's own


def test_a_mixture_draws_videos_and_evaluation_stays_as_it_is(config: DataConfig, several: DataConfig) -> None:
    def mixed(one: DataConfig) -> DataConfig:
        return dataclasses.replace(one, path="", mix=[MixPart(config.path, 2), MixPart(config.path, 1, stride=1)])

    single = keys_of(take(TrainLoader(mixed(config), 5, seed=3), 6))
    assert keys_of(take(TrainLoader(mixed(several), 15, seed=3), 6)) == [key for key in single for _ in range(3)]
    plain, same = list(EvalLoader(config, 6)), list(EvalLoader(several, 6))
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(plain, same, strict=True))
    with pytest.raises(ValueError, match="data.clips_per_video must be at least 1"):
        dataclasses.replace(config, clips_per_video=0)
