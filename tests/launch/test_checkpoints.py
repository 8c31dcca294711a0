"""A checkpoint is whole or not there; a damaged one is skipped loudly; one that does not fit names the key."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from launch.training import checkpoints
from launch.training.checkpoints import find_fault, latest_checkpoint, list_checkpoints, read_checkpoint
from launch.training.saving import CheckpointFiles, HostCopies

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture
def finished(quick: list[str], tmp_path: Path) -> Path:
    """A run of six steps with checkpoints at 3 and 6."""
    assert main(["train", CONFIG, *quick]) == 0
    return tmp_path / "run"


def test_newest_and_every_k_are_kept(quick: list[str], tmp_path: Path) -> None:
    words = ["run.steps=7", "run.checkpoint_every=1", "run.keep=2", "run.keep_every=4"]
    assert main(["train", CONFIG, *quick, *words]) == 0
    assert list(list_checkpoints(tmp_path / "run")) == [7, 6, 4]


def test_a_killed_save_never_leaves_half_a_file_under_the_final_name(tmp_path: Path) -> None:
    program = f"""
import torch
from pathlib import Path
from launch.training.saving import CheckpointFiles
path, files = Path({str(tmp_path)!r}) / "step-1.ckpt", CheckpointFiles()
for number in range(10**6):
    files.save_checkpoint({{"x": torch.full((400_000,), number)}}, path)
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    path = tmp_path / "step-1.ckpt"
    while not path.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(50):
        stored = torch.load(path, weights_only=True)["x"]
        assert bool((stored == stored[0]).all())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert find_fault(path) == ""


