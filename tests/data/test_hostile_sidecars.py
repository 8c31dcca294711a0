"""A malformed sidecar, key or manifest is a counted, named sample or a clear error, never a traceback."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from conftest import encode
from loading import make_set, take

from data.loading.loader import DataConfig, TrainLoader
from data.loading.shards import ShardReader
from data.manifest import Manifest, Shard
from data.packing.pack import PackConfig, pack
from data.packing.verify import draw_contact_sheet, verify_shards

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
    b'{"frames": 24, "fps": 12.0, "label": NaN}',
    b'{"frames": 24, "fps": 12.0, "label": true}',
    b'{"frames": 24, "fps": 12.0, "times": []}',
    b'{"frames": 24, "fps": 12.0, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
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


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.tar", "a/../../b.tar", "http://127.0.0.1:9/a.tar", "a::http://127.0.0.1/b", "a\0.tar"]
)
def test_a_shard_has_no_name_outside_its_folder(tmp_path: Path, name: str) -> None:
    shard = {"name": name, "samples": 1, "bytes": 1024}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "video-shards/1", "shards": [shard]}))
    with pytest.raises(ValueError, match=r"manifest.json.*the name must be relative"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_a_sample_without_a_video(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("bad.mp4")
    link.type, link.linkname = kind, "/etc/passwd"
    _one_good(tmp_path, [(link, b"")], "bad")
    _read_one_bad(tmp_path, "no video in the sample", "bad")


@pytest.mark.parametrize("key", ["", "a\nb", "a\u202eb", "n" * 5000])
def test_a_key_that_cannot_be_shown_is_a_bad_sample(tmp_path: Path, key: str) -> None:
    info = tarfile.TarInfo(f"{key}.mp4")
    _one_good(tmp_path, [(info, encode())], key)
    shown = {"a\nb": "a\\nb", "a\u202eb": "a\\u202eb"}.get(key, key[:1000])
    _read_one_bad(tmp_path, "malformed key", shown)
    assert draw_contact_sheet(Manifest.load(tmp_path), rows=2, columns=1, side=16).size == (16, 60)


def test_a_sparse_member_and_a_hard_link_are_not_followed(tmp_path: Path) -> None:
    link = tarfile.TarInfo("other.mp4")
    link.type, link.linkname = tarfile.LNKTYPE, "good.mp4"
    _one_good(tmp_path, [(link, b"")], "other")
    _read_one_bad(tmp_path, "no video in the sample", "other")


@pytest.mark.parametrize("content", [gzip.compress(bytes(100_000_000)), bytes(1 << 16), b"text" * 1000])
def test_a_shard_that_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    Manifest(str(tmp_path), (Shard("a.tar", 1, len(content), ""),)).save()
    with pytest.raises(ValueError, match=r"a\.tar: "):
        next(iter(TrainLoader(DataConfig(path=str(tmp_path), frames=2, crop=16, workers=0), 1, 0)))


def test_an_extended_header_that_claims_too_much_is_named(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.pax_headers = {"comment": "x" * 5_000_000}
    _one_good(tmp_path, [(info, b"")], "a", tarfile.PAX_FORMAT)
    with pytest.raises(ValueError, match=r"a\.tar: not a valid tar file"):
        next(iter(TrainLoader(DataConfig(path=str(tmp_path), frames=2, crop=16, workers=0), 1, 0)))


def _one_good(
    folder: Path, members: list[tuple[tarfile.TarInfo, bytes]], key: str, kind: int = tarfile.GNU_FORMAT
) -> None:
    """A shard with `members` and a sidecar for `key`, then a good sample."""
    video, meta = encode(), b'{"frames": 24, "fps": 12.0}'
    named = [(f"{key}.json", meta), ("good.mp4", video), ("good.json", meta)]
    with tarfile.open(folder / "a.tar", "w", format=kind) as tar:
        for info, content in [*members, *((tarfile.TarInfo(name), content) for name, content in named)]:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    Manifest(str(folder), (Shard("a.tar", 2, (folder / "a.tar").stat().st_size, ""),)).save()


def _read_one_bad(folder: Path, reason: str, name: str) -> None:
    config = DataConfig(path=str(folder), frames=2, crop=16, workers=0, max_bad_fraction=1.0)
    (batch,) = take(TrainLoader(config, 2, 0), 1)
    assert batch.skipped == {reason: [name]}
    assert set(batch.keys) == {"good"}
    problems = verify_shards(Manifest.load(folder), decode=2)
    assert len(problems) == 1
    assert reason in problems[0]


@pytest.mark.parametrize("sha256", ["\ud800", "\x1b[31m", 5, None, "xyz"])
def test_a_checksum_that_is_none_is_an_error_with_the_manifest(tmp_path: Path, sha256: object) -> None:
    shard = {"name": "a.tar", "samples": 1, "bytes": 1024, "sha256": sha256}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "video-shards/1", "shards": [shard]}))
    with pytest.raises(ValueError, match=r"manifest.json.*sha256 must be hexadecimal"):
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
