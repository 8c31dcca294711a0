"""Several data sets in one stream, by weight, each with its own clips."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import MakeVideo
from loading import take
from omegaconf import OmegaConf

from data.loading.loader import DataConfig, EvalLoader, MixPart, TrainLoader
from data.loading.plan import BLOCK, Mixture
from data.packing.pack import PackConfig, pack


@pytest.fixture(scope="module")
def other(make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    for number in range(6):
        (folder / f"other{number}.mp4").write_bytes(make_video(frames=20, offset=number))
    pack(str(folder), str(folder / "packed"), PackConfig(jobs=0))
    return folder / "packed"


@pytest.fixture
def mixed(config: DataConfig, other: Path) -> DataConfig:
    parts = [MixPart(config.path, weight=3), MixPart(str(other), weight=1, stride=1)]
    return dataclasses.replace(config, path="", mix=parts)


def test_shares_are_exact_and_each_part_goes_through_its_own_order() -> None:
    mixture = Mixture([3, 1, 0.5], seed=5)
    found = [mixture.find(position) for position in range(2 * BLOCK)]
    assert Counter(part for part, _ in found[:BLOCK]) == {0: 667, 1: 222, 2: 111}
    for part in range(3):
        inner = [number for p, number in found if p == part]
        assert inner == list(range(len(inner)))
    assert [Mixture([3, 1, 0.5], seed=5).find(p) for p in (1500, 3, 999)] == [found[1500], found[3], found[999]]
    with pytest.raises(ValueError, match="under 1/1000"):
        Mixture([10000, 1], 0)


def test_a_mixture_is_the_same_for_any_ranks_and_resumes_exactly(mixed: DataConfig) -> None:
    whole = take(TrainLoader(mixed, 8, seed=2), 6)
    keys = [key for batch in whole for key in batch.keys]
    assert 4 < sum(key.startswith("other") for key in keys) < 22
    ranks = [take(TrainLoader(dataclasses.replace(mixed, workers=1), 4, 2, rank, 2), 6) for rank in range(2)]
    assert [key for step in range(6) for rank in range(2) for key in ranks[rank][step].keys] == keys
    first = TrainLoader(mixed, 8, seed=2)
    take(first, 3)
    second = TrainLoader(mixed, 8, seed=2)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(take(second, 3), whole[3:], strict=True))
    changed = dataclasses.replace(mixed, mix=[mixed.mix[0], dataclasses.replace(mixed.mix[1], weight=2)])
    with pytest.raises(ValueError, match="weights are not those"):
        TrainLoader(changed, 8, seed=2).load_state_dict(first.state_dict())


def test_each_part_has_its_own_clips_and_no_mixed_up_labels(mixed: DataConfig) -> None:
    (batch,) = take(TrainLoader(mixed, 24, seed=2), 1)
    assert set(batch.labels.tolist()) == {-1}  # the two name their classes differently
    spread = batch.clips[..., 20:, 20:, :].float().mean(dim=(2, 3, 4))
    steps = {key: (spread[i].diff()[spread[i].diff() > 0]).median().item() for i, key in enumerate(batch.keys)}
    assert all((step < 12) == key.startswith("other") for key, step in steps.items())


def test_a_mixture_is_written_in_yaml(config: DataConfig) -> None:
    text = f"mix: [{{path: {config.path}, weight: 2}}, {{path: {config.path}, fps: 6.0, scale: [0.5, 1.0]}}]"
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.create(text))
    read = OmegaConf.to_object(merged)
    assert isinstance(read, DataConfig)
    (one, two), (first, second) = read.parts(), (2.0, 1.0)
    assert (one[1], two[1]) == (first, second)
    assert (one[0].fps, two[0].fps, tuple(two[0].scale)) == (None, 6.0, (0.5, 1.0))


def test_wrong_mixtures_are_explained(mixed: DataConfig) -> None:
    with pytest.raises(ValueError, match="not both"):
        TrainLoader(dataclasses.replace(mixed, path="x"), 2, 0)
    with pytest.raises(ValueError, match="weight > 0"):
        MixPart("x", weight=0)
    with pytest.raises(ValueError, match="evaluation takes one data set"):
        EvalLoader(mixed, 2)
