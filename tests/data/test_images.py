"""Images beside clips: each step has its share of both, whoever reads them."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import make_set, take
from PIL import Image

from data.loading.batch import Batch
from data.loading.groups import ImageConfig, divide
from data.loading.loader import DataConfig, MixPart, TrainLoader


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten JPEG files, packed."""
    folder, samples = tmp_path_factory.mktemp("pictures"), []
    for number in range(10):
        file = io.BytesIO()
        Image.fromarray(np.full((40, 56, 3), 20 * number, np.uint8)).save(file, "JPEG")
        samples.append({"jpg": file.getvalue()})
    make_set(folder, samples)
    return folder


@pytest.fixture
def mixed(config: DataConfig, pictures: Path) -> DataConfig:
    parts = [MixPart(config.path), MixPart(str(pictures), images=True, flip=0.0)]
    return dataclasses.replace(config, path="", mix=parts, images=ImageConfig(share=0.25, crop=16))


def rows(batches: list[Batch]) -> dict[int, bytes]:
    """Pixels of every clip and image by stream position."""
    found = {}
    for batch in batches:
        for group in (batch, *batch.groups.values()):
            for number, pixels in enumerate(group.clips):
                assert group.first is not None
                assert group.first + number not in found
                found[group.first + number] = pixels.numpy().tobytes()
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_clips_and_a_group_of_images(mixed: DataConfig, workers: int) -> None:
    first, second = take(TrainLoader(dataclasses.replace(mixed, workers=workers), 8, seed=2), 2)
    assert list(first.clips.shape) == [6, 4, 32, 32, 3]
    assert list(first.groups["images"].clips.shape) == [2, 1, 16, 16, 3]
    assert all(key.startswith("sample") for key in first.groups["images"].keys)
    assert not any(key.startswith("sample") for key in first.keys)
    assert (first.position, first.first, first.groups["images"].first) == (8, 0, 6)
    assert (second.position, second.first, second.groups["images"].first) == (16, 8, 14)


def test_every_image_and_every_clip_comes_once_an_epoch(mixed: DataConfig) -> None:
    batches = take(TrainLoader(mixed, 8, seed=2), 5)
    images = [key for batch in batches for key in batch.groups["images"].keys]
    assert len(set(images)) == 10
    clips = [key for batch in batches[:4] for key in batch.keys]
    assert len(set(clips)) == 24


def test_mixed_by_rank_or_not_the_samples_of_a_step_are_the_same(mixed: DataConfig) -> None:
    whole = rows(take(TrainLoader(mixed, 16, seed=2), 3))
    assert sorted(whole) == list(range(48))
    for ranks in (None, 0.25, 0.5):
        config = dataclasses.replace(mixed, images=dataclasses.replace(mixed.images, ranks=ranks))  # type: ignore[arg-type]
        parts = [take(TrainLoader(config, 4, 2, rank, 4), 3) for rank in range(4)]
        kinds = [(len(batch.keys) > 0, "images" in batch.groups) for batch in (part[0] for part in parts)]
        apart = 4 if ranks is None else 4 - round(4 * ranks)
        assert kinds == (
            [(True, True)] * 4 if ranks is None else [(True, False)] * apart + [(False, True)] * (4 - apart)
        )
        assert rows([batch for part in parts for batch in part]) == whole


def test_images_and_clips_resume_exactly(mixed: DataConfig) -> None:
    whole = take(TrainLoader(mixed, 8, seed=2), 5)
    first = TrainLoader(mixed, 8, seed=2)
    take(first, 2)
    second = TrainLoader(mixed, 8, seed=2)
    second.load_state_dict(first.state_dict())
    assert rows(take(second, 3)) == rows(whole[2:])
    other = dataclasses.replace(mixed, images=ImageConfig(share=0.5, crop=16))
    with pytest.raises(ValueError, match="weights are not those of the checkpoint"):
        TrainLoader(other, 8, seed=2).load_state_dict(first.state_dict())


def test_the_weights_of_ranks_and_groups_make_one_weighted_loss() -> None:
    for ranks, world in ((None, 1), (None, 3), (0.5, 1), (0.5, 2), (0.5, 3), (0.25, 4)):
        sums = {"clips": 0.0, "images": 0.0}
        for rank in range(world):
            portions = divide(ImageConfig(share=0.5, weight=0.3, ranks=ranks), 12, rank, world)
            for portion in portions:
                sums[portion.name] += portion.weight / len(portions) / world
        assert sums == pytest.approx({"clips": 0.7, "images": 0.3}), (ranks, world)


def test_what_cannot_be_divided_is_explained(mixed: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"share=0.25 of the 6 samples .* a whole number of images, got 1.5"):
        TrainLoader(mixed, 6, 0)
    with pytest.raises(ValueError, match="the 6 clips of a forward pass must be divisible by the 4 ranks"):
        TrainLoader(mixed, 2, 0, 0, 4)
    lost = dataclasses.replace(mixed, images=None)
    with pytest.raises(ValueError, match="data.images=None and 1 image sets"):
        lost.parts()
    with pytest.raises(ValueError, match="only image sets"):
        dataclasses.replace(mixed, mix=mixed.mix[1:]).parts()
    with pytest.raises(ValueError, match="data.images needs parts of data.mix"):
        TrainLoader(dataclasses.replace(mixed, path=mixed.mix[0].path, mix=[]), 8, 0)
    with pytest.raises(ValueError, match=r"data.images.share must lie in \(0, 1\), got 1"):
        ImageConfig(share=1.0)


def test_a_batch_of_images_alone_is_moved_and_pinned_like_any_other(mixed: DataConfig) -> None:
    config = dataclasses.replace(mixed, images=ImageConfig(share=0.5, ranks=0.5, crop=16), workers=1)
    (batch,) = take(TrainLoader(config, 4, 2, rank=1, world=2), 1)
    assert (batch.samples, len(batch.clips)) == (4, 0)
    assert batch.to("cpu").groups["images"].clips.dtype == torch.uint8