def test_what_is_saved_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), real[0](file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("replace"), real[1](old, new)))
    files = CheckpointFiles()
    files.save_checkpoint({"x": 1}, tmp_path / "folder" / "step-1.ckpt")
    files.wait()
    assert calls == ["fsync", "replace", "fsync"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["step-1.ckpt"]


def _store(folder: Path, step: int, content: object = None) -> Path:
    path = folder / "checkpoints" / f"step-{step}.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save(content or {"state_dict": {"w": torch.arange(1000.0)}, "config": {}, "position": step}, path)
    return path


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def _with_payload(path: Path) -> None:
    torch.save({"state_dict": {"w": _Payload()}}, path)


def _with_damaged_directory(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 42] ^= 0x7F  # where the last member begins
    path.write_bytes(content)


def _with_damaged_tensor(path: Path) -> None:
    content = bytearray(path.read_bytes())
    begin = content.index(torch.arange(1000.0).numpy().tobytes())
    content[begin + 2000] ^= 1
    path.write_bytes(content)


def _with_damaged_pickle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"state_dict")] ^= 0x20
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [_with_payload, _with_damaged_directory, _with_damaged_tensor, _with_damaged_pickle, lambda p: p.write_bytes(b"")],
)
def test_any_damage_falls_back_to_the_checkpoint_before_and_names_the_file(
    tmp_path: Path,
    damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, newest = _store(tmp_path, 3), _store(tmp_path, 6)
    assert latest_checkpoint(tmp_path) == newest
    damage(newest)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == before
    assert f"CHECKPOINT DAMAGED: skipping {newest}" in caplog.text
    damage(before)
    with pytest.raises(ValueError, match=r"step-6.ckpt.*step-3.ckpt.*No checkpoint is intact"):
        latest_checkpoint(tmp_path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_loudly(
    finished: Path, quick: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest, before = list_checkpoints(finished).values()
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        with zipfile.ZipFile(newest) as archive:
            tensor = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
        content[content.index(tensor) + len(tensor) // 2] ^= 1  # a single bit, in the largest tensor
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(finished) == before
    assert f"CHECKPOINT DAMAGED: skipping {newest}" in caplog.text
    assert main(["train", CONFIG, *quick]) == 0
    assert latest_checkpoint(finished) == newest, "written again"


def test_where_all_are_damaged_the_run_does_not_begin_anew(
    finished: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in list_checkpoints(finished).values():
        path.write_bytes(b"nothing")
    assert main(["train", CONFIG, *quick]) == 2
    assert "No checkpoint is intact" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "weights: objective.context_encoder.norm.weight is missing"),
        ("extra", "weights: somebody.elses is not part of the model"),
        ("shape", "weights: objective.context_encoder.norm.weight has shape [23] in the file and [24] in the config"),
        ("moment", "the optimiser's state: "),
        ("position", "it lacks position"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key(
    finished: Path, quick: list[str], change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list_checkpoints(finished)[6]
    stored = torch.load(path, weights_only=True)
    weights, moments = stored["state_dict"], stored["optimizer_states"][0]["state"]
    if change == "missing":
        del weights["objective.context_encoder.norm.weight"]
    elif change == "extra":
        weights["somebody.elses"] = torch.zeros(1)
    elif change == "shape":
        weights["objective.context_encoder.norm.weight"] = torch.zeros(23)
    elif change == "moment":
        del moments[0]
    else:
        del stored["position"]
    torch.save(stored, path)
    assert main(["train", CONFIG, *quick]) == 2
    assert message in capsys.readouterr().err


def test_other_data_is_refused(finished: Path, quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = list_checkpoints(finished)[6]
    stored = torch.load(path, weights_only=True)
    assert read_checkpoint(path)["data"]["position"] == 48
    stored["data"]["fingerprint"] = "0123456789abcdef"
    torch.save(stored, path)
    assert main(["train", CONFIG, *quick]) == 2
    assert "the checkpoint has 0123456789abcdef: the shards or weights are not those" in capsys.readouterr().err


def test_what_training_changes_after_a_save_does_not_reach_the_file(tmp_path: Path) -> None:
    """The file is written while training goes on, from a copy of everything."""
    files, state = CheckpointFiles(), {"weights": {"a": torch.zeros(3)}, "groups": [{"lr": 1.0}], "pair": (1, "two")}
    state["weights"]["b"] = state["weights"]["a"][1:]
    let_go, write = threading.Event(), files._write
    files._write = lambda content, target: (let_go.wait(10), write(content, target))  # type: ignore[assignment]
    files.save_checkpoint(state, tmp_path / "step-1.ckpt")
    state["weights"]["a"] += 1
    state["groups"][0]["lr"] = 2.0
    assert not (tmp_path / "step-1.ckpt").exists()
    let_go.set()
    files.wait()
    stored = torch.load(tmp_path / "step-1.ckpt", weights_only=True)
    assert stored["weights"]["a"].tolist() == [0, 0, 0]
    assert stored["weights"]["b"].tolist() == [0, 0]
    assert stored["groups"] == [{"lr": 1.0}]
    assert stored["pair"] == (1, "two")


def test_a_save_that_fails_in_the_background_is_heard_at_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = CheckpointFiles()
    files.written = lambda: pytest.fail("old checkpoints are removed though the new one is not on disk")
    files.save_checkpoint({"x": 1}, tmp_path / "file" / "step-1.ckpt")  # a file where the folder should be
    with pytest.raises(OSError, match="file"):
        files.save_checkpoint({"x": 2}, tmp_path / "step-2.ckpt")
    files.wait()  # heard once
    assert not list(tmp_path.glob("*.ckpt"))


def test_copies_are_of_the_same_types(tmp_path: Path) -> None:
    state = {"a": OrderedDict(x=torch.ones(2)), "b": [1, (2, None)], "c": "text"}
    copied = HostCopies().copy(state)
    assert isinstance(copied["a"], OrderedDict)
    assert copied["b"] == [1, (2, None)]
    assert copied["a"]["x"].data_ptr() != state["a"]["x"].data_ptr()


def test_one_rank_verifies_and_the_others_take_its_word(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, before = list_checkpoints(finished).values()
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert latest_checkpoint(finished, rank=0) == before
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "find_fault", lambda path: pytest.fail("another rank reads the whole file"))
        assert latest_checkpoint(finished, rank=1) == before
    before.touch()  # as if written again: the note says nothing of it
    monkeypatch.setattr(checkpoints, "PATIENCE", 0.0)
    asked: list[Path] = []
    monkeypatch.setattr(checkpoints, "find_fault", lambda path: asked.append(path) or "")
    assert latest_checkpoint(finished, rank=1) == newest
    assert asked == [newest]
