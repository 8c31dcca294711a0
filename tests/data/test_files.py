"""Files are whole or not there; locks end with their holder and name it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.files import (
    InUseError,
    Lock,
    claim_folder,
    name_part,
    publish,
    remove_leftovers,
    replacing,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[2]
HOLD = """
import os, sys, time
from pathlib import Path
from data.files import claim_folder
lock = claim_folder(Path(sys.argv[1]), "train", "give another run.output")
if len(sys.argv) > 2 and os.fork() == 0:
    time.sleep(60)  # a loading process that outlives its parent
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """A process that has claimed a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def write_half(path: Path) -> None:
    with replacing(path) as part, part.open("w") as file:
        file.write("half of the n")
        file.write(1)  # type: ignore[arg-type]


def write_folder(path: Path, name: str) -> None:
    with replacing(path) as part:
        (part / name).parent.mkdir(parents=True)
        (part / name).write_text("x")
        assert not (path / name).exists()


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_shows_the_old_content_until_all_of_the_new_is_there(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    write_json(path, {"step": 1})
    with replacing(path) as part:
        part.write_text(json.dumps({"step": 2}))
        assert json.loads(path.read_text()) == {"step": 1}
    assert json.loads(path.read_text()) == {"step": 2}


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace, fsync = os.replace, os.fsync

    def note_sync(descriptor: int) -> None:
        done.append("sync")
        fsync(descriptor)

    def note_replace(*names: Path) -> None:
        done.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "a", "a")
    assert done == ["sync", "rename", "sync"], "the file, its name, the folder"


def test_a_folder_appears_whole_and_never_mixes_with_another(tmp_path: Path) -> None:
    target = tmp_path / "code"
    write_folder(target, "launch/a.py")
    assert (target / "launch" / "a.py").read_text() == "x"
    with pytest.raises(OSError, match="not empty"):
        write_folder(target, "b.py")
    assert [path.name for path in target.iterdir()] == ["launch"]
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


def test_a_name_of_full_length_is_written(tmp_path: Path) -> None:
    for name in ("v" * 255, "ü" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_leftovers_go_and_what_has_its_name_stays(tmp_path: Path) -> None:
    for name in ("shard-000001.tar", "shard-part-0001-of-0002-000001.tar"):
        name_part(tmp_path / name).write_text("half")
    (tmp_path / ".mine.part").write_text("not ours")
    part = name_part(tmp_path / "whole")
    part.write_text("all")
    publish(part, tmp_path / "whole")
    remove_leftovers(tmp_path, "shard-[0-9]*")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 3
    assert left[1].startswith(".shard-part")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "whole"]


def test_a_claimed_folder_is_refused_and_the_holder_named(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(InUseError) as refused:
            claim_folder(tmp_path, "train", "give another run.output")
    finally:
        end(process)
    words = str(refused.value)
    assert f"{tmp_path} is in use by another train (process {process.pid} on {socket.gethostname()}, since" in words
    assert words.endswith("wait for it, stop it, or give another run.output")


def test_a_killed_holder_gives_the_folder_back_though_a_process_it_forked_lives_on(tmp_path: Path) -> None:
    process = hold(tmp_path, "fork")
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)
    try:
        claim_folder(tmp_path, "train", "").close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_holder_of_another_machine_that_did_not_let_go_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {"host": "elsewhere", "process": "7", "job": "12", "since": "2026-01-01 00:00:00"}
    (tmp_path / ".train.lock").write_text(json.dumps(facts))
    claim_folder(tmp_path, "train", "").close()
    assert "process 7 on elsewhere, job 12, since 2026-01-01 00:00:00 held this folder" in caplog.text
    caplog.clear()
    claim_folder(tmp_path, "train", "").close()
    assert not caplog.text, "given back in order"


def test_shared_locks_exclude_only_who_wants_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Lock(path, shared=True) as one, Lock(path, shared=True) as two, Lock(path) as alone:
        assert one.held
        assert two.held
        assert not alone.held
    with Lock(path) as alone:
        assert alone.held


def test_a_lock_whose_file_was_deleted_while_it_was_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    flock, deleted = __import__("fcntl").flock, []

    def delete_first(file: object, kind: int) -> None:
        if not deleted:
            deleted.append(path.unlink())
        flock(file, kind)

    monkeypatch.setattr("data.files.fcntl.flock", delete_first)
    with Lock(path) as lock:
        assert lock.held
        assert path.samefile(f"/proc/self/fd/{lock.file.fileno()}")
