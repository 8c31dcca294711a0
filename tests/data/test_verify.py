"""Checks of a packed data set find what is wrong with it."""

import argparse
from pathlib import Path

import pytest
from PIL import Image

import launch.commands.inspect
import launch.commands.pack
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack
from data.packing.verify import draw_contact_sheet, spread, verify_shards


def _parse(module: object, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]
    return parser.parse_args(words)


def test_a_whole_data_set_has_no_problems(packed: Path) -> None:
    assert verify_shards(Manifest.load(packed)) == []


def test_a_changed_a_cut_and_a_lost_shard_are_found(videos: Path, tmp_path: Path) -> None:
    pack(str(videos), str(tmp_path), PackConfig(shard_mb=0.012, jobs=0))
    paths = sorted(tmp_path.glob("*.tar"))
    content = bytearray(paths[0].read_bytes())
    content[len(content) // 2] ^= 1
    paths[0].write_bytes(content)
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    paths[2].unlink()
    problems = verify_shards(Manifest.load(tmp_path), decode=1)
    assert any("content has changed" in problem and paths[0].name in problem for problem in problems)
    assert any("5000 bytes" in problem and paths[1].name in problem for problem in problems)
    assert any("no such shard" in problem and paths[2].name in problem for problem in problems)
    assert not any(path.name in problem for path in paths[3:] for problem in problems)


def test_spread_reaches_both_ends() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(2, 4) == [0, 1]
    assert spread(0, 4) == []


def test_a_contact_sheet_shows_pixels(packed: Path) -> None:
    sheet = draw_contact_sheet(Manifest.load(packed), rows=3, columns=4, side=64)
    assert sheet.size == (4 * 64, 3 * (64 + 14))
    assert len(sheet.getcolors(100_000)) > 8


def test_the_commands_do_what_they_say(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "out")
    launch.commands.pack.run(_parse(launch.commands.pack, [str(videos), output, "--dry-run", "--jobs", "0"]))
    text = capsys.readouterr().out
    assert "24 videos, 3 classes" in text
    assert not Path(output).exists()
    launch.commands.pack.run(_parse(launch.commands.pack, [str(videos), output, "--jobs", "0"]))
    assert "24 samples" in capsys.readouterr().out
    picture = tmp_path / "sheet.png"
    launch.commands.inspect.run(_parse(launch.commands.inspect, [output, "--verify", "--picture", str(picture)]))
    text = capsys.readouterr().out
    assert "64x48 (24)" in text
    assert "jump (8)" in text
    assert "verified: 1 shards" in text
    assert Image.open(picture).size[0] > 100
    with pytest.raises(ValueError, match="OUTPUT is missing"):
        launch.commands.pack.run(_parse(launch.commands.pack, [str(videos)]))


def test_parts_are_packed_and_merged_by_the_command(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("1/2", "2/2"):
        launch.commands.pack.run(
            _parse(launch.commands.pack, [str(videos), str(tmp_path), "--part", part, "--jobs", "0"])
        )
    launch.commands.pack.run(_parse(launch.commands.pack, [str(tmp_path), "--merge"]))
    assert "24 samples in 2 shards" in capsys.readouterr().out
    assert Manifest.load(tmp_path).samples == 24


def test_verify_ends_with_the_problems(videos: Path, tmp_path: Path) -> None:
    pack(str(videos), str(tmp_path), PackConfig(jobs=0))
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"(?s)1 problems found.*shard-000000.tar: no such shard"):
        launch.commands.inspect.run(_parse(launch.commands.inspect, [str(tmp_path), "--verify"]))
