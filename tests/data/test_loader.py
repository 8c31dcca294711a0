"""The promises of the loader: order, position, equal steps, repeatable draws, counted skips."""

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import MakeVideo
from hostile import endless_gif
from loading import keys_of, make_set, take

import data.loading.processes
import data.loading.workers
from data.loading.loader import DataConfig, EvalLoader, TrainLoader, Views
from data.loading.tars import index_path
from data.packing.pack import PackConfig, pack


def test_batches_have_the_promised_shapes(config: DataConfig) -> None:
    (batch,) = take(TrainLoader(config, batch=5, seed=0), 1)
    assert batch.clips.shape == (5, 4, 32, 32, 3)
    assert batch.clips.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert set(batch.labels.tolist()) <= {0, 1, 2}
    assert batch.skipped == {}
    assert torch.equal(pickle.loads(pickle.dumps(batch)).clips, batch.clips)
    assert batch.to("cpu").keys == batch.keys


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_every_sample_once_per_epoch_for_any_ranks_and_workers(config: DataConfig) -> None:
    expected = keys_of(take(TrainLoader(config, batch=12, seed=7), 4))
    assert Counter(expected[:24]) == Counter(expected[24:])
    assert len(set(expected[:24])) == 24
    for world, workers in ((1, 2), (2, 0), (2, 3), (4, 1)):
        shared = dataclasses.replace(config, workers=workers)
        ranks = [take(TrainLoader(shared, 12 // world, 7, rank, world), 4) for rank in range(world)]
        steps = [keys_of([ranks[rank][step] for rank in range(world)]) for step in range(4)]
        assert [key for step in steps for key in step] == expected


def test_pixels_do_not_depend_on_who_makes_them(config: DataConfig) -> None:
    one = take(TrainLoader(config, batch=6, seed=7), 2)
    shared = dataclasses.replace(config, workers=2)
    two = [take(TrainLoader(shared, 3, 7, rank, 2), 2) for rank in range(2)]
    for step in range(2):
        assert torch.equal(one[step].clips, torch.cat([two[rank][step].clips for rank in range(2)]))


def test_a_sample_looks_different_in_every_epoch(config: DataConfig) -> None:
    batches = take(TrainLoader(config, batch=24, seed=7), 2)
    again = [batches[1].keys.index(key) for key in batches[0].keys]
    same = [torch.equal(batches[0].clips[i], batches[1].clips[j]) for i, j in enumerate(again)]
    assert sum(same) <= 2


def test_resume_is_exact_also_on_other_ranks(config: DataConfig) -> None:
    whole = take(TrainLoader(config, batch=5, seed=1), 12)
    first = TrainLoader(config, batch=5, seed=1)
    take(first, 4)
    state = json.loads(json.dumps(first.state_dict()))
    second = TrainLoader(dataclasses.replace(config, workers=2), batch=5, seed=1)
    second.load_state_dict(state)
    resumed = take(second, 8)
    assert keys_of(resumed) == keys_of(whole[4:])
    assert all(torch.equal(a.clips, b.clips) for a, b in zip(resumed, whole[4:], strict=True))
    pair = [TrainLoader(config, batch=2, seed=1, rank=rank, world=2) for rank in range(2)]
    for loader in pair:
        loader.load_state_dict(state)
    parts = [take(loader, 10) for loader in pair]
    assert [key for step in range(10) for rank in range(2) for key in parts[rank][step].keys] == keys_of(whole[4:])


def test_position_is_that_of_the_batches_handed_out(config: DataConfig) -> None:
    loader = TrainLoader(dataclasses.replace(config, workers=2), batch=3, seed=1, rank=1, world=2)
    for step, batch in enumerate(loader, 1):
        assert loader.position == batch.position == 6 * step
        if step == 3:
            break


def test_another_data_set_or_seed_cannot_be_resumed(config: DataConfig) -> None:
    loader = TrainLoader(config, batch=2, seed=1)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="data seed is 2, the checkpoint has 1"):
        TrainLoader(config, batch=2, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="fingerprint.*use the original data"):
        loader.load_state_dict({**state, "fingerprint": "0"})


def test_evaluation_sees_every_sample_once_without_padding(config: DataConfig) -> None:
    whole = list(EvalLoader(config, batch=5))
    assert [len(batch.keys) for batch in whole] == [5, 5, 5, 5, 4]
    assert len(set(keys_of(whole))) == 24
    for world in (3, 5):
        loaders = [EvalLoader(config, 5, rank=rank, world=world) for rank in range(world)]
        assert keys_of([batch for loader in loaders for batch in loader]) == keys_of(whole)
        assert all(len(list(loader)) == len(loader) for loader in loaders)


def test_views_are_crops_then_segments(config: DataConfig) -> None:
    batch = next(iter(EvalLoader(config, 2, Views(segments=2, crops=3))))
    assert batch.clips.shape == (2, 6, 4, 32, 32, 3)
    crops = batch.clips[0].reshape(3, 2, 4, 32, 32, 3).float()
    red = (crops[..., 0] - crops[..., 1]).mean(dim=(2, 3, 4))
    assert (red[0] > 2 * red[2] + 1).all()  # the red corner is at the left
    times = crops[..., 20:, 20:, :].mean(dim=(2, 3, 4, 5))
    assert (times[:, 0] != times[:, 1]).all()


def test_corrupt_videos_are_replaced_counted_and_named(make_video: MakeVideo, tmp_path: Path) -> None:
    meta = json.dumps({"frames": 12, "fps": 12.0, "label": 1}).encode()
    samples = [{"mp4": make_video(frames=12, offset=n), "json": meta} for n in range(20)]
    samples[3]["mp4"] = b"text instead of a video"
    samples[7] = {"json": meta}
    samples[9]["json"] = b"[broken"
    make_set(tmp_path, samples)
    config = DataConfig(path=str(tmp_path), frames=4, stride=2, crop=16, workers=0, max_bad_fraction=0.5)
    loader = TrainLoader(config, batch=10, seed=0)
    batches = take(loader, 2)
    keys = keys_of(batches)
    bad = {"sample003", "sample007", "sample009"}
    assert len(keys) == 20
    assert not set(keys) & bad
    assert len(set(keys)) == 17
    skipped = {reason: names for batch in batches for reason, names in batch.skipped.items()}
    assert {name for names in skipped.values() for name in names} == bad
    assert skipped["no video in the sample"] == ["sample007"]
    assert loader.tally.skipped.total() == 3
    shared = TrainLoader(dataclasses.replace(config, workers=2), batch=5, seed=0)
    assert keys_of(take(shared, 4)) == keys
    copies = [i for i, key in enumerate(keys) if keys.count(key) > 1]
    clips = torch.cat([batch.clips for batch in batches])
    assert len({clips[i].numpy().tobytes() for i in copies}) == len(copies)  # a replacement is another view


def test_too_many_bad_samples_stop_the_run(make_video: MakeVideo, tmp_path: Path) -> None:
    meta = json.dumps({"frames": 12, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": make_video(frames=12) if n % 2 else b"text", "json": meta} for n in range(30)])
    config = DataConfig(path=str(tmp_path), frames=4, stride=2, crop=16, workers=1)
    with pytest.raises(ValueError, match=r"of \d+ samples could not be read.*not a video.*sample0"):
        take(TrainLoader(config, batch=5, seed=0), 10)
    with pytest.raises(ValueError, match=r"\d of 5 samples"):
        take(TrainLoader(dataclasses.replace(config, max_bad_fraction=0), batch=5, seed=0), 10)


def test_evaluation_reports_what_is_missing(make_video: MakeVideo, tmp_path: Path) -> None:
    meta = json.dumps({"frames": 12, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": make_video(frames=12) if n != 4 else b"text", "json": meta} for n in range(6)])
    loader = EvalLoader(DataConfig(path=str(tmp_path), frames=4, crop=16, workers=0), batch=4)
    batches = list(loader)
    assert keys_of(batches) == [f"sample00{n}" for n in (0, 1, 2, 3, 5)]
    assert loader.missing == {"not a video": ["sample004"]}
    assert (batches[0].labels == -1).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_hangs_is_skipped_and_named(make_video: MakeVideo, tmp_path: Path, workers: int) -> None:
    meta = {"frames": 12, "fps": 12.0}
    samples = [{"mp4": make_video(frames=12), "json": json.dumps(meta).encode()} for n in range(6)]
    samples[2] = {"avi": endless_gif(), "json": json.dumps({**meta, "frames": 6000}).encode()}
    make_set(tmp_path, samples)
    config = DataConfig(path=str(tmp_path), frames=4, stride=1900, crop=16, workers=workers, timeout=3)
    (batch,) = take(TrainLoader(config, batch=6, seed=0), 1)
    assert batch.skipped == {"timeout": ["sample002"]}
    assert len(batch.keys) == 6


def test_a_hang_that_nothing_can_interrupt_ends_with_the_name_of_the_sample(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    def hold(video: bytes, *words: object, timeout: float) -> None:
        ctypes.PyDLL(None).sleep(1000)  # the interpreter's lock is kept

    meta = json.dumps({"frames": 12, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": make_video(frames=12), "json": meta}])
    monkeypatch.setattr(data.loading.workers, "decode_isolated", hold)
    monkeypatch.setattr(data.loading.processes, "BATCH_TIMEOUT_FACTOR", 2)
    config = DataConfig(path=str(tmp_path), frames=4, stride=2, crop=16, workers=1, timeout=0.5)
    with pytest.raises(OSError, match="workers were at sample000"):
        take(TrainLoader(config, batch=1, seed=0), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_an_error_with_its_name(videos: Path, tmp_path: Path, workers: int) -> None:
    pack(str(videos), str(tmp_path), PackConfig(jobs=0))
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    config = DataConfig(path=str(tmp_path), frames=4, crop=16, workers=workers)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"shard-000000.tar: .* bytes, the manifest says"):
        take(TrainLoader(config, 2, 0), 1)
    path.write_bytes(whole[:10240] + b"\0" * (len(whole) - 10240))
    with pytest.raises(ValueError, match=r"could not be read.*does not match its index.*clip_"):
        take(TrainLoader(config, 12, 0), 2)
    index_path(path).unlink()
    with pytest.raises(ValueError, match=r"could not be read.*missing in its shard.*shard-000000.tar#"):
        take(TrainLoader(config, 12, 0), 2)
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(ValueError, match=r"shard-000000.tar: .* the manifest says 24"):
        take(TrainLoader(config, 2, 0), 1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000000.tar: no such shard"):
        take(TrainLoader(config, 2, 0), 1)


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_hostile_member_stays_inert(make_video: MakeVideo, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    evil = pickle.dumps(_Hostile(trap))
    meta = json.dumps({"frames": 12, "fps": 12.0}).encode()
    video = make_video(frames=12)
    members = {"mp4": video, "json": meta, "pkl": evil, "pyd": evil, "pth": evil, "npy": evil, "pickle": evil}
    make_set(tmp_path, [members, {"mp4": evil, "json": meta}, {"mp4": video, "json": evil}])
    config = DataConfig(path=str(tmp_path), frames=4, crop=16, workers=0, max_bad_fraction=1.0)
    (batch,) = take(TrainLoader(config, 3, 0), 1)
    assert set(batch.keys) == {"sample000"}
    assert len([name for names in batch.skipped.values() for name in names]) == 2
    assert not trap.exists()


def test_wrong_settings_name_the_field(config: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"data\.path is required"):
        TrainLoader(DataConfig(), 2, 0)
    for change in ({"frames": 0}, {"crop": 0}, {"scale": (0.0, 1.0)}, {"flip": 2.0}, {"max_bad_fraction": -1.0}):
        with pytest.raises(ValueError, match=f"data.{next(iter(change))}"):
            dataclasses.replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank 2, world 2"):
        TrainLoader(config, 2, 0, rank=2, world=2)


def test_memory_and_open_files_stay_flat(config: DataConfig) -> None:
    iterator = iter(TrainLoader(dataclasses.replace(config, shuffle_shards=1), batch=8, seed=0))

    def use() -> tuple[int, int]:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096, len(list(Path("/proc/self/fd").iterdir()))

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    for _ in range(20):
        next(iterator)
    memory, files = use()
    for _ in range(60):
        next(iterator)
    assert use()[0] - memory < 8e6
    assert use()[1] - files <= 1
