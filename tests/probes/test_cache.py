"""Features on disk: paid once, never wrong, bounded, and made by several processes together."""

import errno
import json
import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import files
from data.loading.loader import DataConfig, EvalLoader, Views
from data.manifest import Manifest
from probes.cache import FeatureCache, FeatureSet
from probes.extract import Order, describe, extract
from probes.extractors import FrozenEncoder
from probes.features import Features
from vjepa.encoder import Encoder


class Counting(FrozenEncoder):
    """Counts the clips it is shown, and breaks down after `limit` of them."""

    def __init__(self, encoder: Encoder, limit: int = 10**9) -> None:
        super().__init__(encoder)
        self.shown, self.limit = 0, limit

    def __call__(self, clips: Tensor) -> Tensor:
        if clips.any():  # a black clip is shown to measure the shape
            self.shown += len(clips)
        if self.shown > self.limit:
            raise KeyboardInterrupt
        return super().__call__(clips)


def make_order(data: DataConfig, encoder: FrozenEncoder, views: Views | None = None) -> Order:
    return Order({"encoder": encoder}, EvalLoader(data, 2, views), 4)


def all_tokens(features: Features) -> Tensor:
    index = torch.arange(len(features))
    return torch.stack([features.pick(index, torch.full_like(index, view)) for view in range(features.views)], 1)


def check_same(mine: Features, theirs: Features) -> None:
    assert mine.keys == theirs.keys
    assert mine.missing == theirs.missing
    assert mine.shape == theirs.shape
    for tensor, other in ((mine.labels, theirs.labels), (mine.pooled, theirs.pooled)):
        assert torch.equal(tensor, other)
    assert torch.equal(all_tokens(mine), all_tokens(theirs))


@pytest.mark.parametrize("views", [Views(2, 2), Views(augmented=2)])
def test_cached_equals_computed_and_is_paid_once(
    data: DataConfig, encoder: Encoder, tmp_path: Path, views: Views
) -> None:
    counting = Counting(encoder)
    order = make_order(data, counting, views)
    fresh = extract(order)["encoder"]
    shown = counting.shown
    cache = FeatureCache(tmp_path, 1)
    check_same(cache.fetch([order])[0]["encoder"], fresh)
    assert counting.shown == 2 * shown
    (again, twice) = cache.fetch([order, order])
    check_same(again["encoder"], fresh)
    check_same(twice["encoder"], fresh)
    assert counting.shown == 2 * shown, "the second time nothing is encoded"


