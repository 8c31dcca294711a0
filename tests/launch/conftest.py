"""A packed data set of generated motions, once for all tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.generated import kinds
from data.generated.kinds import all_kinds
from data.generated.sprites import SyntheticConfig, write_videos
from data.packing.pack import PackConfig, pack
from launch.exchange.formats import FORMATS
from launch.training.loggers import LOGGERS
from probes.kinds import HEADS
from vjepa.registry import CALLBACKS, ENCODERS, MASKS, OBJECTIVES, REGULARISERS, TARGETS, Registry


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clips of 8 frames at 32 pixels, 4 of each of 12 classes."""
    folder = tmp_path_factory.mktemp("motions")
    write_videos(folder / "videos", 48, 0, SyntheticConfig(size=32, frames=8))
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig(jobs=0))
    return folder / "shards"


@pytest.fixture
def words(shards: Path, tmp_path: Path) -> list[str]:
    """A run of seconds on them."""
    return [
        "encoder.size=custom", "encoder.width=24", "encoder.depth=2", "encoder.heads=2", "encoder.patch=8",
        "predictor.width=12", "predictor.depth=1", "data.frames=4", "data.crop=32", "data.stride=1", "data.workers=0",
        "run.precision=fp32", "run.batch=8", "run.steps=6", "run.log_every=1", "run.checkpoint_every=3",
        "health.every=2", "masks.ahead.kind=future",
        f"data.path={shards}", f"run.output={tmp_path / 'run'}",
    ]  # fmt: skip


@pytest.fixture
def quick(words: list[str]) -> list[str]:
    """The same without what costs seconds and is tested elsewhere."""
    return [*words, "health.pictures_every=null", "health.matrix_tflops=1"]


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    """What a test's plugins registered is gone after it."""
    registries: list[Registry] = [
        CALLBACKS,
        ENCODERS,
        FORMATS,
        HEADS,
        LOGGERS,
        MASKS,
        OBJECTIVES,
        REGULARISERS,
        TARGETS,
    ]
    before = [{name: registry.find(name) for name in registry} for registry in registries]
    generated = all_kinds()
    yield
    kinds._KINDS.clear()
    kinds._KINDS.update(generated)
    for registry, parts in zip(registries, before, strict=True):
        registry._parts = parts
    for name in [name for name in sys.modules if name.startswith("vjepa_plugin_")]:
        del sys.modules[name]
