"""The manifest is checked when it is read, and names the data set."""

import json
from pathlib import Path

import pytest

from data.manifest import Manifest, Shard


def _manifest(folder: Path) -> Manifest:
    return Manifest(
        str(folder), (Shard("shard-000000.tar", 3, 10240, "ab"), Shard("shard-000001.tar", 2, 9216, "cd")), ["a"]
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    _manifest(tmp_path).save()
    loaded = Manifest.load(tmp_path)
    assert loaded == _manifest(tmp_path)
    assert loaded.samples == 5
    assert loaded.total_bytes == 19456


def test_fingerprint_follows_the_shards(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    other = Manifest(str(tmp_path), (manifest.shards[0], Shard("shard-000001.tar", 2, 9216, "ce")), ["a"])
    assert manifest.fingerprint() == Manifest("elsewhere", manifest.shards, ["b"]).fingerprint()
    assert manifest.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format must be"),
        ({"samples": 6}, "says 6 samples"),
        ({"shards": []}, "no samples"),
        ({"shards": [{"name": "a.tar"}]}, "field is missing"),
        ({"shards": [{"name": "../a.tar", "samples": 1, "bytes": 1024}]}, "field is missing.*stay inside"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = json.loads(_manifest(tmp_path).to_json())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match=message):
        Manifest.load(tmp_path)


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Manifest.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="pack videos first"):
        Manifest.load(tmp_path)
    (tmp_path / "shard-000000.tar").touch()
    with pytest.raises(FileNotFoundError, match="same pack command again"):
        Manifest.load(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").touch()
    with pytest.raises(FileNotFoundError, match="give that folder"):
        Manifest.load(tmp_path)