def test_tokens_are_mapped_from_the_files_not_read_into_memory(
    data: DataConfig, encoder: Encoder, tmp_path: Path
) -> None:
    features = FeatureCache(tmp_path, 1).fetch([make_order(data, FrozenEncoder(encoder))])[0]["encoder"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    text = maps.read_text()
    shards = list(tmp_path.glob("*/*.safetensors"))
    assert len(shards) == 24
    assert all(str(shard) in text for shard in shards)
    assert features.pooled.is_contiguous()
    means = replace(make_order(data, FrozenEncoder(encoder)), tokens=False)
    FeatureCache(tmp_path / "means", 1).fetch([means])
    planned = FeatureSet.plan(tmp_path / "means", means, "encoder")
    block = planned.read(0)
    assert block is not None
    assert str(planned.path(0)) not in maps.read_text(), "nothing but tokens stays mapped"


def test_a_killed_pass_goes_on_with_what_is_missing(data: DataConfig, encoder: Encoder, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        cache.fetch([make_order(data, Counting(encoder, limit=10))])
    kept = len(list(tmp_path.glob("*/*.safetensors")))
    assert kept == 10
    (half,) = (path.with_name(".000011.safetensors.0123abcd.part") for path in tmp_path.glob("*/000000.safetensors"))
    half.write_bytes(b"half of a shard")
    counting = Counting(encoder)
    order = make_order(data, counting)
    check_same(cache.fetch([order])[0]["encoder"], extract(make_order(data, FrozenEncoder(encoder)))["encoder"])
    assert counting.shown == 24 - kept
    assert not half.exists()


@pytest.mark.parametrize("damage", ["bits", "cut", "empty", "facts"])
def test_a_damaged_shard_is_found_said_and_made_again(
    data: DataConfig, encoder: Encoder, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache, counting = FeatureCache(tmp_path, 1), Counting(encoder)
    order = make_order(data, counting)
    whole = cache.fetch([order])[0]["encoder"]
    (shard,) = tmp_path.glob("*/000007.safetensors")
    content = bytearray(shard.read_bytes())
    if damage == "bits":
        content[-100] ^= 4
    elif damage == "facts":
        content = bytearray(bytes(content).replace(whole.keys[7].encode(), whole.keys[7].encode()[::-1]))
    shard.unlink()  # the pages of the old file stay as they are for who has them mapped
    shard.write_bytes({"cut": bytes(content[:-50]), "empty": b""}.get(damage, bytes(content)))
    with caplog.at_level(logging.WARNING):
        check_same(cache.fetch([order])[0]["encoder"], whole)
    assert f"{shard} is damaged" in caplog.text
    assert counting.shown == 24 + 1


def test_what_could_not_be_read_is_remembered_and_limited(data: DataConfig, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    manifest = Manifest.load(data.path)
    for shard in manifest.shards:
        content = (Path(data.path) / shard.name).read_bytes()
        at = content.find(b"ftyp")
        (folder / shard.name).write_bytes(content[: at - 4] + bytes(2000) + content[at + 1996 :])  # the first video
    replace(manifest, folder=str(folder)).save()
    cache = FeatureCache(tmp_path / "cache", 1)
    bad = replace(data, path=str(folder), max_bad_fraction=0.5)
    for _ in range(2):
        features = cache.fetch([make_order(bad, FrozenEncoder(encoder))])[0]["encoder"]
        assert len(features.keys) == 23
        (names,) = features.missing.values()
        assert len(names) == 1
        assert not set(names) & set(features.keys)
    with pytest.raises(ValueError, match="1 of 24 samples could not be read"):
        cache.fetch([make_order(replace(bad, max_bad_fraction=0.0), FrozenEncoder(encoder))])


def test_what_timed_out_is_tried_again_the_next_time(
    data: DataConfig, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = make_order(replace(data, max_bad_fraction=0.5), FrozenEncoder(encoder))
    cache, planned = FeatureCache(tmp_path, 1), FeatureSet.plan(tmp_path, order, "encoder")
    whole = cache.fetch([order])[0]["encoder"]
    block = planned.read(7)
    assert block is not None
    assert block.tokens is not None
    late = replace(
        block, tokens=block.tokens[:0], pooled=block.pooled[:0], labels=block.labels[:0], places=block.places[:0],
        keys=[], missing={"timeout": block.keys},
    )  # fmt: skip
    planned.write(7, late)
    with caplog.at_level(logging.WARNING):
        assert cache.fetch([order])[0]["encoder"].missing == {"timeout": block.keys}
    assert f"{block.keys[0]} timed out; the next probe will try to read it again" in caplog.text
    check_same(cache.fetch([order])[0]["encoder"], whole)


def test_without_locks_nothing_is_dropped(
    data: DataConfig, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    orders = [make_order(replace(data, stride=stride), FrozenEncoder(encoder)) for stride in (1, 2)]
    first, _ = (FeatureSet.plan(tmp_path, order, "encoder") for order in orders)
    cache = FeatureCache(tmp_path, 1.5 * first.bytes / 1e9)
    cache.fetch([orders[0]])
    with pytest.raises(ValueError, match="or on a file system without locks"):
        cache.fetch([orders[1]])
    assert not first.lacks()


def test_a_shared_lock_may_read_the_file(tmp_path: Path) -> None:
    """NFS refuses it otherwise."""
    with files.Lock(tmp_path / "lock", shared=True) as lock:
        assert lock.file.readable()


def test_whatever_changes_the_features_changes_their_name(data: DataConfig, encoder: Encoder, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = Encoder(encoder.config)
    plain = FrozenEncoder(encoder, precision="fp32")
    orders = [
        make_order(data, plain),
        make_order(replace(data, stride=2), plain),
        make_order(replace(data, fps=4.0), plain),
        make_order(replace(data, frames=2), plain),
        make_order(replace(data, crop=16), plain),
        make_order(data, plain, Views(2, 1)),
        make_order(data, plain, Views(1, 2)),
        make_order(data, plain, Views(augmented=2)),
        make_order(data, plain, Views(augmented=2, seed=1)),
        make_order(data, plain, Views(augmented=2, scale=(0.5, 1.0))),
        make_order(data, FrozenEncoder(other, precision="fp32")),
        make_order(data, FrozenEncoder(encoder, precision="bf16")),
        make_order(data, FrozenEncoder(encoder, precision="fp32", layers=(0, 2))),
        replace(make_order(data, plain), tokens=False),
    ]
    names = {FeatureSet.plan(tmp_path, order, "encoder").key for order in orders}
    assert len(names) == len(orders)
    same = make_order(replace(data, workers=2, timeout=5.0, max_bad_fraction=0.5), plain, Views(scale=(0.5, 0.6)))
    assert describe(same, "encoder") == describe(orders[0], "encoder")


def test_features_larger_than_the_bound_are_refused_with_their_size(
    data: DataConfig, encoder: Encoder, tmp_path: Path
) -> None:
    order = make_order(data, FrozenEncoder(encoder))
    planned = FeatureSet.plan(tmp_path, order, "encoder").bytes
    with pytest.raises(ValueError, match=rf"take {planned / 1e9:.3g} GB .* more than cache_gb 1e-05 allows"):
        FeatureCache(tmp_path, 1e-5).fetch([order])
    FeatureCache(tmp_path, 1).fetch([order])
    assert 0.5 * planned < sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors")) < planned


def test_the_bound_drops_what_was_unused_for_longest_and_never_what_is_in_use(
    data: DataConfig, encoder: Encoder, tmp_path: Path
) -> None:
    orders = [make_order(replace(data, stride=stride), FrozenEncoder(encoder)) for stride in (1, 2, 3, 4)]
    sets = [FeatureSet.plan(tmp_path, order, "encoder") for order in orders]
    cache = FeatureCache(tmp_path, 2.5 * sets[0].bytes / 1e9)
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "about.json").write_text('{"format": "of somebody else"}')
    in_use = cache.fetch([orders[0]])
    cache.fetch([orders[1]])
    for number, age in ((0, 300), (1, 200)):
        os.utime(sets[number].folder / "about.json", times=(time.time() - age,) * 2)
    cache.fetch([orders[2]])  # number 0 is the oldest, but in use
    assert [one.folder.exists() for one in sets] == [True, False, True, False]
    check_same(in_use[0]["encoder"], extract(orders[0])["encoder"])
    also_in_use = cache.fetch([orders[2]])
    with pytest.raises(ValueError, match="all in use by other jobs"):
        cache.fetch([orders[3]])
    assert not sets[3].folder.exists(), "what is refused takes no room"
    del in_use, also_in_use
    cache.fetch([orders[3]])
    assert [one.folder.exists() for one in sets] == [False, False, True, True]
    assert foreign.exists()
    assert not list(tmp_path.glob(".dropped-*"))


def _fetch(rank: int, folder: Path, answer: Path, data: DataConfig, encoder: Encoder) -> None:
    torch.set_num_threads(1)
    counting = Counting(encoder)
    found = FeatureCache(folder, 1).fetch([make_order(data, counting)], rank=rank, world=2)
    content = {"shown": counting.shown, "pooled": found[0]["encoder"].pooled.tolist() if found else []}
    answer.write_text(json.dumps(content))


def test_processes_share_the_work_and_end_with_one_correct_set(
    data: DataConfig, encoder: Encoder, tmp_path: Path
) -> None:
    """Two ranks of a job, and a second job that knows nothing of them."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_fetch, args=(rank, tmp_path, tmp_path / f"{number}.json", data, encoder))
        for number, rank in enumerate((0, 1, 0))
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    expected = extract(make_order(data, FrozenEncoder(encoder)))["encoder"]
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3)]
    assert sum(one["shown"] for one in found) == 24, "no shard is made twice"
    assert torch.equal(torch.tensor(found[0]["pooled"]), expected.pooled)
    assert torch.equal(torch.tensor(found[2]["pooled"]), expected.pooled)
    assert not found[1]["pooled"], "only the first rank fits heads"
    counting = Counting(encoder)
    check_same(FeatureCache(tmp_path, 1).fetch([make_order(data, counting)])[0]["encoder"], expected)
    assert counting.shown == 0
