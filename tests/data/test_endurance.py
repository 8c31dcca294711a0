"""What only shows after a long time: kills at any moment, and ten thousand videos opened one after the other."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data.loading.workers
from data.decode import HAS_DECORD, Decoder, Frames, decode_frames
from data.loading.loader import DataConfig, TrainLoader

KILLS = 20

_TRAIN = """
import json, os, sys
from data.loading.loader import DataConfig, TrainLoader

config = DataConfig(path=sys.argv[1], frames=4, stride=2, crop=32, workers=int(sys.argv[3]), shuffle_shards=3)
loader = TrainLoader(config, batch=5, seed=9)
log = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_APPEND)
lines = os.read(log, 1 << 30).splitlines(keepends=True)
if lines and not lines[-1].endswith(b"\\n"):
    os.ftruncate(log, sum(len(line) for line in lines[:-1]))
    lines.pop()
if lines:
    loader.load_state_dict(json.loads(lines[-1])["state"])
print("ready", flush=True)
for batch in loader:
    row = {"state": loader.state_dict(), "keys": batch.keys, "sum": int(batch.clips.sum())}
    os.write(log, json.dumps(row).encode() + b"\\n")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_loader_killed_at_any_moment_goes_on_with_the_very_next_clip(config: DataConfig, tmp_path: Path) -> None:
    log, moment = tmp_path / "log", random.Random(0)
    for life in range(KILLS):
        words = [sys.executable, "-c", _TRAIN, config.path, str(log), str(life % 3)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.6 * moment.random())
        assert process.poll() is None
        process.kill()
        process.wait()
        process.stdout.close()
    text = log.read_text()
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    assert len(rows) > KILLS
    undisturbed = TrainLoader(config, batch=5, seed=9)
    for number, (row, batch) in enumerate(zip(rows, undisturbed, strict=False), 1):
        assert row["state"]["position"] == batch.position == 5 * number
        assert (row["keys"], row["sum"]) == (batch.keys, int(batch.clips.sum()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("decoder", ["decord", "av"])
def test_ten_thousand_opens_do_not_grow(config: DataConfig, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    if decoder == "decord" and not HAS_DECORD:
        pytest.skip("needs decord")
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")

    def decode(video: bytes, indices: list[int], _: Decoder, timeout: float) -> Frames:
        return decode_frames(video, indices, decoder)

    monkeypatch.setattr(data.loading.workers, "decode_isolated", decode)
    batches = iter(TrainLoader(config, batch=10, seed=0))

    def use() -> tuple[int, int, int]:
        """Bytes in memory, open files, threads."""
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        return memory, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))

    for _ in range(100):
        next(batches)
    memory, files, threads = use()
    for _ in range(1000):
        next(batches)
    assert use()[0] - memory < 10e6
    assert use()[1] - files <= 2
    assert use()[2] - threads <= 2
