"""Shards behind a real server that drops connections, is busy and is slow."""

import contextlib
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import data.loading.remote
from data.loading.loader import DataConfig, EvalLoader, TrainLoader
from data.loading.remote import Cache
from data.manifest import Manifest


class _Server(ThreadingHTTPServer):
    """Serves a folder, misbehaving as `mood` says; counts requests by path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.mood = ""
        self.requests: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: _Server = self.server  # type: ignore[assignment]
        server.requests[self.path] += 1
        count, mood = server.requests[self.path], server.mood
        if (mood == "busy" and count <= 2) or (mood == "out of reach" and count <= 12):
            self.send_error(503)
            return
        if mood == "trickling headers":
            self.send_response(200)
            self.flush_headers()
            self._never_end(b"X-Long: ", 0.05)
            return
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        asked = self.headers.get("Range", "")
        start = int(asked[len("bytes=") : -1]) if asked and mood != "no ranges" else 0
        self.send_response(206 if start else 200)
        if mood != "endless":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if mood in ("endless", "trickle"):
            self._never_end(rest if mood == "endless" else b"", 0.05 if mood == "trickle" else 0)
            return
        if mood == "cuts manifests" and count <= 3 and path.suffix == ".json":
            self.wfile.write(rest[: len(rest) // 3])
            self.close_connection = True
            return
        if mood in ("drops", "no ranges") and count <= 3 and path.suffix == ".tar":
            self.wfile.write(rest[: len(rest) // 3])
            self.close_connection = True
            return
        if mood == "slow":
            for begin in range(0, len(rest), 4096):
                time.sleep(0.001)
                self.wfile.write(rest[begin : begin + 4096])
            return
        self.wfile.write(rest)

    def _never_end(self, begin: bytes, pause: float) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(begin)
            while True:
                self.wfile.write(b" " if pause else bytes(1 << 16))
                time.sleep(pause)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setattr(data.loading.remote, "PAUSE", 0.01)
    monkeypatch.setattr(data.loading.remote, "MAX_PAUSE", 0.05)
    server = _Server(packed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(config: DataConfig, server: _Server, tmp_path: Path) -> DataConfig:
    return dataclasses.replace(config, path=server.url, cache=str(tmp_path / "cache"))


@pytest.mark.parametrize("mood", ["", "busy", "drops", "no ranges", "slow", "out of reach", "cuts manifests"])
def test_remote_shards_give_the_same_batches(
    config: DataConfig, remote: DataConfig, server: _Server, mood: str
) -> None:
    server.mood = mood
    local = [batch.clips.sum().item() for batch in EvalLoader(config, 6)]
    assert [batch.clips.sum().item() for batch in EvalLoader(remote, 6)] == local
    again = sum(server.requests.values())
    assert [batch.clips.sum().item() for batch in EvalLoader(dataclasses.replace(remote, workers=2), 6)] == local
    assert sum(server.requests.values()) - again == 1  # the manifest; all shards lie in the cache


def test_several_workers_download_a_shard_once(remote: DataConfig, server: _Server) -> None:
    iterator = iter(TrainLoader(dataclasses.replace(remote, workers=2), 4, seed=0))
    keys = [key for _ in range(6) for key in next(iterator).keys]
    iterator.close()  # type: ignore[attr-defined]
    assert len(set(keys)) == 24
    assert max(server.requests.values()) == 1


def test_the_cache_stays_in_its_bounds(remote: DataConfig, packed: Path, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in Manifest.load(packed).shards)
    small = dataclasses.replace(remote, cache_gb=2.5 * largest / 1e9, shuffle_shards=1)
    assert len([key for batch in EvalLoader(small, 6) for key in batch.keys]) == 24
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.shard")) <= 2.5 * largest


def test_equal_names_in_different_folders_do_not_collide(server: _Server, packed: Path, tmp_path: Path) -> None:
    shard = Manifest.load(packed).shards[0]
    cache = Cache(str(tmp_path))
    one = cache.fetch(f"{server.url}/{shard.name}", shard.bytes, shard.sha256)
    server.folder = packed.parent
    other = cache.fetch(f"{server.url}/{packed.name}/{shard.name}", shard.bytes, shard.sha256)
    assert one != other
    assert one.read_bytes() == other.read_bytes() == (packed / shard.name).read_bytes()


def test_what_is_not_there_or_not_right_is_a_clear_error(
    remote: DataConfig, server: _Server, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere/manifest.json: HTTP 404"):
        TrainLoader(dataclasses.replace(remote, path=f"{server.url}/nowhere"), 2, 0)
    shard = Manifest.load(packed).shards[0]
    with pytest.raises(OSError, match="not what the manifest says"):
        Cache(str(tmp_path)).fetch(f"{server.url}/{shard.name}", shard.bytes, "0" * 64)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(OSError, match=r"gave up after 0.1 s .*data.outage"):
        Manifest.load("http://127.0.0.1:9", outage=0.1)


def test_an_outage_is_reported_twice_a_minute_not_at_every_attempt(
    remote: DataConfig, server: _Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.mood = "out of reach"
    Manifest.load(remote.path)
    assert server.requests["/manifest.json"] == 13
    assert caplog.text.count("HTTP 503") == 1
    assert "trying again for up to 600 s" in caplog.text


def test_a_body_longer_than_announced_is_cut_and_reported(
    server: _Server, packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mood = "endless"
    shard = Manifest.load(packed).shards[0]
    found = Cache(str(tmp_path)).fetch(f"{server.url}/{shard.name}", shard.bytes, shard.sha256)
    assert found.read_bytes() == (packed / shard.name).read_bytes()
    assert f"longer than the {shard.bytes} bytes in the manifest" in caplog.text
    monkeypatch.setattr(data.loading.remote, "MAX_MANIFEST", 1 << 20)
    with pytest.raises(ValueError, match="no manifest is that long"):
        Manifest.load(server.url)


def expect_giving_up(server: _Server, monkeypatch: pytest.MonkeyPatch, mood: str, problem: str) -> None:
    """A server in this mood is tried again, and given up on with the problem."""
    monkeypatch.setattr(data.loading.remote, "READ_TIMEOUT", 0.3)
    server.mood = mood
    with pytest.raises(OSError, match=rf"gave up after 1 s without progress \({problem}"):
        Manifest.load(server.url, outage=1)
    assert server.requests["/manifest.json"] > 1


def test_a_trickle_is_given_up_on(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_giving_up(server, monkeypatch, "trickle", r"only \d+ bytes in 0 s\)")


def test_headers_that_trickle_are_given_up_on(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_giving_up(server, monkeypatch, "trickling headers", ".*headers")


def test_other_schemes_go_through_fsspec(config: DataConfig, packed: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe(f"/shards/{path.name}", path.read_bytes())
    remote = dataclasses.replace(config, path="memory://shards", cache=str(tmp_path))
    assert [b.keys for b in EvalLoader(remote, 6)] == [b.keys for b in EvalLoader(config, 6)]
    with pytest.raises(ValueError, match="nonsense"):
        Manifest.load("nonsense://shards")


def _pipe(config: DataConfig, folder: Path, command: str) -> DataConfig:
    return dataclasses.replace(config, path=f"pipe:{command}", cache=str(folder / "cache"))


@pytest.mark.parametrize("command", ["cat {folder}", "cat < {folder}/{{}}"])
def test_a_command_gives_the_same_batches_once_it_is_allowed(
    config: DataConfig, packed: Path, tmp_path: Path, command: str
) -> None:
    trace = tmp_path / "trace"
    piped = _pipe(config, tmp_path, f"echo run >> {trace}; " + command.format(folder=packed))
    for open_loader in (lambda: TrainLoader(piped, 4, 0), lambda: EvalLoader(piped, 6)):
        with pytest.raises(ValueError, match="commands is disabled; data.allow_pipe=true enables it"):
            open_loader()
    assert not trace.exists()
    allowed = dataclasses.replace(piped, allow_pipe=True, workers=2)
    local = [batch.clips.sum().item() for batch in EvalLoader(config, 6)]
    for _ in range(2):
        assert [batch.clips.sum().item() for batch in EvalLoader(allowed, 6)] == local
    shards = len(Manifest.load(packed).shards)
    assert len(trace.read_text().split()) == shards + 2  # every shard once, then from the cache; the manifest twice


def test_a_command_that_fails_is_explained(
    config: DataConfig, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.loading.remote, "PAUSE", 0.01)
    monkeypatch.setattr(data.loading.remote, "MAX_PAUSE", 0.05)
    flag = tmp_path / "failed"
    once = f"if [ ! -e {flag} ]; then touch {flag}; head -c 40 {packed}/{{}}; exit 3; fi; cat {packed}/{{}}"
    piped = dataclasses.replace(_pipe(config, tmp_path, once), allow_pipe=True)
    assert len(list(EvalLoader(piped, 6))) == 4  # the second attempt goes on after the first one's bytes
    nowhere = dataclasses.replace(_pipe(config, tmp_path, f"cat {tmp_path}/nowhere"), allow_pipe=True, outage=0.3)
    with pytest.raises(
        OSError, match=r"gave up after 0.3 s without progress \(the command ended with 1: .*No such file"
    ):
        EvalLoader(nowhere, 6)


def test_a_manifest_cannot_add_to_a_command(config: DataConfig, packed: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    manifest = Manifest.load(packed)
    evil = dataclasses.replace(manifest.shards[0], name=f"$(touch {trap.name}) .tar")
    folder = tmp_path / "set"
    folder.mkdir()
    dataclasses.replace(manifest, folder=str(folder), shards=(evil,), totals={}).save()
    piped = dataclasses.replace(_pipe(config, tmp_path, f"cd {tmp_path}; cat {folder}"), allow_pipe=True)
    with pytest.raises(ValueError, match="must have a plain name"):
        list(EvalLoader(piped, 6))
    assert not trap.exists()
