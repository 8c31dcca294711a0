"""An index beside a shard: one positioned read a sample, noticed when stale, made for foreign shards too."""

import dataclasses
import io
import json
import os
import random
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeVideo
from loading import make_set, take

import data.loading.remote
from data.decode import DecodeError
from data.index import Entry, IndexFileError, Member, ShardIndex, TarFacts, cover, decode_index, encode_index
from data.loading.loader import DataConfig, TrainLoader
from data.loading.processes import check_open_files, start_method
from data.loading.remote import Cache
from data.loading.shards import ShardReader
from data.loading.tars import ALLOWED, index_path
from data.manifest import Manifest
from data.packing.indexing import index_folder

META = json.dumps({"frames": 8, "fps": 12.0}).encode()
SAMPLES = [{"mp4": bytes([65 + n]) * (900 + n), "json": META, "txt": b"a caption"} for n in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_set(tmp_path, SAMPLES)
    index_folder(tmp_path)
    return tmp_path


def read_all(reader: ShardReader) -> list[bytes]:
    return [reader.read(0, number).video for number in range(5)]


def test_a_sample_takes_one_read_and_a_shard_one_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, pread = [], os.pread

    def count(descriptor: int, size: int, offset: int) -> bytes:
        reads.append((offset, size))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", count)
    monkeypatch.setattr(tarfile, "open", None)  # no header is read
    reader = ShardReader(Manifest.load(folder))
    assert read_all(reader) == [sample["mp4"] for sample in SAMPLES]
    assert len(reads) == 5
    assert reader.read(0, 3).meta == {"frames": 8, "fps": 12.0}
    assert reads[5][1] < len(SAMPLES[3]["mp4"]) + 3 * 512 + 1024  # not the caption after them


def test_with_and_without_an_index_the_same_is_read(folder: Path) -> None:
    with_index = read_all(ShardReader(Manifest.load(folder)))
    index_path(folder / "shard-000000.tar").unlink()
    assert read_all(ShardReader(Manifest.load(folder))) == with_index


def test_an_index_survives_writing_and_reading() -> None:
    entries = [
        Entry("a/b\udcff\n", {"mp4": Member(512, 7, 1), "json": Member(1536, 9, 2**32 - 1)}),
        Entry("c", {"webm": Member(4096, 0, 3)}, {"frames": 4, "fps": 2.0, "times": [0.0, 0.5]}),
    ]
    index = ShardIndex(entries, TarFacts(10240, "ab", 5, "tag"), [("d", "no video")])
    found = decode_index(encode_index(index), "x", ALLOWED)
    assert (list(found), found.tar, found.rejected) == (entries, index.tar, (("d", "no video"),))


def test_a_damaged_index_is_refused_by_name(folder: Path) -> None:
    path = index_path(folder / "shard-000000.tar")
    whole = path.read_bytes()
    outside = ShardIndex([Entry("a", {"mp4": Member(512, 99999, 0)})], TarFacts(10240))
    evil = ShardIndex([Entry("a", {"pickle": Member(512, 9, 0)})], TarFacts(10240))
    for content in (b"", whole[:-3], whole.replace(b"sample001", b"sample00X"), b'{"format": 3}\n', b"[]\n",
                    encode_index(outside), encode_index(evil)):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(IndexFileError, match=r"shard-000000.tar.index: not a valid index .*vjepa index FOLDER"):
            ShardReader(Manifest.load(folder)).read(0, 0)


def test_a_stale_index_is_noticed_and_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    manifest, path = Manifest.load(folder), folder / "shard-000000.tar"
    other = tmp_path_factory.mktemp("other")
    make_set(other, SAMPLES[:4])
    path.write_bytes((other / path.name).read_bytes())
    shard = dataclasses.replace(manifest.shards[0], samples=4, bytes=path.stat().st_size)
    changed = dataclasses.replace(manifest, shards=(shard,))
    if shard.bytes != manifest.shards[0].bytes:
        with pytest.raises(IndexFileError, match=r"shard-000000.tar.index: the index is stale.*vjepa index FOLDER"):
            ShardReader(changed).read(0, 0)
    make_set(folder, [*SAMPLES[:2], {"mp4": b"x" * 901, "json": META}, *SAMPLES[3:]])  # of the same size
    reader = ShardReader(Manifest.load(folder))
    assert reader.read(0, 0).video == SAMPLES[0]["mp4"]
    with pytest.raises(DecodeError, match=r"does not match its index.*shard-000000.tar.*vjepa index FOLDER"):
        reader.read(0, 2)
    sealed = dataclasses.replace(shard, bytes=path.stat().st_size, samples=5, sha256="1" * 64)
    index = decode_index(index_path(path).read_bytes(), "x", ALLOWED)
    index_path(path).write_bytes(encode_index(ShardIndex(list(index), dataclasses.replace(index.tar, sha256="2" * 64))))
    with pytest.raises(IndexFileError, match="the index is stale, it was made for a tar with sha256 222222222222"):
        ShardReader(dataclasses.replace(manifest, shards=(sealed,))).read(0, 0)
    assert index_folder(folder).written == 1
    assert ShardReader(Manifest.load(folder)).read(0, 2).video == b"x" * 901


def test_members_far_apart_are_read_one_by_one() -> None:
    members = {"mp4": Member(512, 1000), "json": Member(2048, 100), "cls": Member(1_000_000, 1)}
    assert cover(members, 1 << 16) == [(0, 2148), (1_000_000 - 512, 1_000_001)]


def test_foreign_shards_are_measured_once_and_left_alone(make_video: MakeVideo, tmp_path: Path) -> None:
    """video2dataset's layout: numbered tars with mp4, txt and json, which say nothing of frames; no manifest."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for number in range(3):
                key = f"{shard:05d}{number:04d}"
                video = b"text, not a video" if (shard, number) == (1, 2) else make_video(frames=9 + number)
                for name, content in (("mp4", video), ("txt", b"a caption"), ("json", b'{"key": "x"}')):
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    tars = {path: path.read_bytes() for path in tmp_path.glob("*.tar")}
    report = index_folder(tmp_path, jobs=0)
    assert (report.samples, report.written, report.kept) == (5, 2, 0)
    assert [one.path for one in report.rejected] == ["00001.tar/000010002"]
    assert report.rejected[0].reason.startswith("not a video")
    manifest = Manifest.load(tmp_path)
    assert (manifest.samples, manifest.indexed, manifest.totals["frames"]) == (5, True, 9 + 10 + 11 + 9 + 10)
    (batch,) = take(TrainLoader(DataConfig(path=str(tmp_path), frames=4, stride=1, crop=16, workers=0), 5, 0), 1)
    assert sorted(batch.keys) == ["000000000", "000000001", "000000002", "000010000", "000010001"]
    meta = ShardReader(manifest).read(0, 1).meta
    assert (meta["frames"], meta["key"]) == (10, "x")
    again = index_folder(tmp_path, jobs=0)
    assert (again.samples, again.written, again.kept, again.rejected) == (5, 0, 2, report.rejected)
    assert {path: path.read_bytes() for path in tars} == tars
    index_path(tmp_path / "00000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"00000.tar.index: missing, but the manifest relies on it"):
        ShardReader(manifest).read(0, 0)


def test_a_folder_without_usable_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tar files here"):
        index_folder(tmp_path)
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(ValueError, match=r"not one sample of 1 tars can be used"):
        index_folder(tmp_path, jobs=0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        asked = self.headers.get("Range", "")
        server.requests.append((self.path, asked))
        server.peers.add(self.client_address)
        if server.mood == "busy" and len(server.requests) % 2:
            self.send_error(503)
            return
        if server.mood == "moved" and not self.path.startswith("/new"):
            self.send_response(302)
            self.send_header("Location", f"/new{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = server.folder / self.path.removeprefix("/new").lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        ranged = asked and server.mood != "no ranges"
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None] if ranged else content
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(part)))
        if ranged:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.end_headers()
        if server.mood == "cuts" and ranged and len(server.requests) % 2:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(data.loading.remote, "PAUSE", 0.01)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.mood, server.requests, server.peers = folder, "", [], set()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("mood", ["", "busy", "cuts", "moved"])
def test_remote_samples_are_read_by_ranges_over_one_connection(server: Any, tmp_path: Path, mood: str) -> None:
    manifest = Manifest.load(server.url)
    server.mood, server.peers = mood, set()
    server.requests.clear()
    reader = ShardReader(manifest, cache=Cache(str(tmp_path / "cache")))
    assert read_all(reader) == [sample["mp4"] for sample in SAMPLES]
    assert not (tmp_path / "cache").exists()
    ranged = [asked for path, asked in server.requests if path.endswith(".tar")]
    assert all(ranged)
    if not mood:
        assert len(ranged) == 5
        assert sum(path.endswith(".index") for path, _ in server.requests) == 1
        assert len(server.peers) == 2  # one for the index, one for all ranges


def test_a_server_without_ranges_is_read_whole(server: Any, tmp_path: Path) -> None:
    server.mood = "no ranges"
    cache = Cache(str(tmp_path / "cache"))
    assert read_all(ShardReader(Manifest.load(server.url), cache=cache)) == [sample["mp4"] for sample in SAMPLES]
    assert len(list((tmp_path / "cache").glob("*.shard"))) == 1
    server.mood = ""
    server.requests.clear()
    assert len(read_all(ShardReader(Manifest.load(server.url), cache=cache, whole=True))) == 5
    assert [path for path, _ in server.requests] == ["/manifest.json"]  # cached on purpose: nothing else is asked for


def test_a_remote_shard_that_was_replaced_is_noticed(server: Any, folder: Path) -> None:
    manifest = Manifest.load(server.url)
    reader = ShardReader(manifest)
    assert reader.read(0, 0).video == SAMPLES[0]["mp4"]
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(IndexFileError, match=r"shard-000000.tar.index: the index is stale.*the server has \d+ bytes"):
        reader.read(0, 1)


def test_other_schemes_are_read_by_ranges_too(folder: Path, tmp_path: Path) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for path in folder.iterdir():
        if path.is_file():
            memory.pipe(f"/indexed/{path.name}", path.read_bytes())
    reader = ShardReader(Manifest.load("memory://indexed"), cache=Cache(str(tmp_path / "cache")))
    assert read_all(reader) == [sample["mp4"] for sample in SAMPLES]
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_loading_process_may_be_started_by_a_server(
    folder: Path, make_video: MakeVideo, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("videos")
    make_set(other, [{"mp4": make_video(frames=8, offset=n), "json": META} for n in range(4)])
    config = DataConfig(path=str(other), frames=4, stride=1, crop=16, workers=0)
    (here,) = take(TrainLoader(config, 4, 0), 1)
    monkeypatch.setattr("data.loading.processes.start_method", lambda: "forkserver")
    (there,) = take(TrainLoader(dataclasses.replace(config, workers=1), 4, 0), 1)
    assert there.keys == here.keys
    assert there.clips.equal(here.clips)


def test_random_damage_never_gives_the_wrong_sample(folder: Path) -> None:
    draw, path = random.Random(0), folder / "shard-000000.tar"
    manifest, index, tar = Manifest.load(folder), index_path(path).read_bytes(), path.read_bytes()
    headers = [member.offset - 512 for entry in decode_index(index, "x", ALLOWED) for member in entry.members.values()]
    outcomes = set()
    for seed in range(150):
        where, damaged = (index_path(path), bytearray(index)) if seed % 2 else (path, bytearray(tar))
        at = draw.randrange(len(index)) if seed % 2 else draw.choice(headers) + draw.randrange(512)
        damaged[at] ^= 1 << draw.randrange(8)
        where.write_bytes(damaged)
        try:
            reader = ShardReader(manifest)
            for number, sample in enumerate(SAMPLES):
                assert reader.read(0, number).video == sample["mp4"]
            outcomes.add("read")
        except (IndexFileError, DecodeError) as error:
            outcomes.add(type(error).__name__ if "index" in str(error) else str(error))
        where.write_bytes(index if seed % 2 else tar)
    assert {"IndexFileError", "DecodeError"} <= outcomes <= {"read", "IndexFileError", "DecodeError"}


def test_open_files_are_raised_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, 1024))
    monkeypatch.setattr("resource.setrlimit", lambda kind, limits: changed.append(limits))
    check_open_files(0)
    assert not changed
    check_open_files(100)
    assert changed == [(356, 1024)]
    with pytest.raises(OSError, match=r"needs 1256 open files \(1000 of them shards\), the limit is 1024.*data.lanes"):
        check_open_files(1000)


def test_workers_are_forked_only_where_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_method() is None
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    assert start_method() == "forkserver"
    monkeypatch.undo()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    for backend, expected in (("gloo", None), ("nccl", "forkserver"), ("cpu:gloo,cuda:nccl", "forkserver")):
        monkeypatch.setattr("torch.distributed.get_backend", lambda backend=backend: backend)
        assert start_method() == expected
