"""A damaged results.json, encoder.json or checkpoint is one line with its name; no name controls a terminal."""

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.__main__ import main
from launch.training.checkpoints import find_fault, read_checkpoint
from probes.evaluate import Answers, Result
from probes.metrics import score
from probes.results import write_results
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.native import load_native, save_encoder

HOSTILE: list[Any] = [None, -1, 1e308, True, "", "\x1b[31m", [], [[]], {}, {"a": []}, "x" * 1000, 10**30]


def every_place(content: Any) -> Iterator[tuple[Any, Any]]:
    """(parent, key) of every value in nested dicts and lists."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from every_place(value)


def damaged(text: str, draw: random.Random, count: int) -> Iterator[bytes]:
    """Copies of a JSON text: one value replaced, one entry left out, the end cut off, or a bit flipped."""
    for number in range(count):
        content = json.loads(text)
        parent, key = draw.choice(list(every_place(content)))
        if number % 4 == 0:
            parent[key] = draw.choice(HOSTILE)
        elif number % 4 == 1:
            del parent[key]
        changed = bytearray(json.dumps(content).encode())
        if number % 4 == 2:
            del changed[draw.randrange(len(changed)) :]
        elif number % 4 == 3:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def test_a_damaged_results_json_is_compared_or_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = torch.arange(6) % 2
    said = torch.nn.functional.one_hot(labels, 2).float()
    answers = Answers([f"video {number}" for number in range(6)], labels, said, {})
    rows = [Result("encoder", head, score(said, labels), {}, 0, answers) for head in ("linear", "knn")]  # type: ignore[arg-type]
    path = write_results(tmp_path, rows, ["left", "right"], {})
    refused = 0
    for content in damaged(path.read_text(), random.Random(0), 200):
        path.write_bytes(content)
        status = main(["compare", str(tmp_path)])
        assert status in (0, 2), content
        refused += status == 2
        assert "\x1b" not in "".join(capsys.readouterr())
    assert 40 < refused < 200


def test_a_damaged_encoder_json_is_an_error_with_its_name(tmp_path: Path) -> None:
    config = EncoderConfig(frames=4, crop=16, patch=8, tubelet=2, width=12, depth=1, heads=2)
    save_encoder(Encoder(config), tmp_path)
    path = tmp_path / "encoder.json"
    refused = 0
    for content in [*damaged(path.read_text(), random.Random(0), 60), b"[1]", b"[" * 100_000, b"\xff"]:
        path.write_bytes(content)
        if problem := _find_problem(tmp_path):
            refused += 1
            assert str(tmp_path) in problem, content
    assert refused > 20


def _find_problem(folder: Path) -> str:
    try:
        load_native(folder)
    except ValueError as error:
        return str(error)
    return ""


def _save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(("field", "value"), [(8, 1), (10, 0xFF), (42, 0x7F), (46, 0xFF), (24, 0x7F)])
def test_damage_in_a_checkpoints_directory_is_a_fault(tmp_path: Path, field: int, value: int) -> None:
    path = _save(tmp_path / "step-1.ckpt", {"state_dict": {"w": torch.zeros(1000)}})
    assert find_fault(path) == ""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + field] ^= value
    path.write_bytes(content)
    assert find_fault(path)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": _Trap()}, "would run"),
        ({"state_dict": [1]}, "state_dict must be a dict"),
        ({"state_dict": {"w": "text"}}, "nothing but tensors"),
        ({"state_dict": {}, "config": 3}, "config must be a dict"),
        ([1, 2], "must hold a dictionary"),
    ],
)
def test_a_checkpoint_with_another_payload_is_refused_with_its_name(
    tmp_path: Path, content: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _save(tmp_path / "step-1.ckpt", content)
    with pytest.raises(ValueError, match=rf"step-1.ckpt.*{reason}"):
        read_checkpoint(path, ())
    assert reason in find_fault(path)
    assert "executed" not in capsys.readouterr().out


def test_names_are_printed_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "\x1b[31mred"
    with contextlib.suppress(OSError):
        folder.mkdir()
        (folder / "\x1b]0;title\x07.mp4").write_bytes(b"text")
    assert main(["pack", str(folder), str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert main(["inspect", str(folder)]) == 2
    assert main(["train", str(folder / "c.yaml")]) == 2
    shown = "".join(capsys.readouterr())
    assert "\\x1b[31mred" in shown
    assert not {"\x1b", "\x07"} & set(shown)
