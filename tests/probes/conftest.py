"""A small labelled set and an untrained encoder for it."""

from pathlib import Path

import pytest
import torch

from data.generated.sprites import SyntheticConfig, write_videos
from data.loading.loader import DataConfig
from data.packing.pack import PackConfig, pack
from vjepa.encoder import Encoder, EncoderConfig


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of 8 frames at 32 pixels, packed."""
    folder = tmp_path_factory.mktemp("set")
    write_videos(folder / "videos", 24, 0, SyntheticConfig(size=32, frames=8))
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig(jobs=0))
    return folder / "shards"


@pytest.fixture
def data(shards: Path) -> DataConfig:
    return DataConfig(path=str(shards), frames=4, stride=1, crop=32, workers=0)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(size="custom", width=24, depth=3, heads=3, frames=4, crop=32))
