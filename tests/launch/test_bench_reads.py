"""Opens, reads and bytes are counted by the loader's own plan, without files and without ranks."""

from dataclasses import replace

import pytest

import launch.bench.reads
from data.loading.batch import DataConfig
from launch.bench.reads import count_reads

DATA = DataConfig(path="nowhere", shuffle_shards=4, workers=2)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.bench.reads, "COUNTED", 6_000)


def test_an_index_saves_reads_and_lanes_save_opens() -> None:
    headers = count_reads("headers", DATA, 64, 64, 0.05, 1.0, 0)
    index = count_reads("index", DATA, 64, 64, 0.05, 1.0, 0)
    lanes = count_reads("lanes", replace(DATA, lanes=64, shuffle_shards=1), 64, 64, 0.05, 1.0, 0)
    assert index.opens == 2 * headers.opens
    assert headers.reads > 50 * index.reads
    assert 1 <= lanes.reads < index.reads < 2
    assert lanes.opens < index.opens / 10
    assert (index.shards_in_batch, headers.fetched > 1, index.fetched) == (4, True, 1.0)
    assert lanes.shards_in_batch > 10 * index.shards_in_batch


def test_one_process_opens_every_shard_once() -> None:
    found = count_reads("headers", replace(DATA, workers=1), 8, 1, 0.005, 1.0, 0)  # ten shards of 512 samples
    assert found.opens == pytest.approx(1 / 512, rel=0.3)
    assert found.fetched == pytest.approx(1.0, rel=0.3)


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"run.batch=64 must be a multiple of the 48 ranks of --ranks"):
        count_reads("index", DATA, 64, 48, 1.0, 1.0, 0)
