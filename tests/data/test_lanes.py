"""Lanes: virtual ranks with shards of their own, whose order does not depend on the real ones."""

import dataclasses
from collections import Counter

import pytest
from loading import keys_of, take

from data.loading.loader import DataConfig, TrainLoader
from data.loading.plan import Lanes, Mixture, Plan

COUNTS = [5, 3, 0, 7, 4, 6]


def test_every_sample_once_per_epoch_over_all_lanes() -> None:
    everything = sorted((shard, index) for shard, count in enumerate(COUNTS) for index in range(count))
    for lanes, group in ((1, 2), (3, 1), (4, 2), (25, 3)):
        plan = Plan(COUNTS, 3, group, lanes)
        sizes = [25 * (lane + 1) // lanes - 25 * lane // lanes for lane in range(lanes)]
        for epoch in range(3):
            found = [
                plan.find(epoch * size + offset, lane) for lane, size in enumerate(sizes) for offset in range(size)
            ]
            assert sorted((address.shard, address.index) for address in found) == everything
            assert {address.epoch for address in found} == {epoch}


def test_a_lane_reads_few_shards_and_replaces_within_its_group() -> None:
    plan = Plan([40] * 16, 0, 2, lanes=4)
    for lane in range(4):
        assert len({plan.find(p, lane).shard for p in range(160)}) == 4
        for position in range(0, 160, 7):
            group = plan.find(position, lane).group
            assert position in group
            assert len({plan.find(p, lane).shard for p in group}) <= 2


def test_one_lane_is_the_order_without_lanes() -> None:
    plain, one = Plan(COUNTS, 3, 2), Plan(COUNTS, 3, 2, lanes=1)
    assert [plain.find(p) for p in range(60)] == [one.find(Lanes(1, 8).find(p)[1]) for p in range(60)]


def test_positions_of_a_step_are_divided_evenly_and_in_order() -> None:
    lanes = Lanes(4, 8)
    assert [lanes.find(p) for p in range(10)] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (0, 2), (0, 3),
    ]  # fmt: skip


def test_every_lane_mixes_data_sets_by_weight() -> None:
    mixture = Mixture([3, 1], seed=0)
    for lane in range(3):
        found = [mixture.find(p, lane) for p in range(1000)]
        assert Counter(part for part, _ in found) == {0: 750, 1: 250}
        assert sorted(inner for part, inner in found if part) == list(range(250))
    assert [mixture.find(p, 1) for p in range(100)] != [mixture.find(p, 2) for p in range(100)]


def test_ranks_workers_and_accumulation_do_not_change_the_order(config: DataConfig) -> None:
    laned = dataclasses.replace(config, lanes=4, shuffle_shards=1)
    whole = keys_of(take(TrainLoader(laned, batch=8, seed=7), 6))
    assert Counter(whole) == Counter(sorted(set(whole)) * 2)  # 24 samples, 6 of each lane
    assert whole != keys_of(take(TrainLoader(config, batch=8, seed=7), 6))
    for world, batch in ((2, 4), (4, 2), (8, 1), (2, 1)):
        steps = 48 // (world * batch)
        ranks = [take(TrainLoader(laned, batch, 7, rank, world, step=8), steps) for rank in range(world)]
        assert [key for step in range(steps) for rank in ranks for key in rank[step].keys] == whole


def test_resume_is_exact_and_refuses_other_lanes(config: DataConfig) -> None:
    laned = dataclasses.replace(config, lanes=2)
    whole = take(TrainLoader(laned, batch=4, seed=1), 8)
    first = TrainLoader(laned, batch=4, seed=1)
    take(first, 3)
    second = TrainLoader(laned, batch=2, seed=1, rank=1, world=2, step=4)
    second.load_state_dict(first.state_dict())
    assert keys_of(take(second, 5)) == [key for batch in whole[3:] for key in batch.keys[2:]]
    for changed, step in ((4, 4), (2, 8), (None, 4)):
        other = TrainLoader(dataclasses.replace(config, lanes=changed), 4, 1, step=step)
        with pytest.raises(ValueError, match="use the checkpoint's data.lanes and run.batch"):
            other.load_state_dict(first.state_dict())


def test_lanes_that_do_not_divide_the_step_are_refused(config: DataConfig) -> None:
    with pytest.raises(ValueError, match="data.lanes=3 must divide the 8 clips of an optimiser step"):
        TrainLoader(dataclasses.replace(config, lanes=3), 8, 0)
    with pytest.raises(ValueError, match="data.lanes must be at least 1"):
        dataclasses.replace(config, lanes=0)


def test_a_rank_keeps_the_shards_of_its_lanes_open(config: DataConfig) -> None:
    laned = dataclasses.replace(config, lanes=4, shuffle_shards=2)
    for world, batch, lanes in ((1, 8, 4), (2, 4, 2), (4, 2, 1), (8, 1, 1), (2, 1, 4)):
        loader = TrainLoader(laned, batch, 7, rank=world - 1, world=world, step=8)
        (source,) = loader.open_sources()
        assert source.streams[0].reader.shards.keep == 2 * lanes
