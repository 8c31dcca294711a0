"""A malformed sidecar, key or manifest is a counted, named sample or a clear error, never a traceback."""

import json
import os
from pathlib import Path

import pytest
from conftest import encode
from loading import make_set, take

from data.loading.loader import DataConfig, TrainLoader
from data.loading.shards import ShardReader
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack

SIDECARS = [
    b'{"frames": 1' + b"0" * 400 + b', "fps": 12.0}',
    b'{"frames": 1' + b"0" * 5000 + b', "fps": 12.0}',
    b'{"frames": 24, "fps": 1e400}',
    b'{"frames": 24, "fps": NaN}',
    b'{"frames": -1, "fps": 12.0}',
    b'{"frames": 1000000000000, "fps": 12.0}',
    b'{"frames": [24], "fps": {"a": 1}}',
    b'{"frames": 24, "fps": 12.0, "times": "' + b"0" * 24 + b'"}',
    b'{"frames": 2, "fps": 12.0, "times": [[0], [1]]}',
    b'{"frames": 2, "fps": 12.0, "times": [0, Infinity]}',
    b'{"frames": 24, "fps": 12.0, "label": 123456789012345678901234567890}',
    b'{"frames": 24, "fps": 12.0, "label": -5}',
    b"[" * 100_000,
    b'{"\xff": 1}',
]


@pytest.mark.parametrize("workers", [0, 1])
def test_malformed_sidecars_are_skipped_counted_and_named(tmp_path: Path, workers: int) -> None:
    video = encode()
    make_set(tmp_path, [{"mp4": video, "json": text} for text in (*SIDECARS, b'{"frames": 24, "fps": 12.0}')])
    config = DataConfig(path=str(tmp_path), frames=4, crop=16, workers=workers, max_bad_fraction=1.0)
    (batch,) = take(TrainLoader(config, len(SIDECARS) + 1, 0), 1)
    assert batch.skipped.keys() == {"malformed sidecar"}
    assert sorted(batch.skipped["malformed sidecar"]) == [f"sample{n:03d}" for n in range(len(SIDECARS))]


@pytest.mark.parametrize("samples", [10**9, 10**12, float("inf"), "3", True, -1])
def test_a_manifest_that_cannot_be_true_is_an_error_at_once(tmp_path: Path, samples: object) -> None:
    shard = {"name": "a.tar", "samples": samples, "bytes": 10**15}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "video-shards/1", "shards": [shard]}))
    with pytest.raises(ValueError, match="a field is missing or has the wrong type"):
        Manifest.load(tmp_path)


def test_names_that_are_not_utf8_are_packed_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, content in ((b"g\xff.mp4", encode()), (b"b\xfe.mp4", b"text")):
        try:
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(content)
        except OSError:
            pytest.skip("this file system has only UTF-8 names")
    report = pack(str(folder), str(tmp_path / "shards"), PackConfig(jobs=0))
    assert (report.samples, len(report.rejected)) == (1, 1)
    manifest = Manifest.load(tmp_path / "shards")
    assert os.fsencode(manifest.rejected[0].path) == b"b\xfe.mp4"
    assert os.fsencode(ShardReader(manifest).read(0, 0).meta["path"]) == b"g\xff.mp4"
