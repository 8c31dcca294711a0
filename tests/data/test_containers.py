"""No video makes a decoder open a file, an address or a socket; what tries is refused by name and counted."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import hostile
import pytest
from conftest import MakeVideo, encode
from loading import make_set, take

from data.containers import DecodeError, identify, is_safe_to_guess
from data.decode import Decoder, decode_frames, open_video, probe_video
from data.isolation import decode_isolated, probe_isolated
from data.loading.loader import DataConfig, TrainLoader
from data.loading.shards import ShardReader
from data.manifest import Manifest
from data.packing.pack import PackConfig, pack
from data.packing.verify import verify_shards
from launch.exchange.features import read_video

DECODERS: list[Decoder] = ["auto", "av", "decord"]


class _Canary:
    """A video on a server and in a file; `touched` says whether anybody asked for either."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        canary, video = self, encode(frames=30)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                canary.requests.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(video)

            def log_message(self, *words: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.file = folder / "canary.mp4"
        self.file.write_bytes(video)
        os.utime(self.file, ns=(0, 0))  # so that relatime notes the first reading
        self.addresses = (
            f"http://127.0.0.1:{self.server.server_port}/canary.mp4",
            f"file://{self.file}",
            str(self.file),
            self.file.name,
        )

    def touched(self) -> bool:
        return bool(self.requests) or self.file.stat().st_atime_ns != 0


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Canary]:
    monkeypatch.chdir(tmp_path)
    watched = _Canary(tmp_path)
    yield watched
    watched.server.shutdown()
    watched.server.server_close()


def _listening() -> set[str]:
    """Sockets of this process that wait for somebody."""
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            own.add(os.readlink(link))
    found = set()
    for name in ("tcp", "udp", "tcp6", "udp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] in ("0A", "07") and f"socket:[{words[9]}]" in own:
                found.add(f"{name} {words[1]}")
    return found


def _hostile_files(address: str) -> dict[str, bytes]:
    return {
        **hostile.playlists(address),
        "a QuickTime data reference": hostile.refer_elsewhere(encode(), address),
        "a QuickTime reference movie": hostile.reference_movie(address),
        "a Matroska segment link": hostile.link_segment(encode(container="matroska"), address[-100:]),
    }


def test_the_canary_notices_a_decoder_that_opens_it(canary: _Canary) -> None:
    import av

    with av.open(str(canary.file)) as container:
        next(container.decode(video=0))
    assert canary.touched()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net")
def test_nothing_is_opened_and_every_refusal_has_a_name(canary: _Canary) -> None:
    before = _listening()
    for address in canary.addresses:
        for what, content in _hostile_files(address).items():
            actions = [lambda c, d=d: decode_frames(c, [0, 1], d) for d in DECODERS]
            for action in (*actions, probe_video, open_video, decode_isolated_first, probe_isolated):
                with pytest.raises(DecodeError) as caught:
                    action(content)
                assert caught.value.reason == "refers to other files", (what, caught.value)
                assert what.split(" after ")[0].replace("master ", "") in caught.value.detail, caught.value
    assert not canary.touched()
    assert _listening() == before


def decode_isolated_first(content: bytes) -> None:
    """The first frame, as the loader asks for it."""
    decode_isolated(content, [0])


def test_pack_inspect_loader_and_features_refuse_in_the_same_words(canary: _Canary, tmp_path: Path) -> None:
    files = _hostile_files(canary.addresses[0])
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(encode())
    for number, content in enumerate(files.values()):
        (folder / f"bad{number}.mp4").write_bytes(content)
        with pytest.raises(DecodeError, match="refers to other files"):
            read_video(folder / f"bad{number}.mp4")
    report = pack(str(folder), str(tmp_path / "packed"), PackConfig(jobs=0, repair=True, short_side=32))
    assert report.samples == 1
    assert all("refers to other files" in rejection.reason for rejection in report.rejected)
    assert len(report.rejected) == len(files)
    meta = json.dumps({"frames": 24, "fps": 12.0}).encode()
    shards = tmp_path / "shards"
    shards.mkdir()
    make_set(shards, [{"mp4": content, "json": meta} for content in (*files.values(), encode())])
    problems = verify_shards(Manifest.load(shards), decode=100)
    assert len(problems) == len(files)
    assert all("refers to other files" in problem for problem in problems)
    config = DataConfig(path=str(shards), frames=4, crop=16, workers=0, max_bad_fraction=1.0)
    (batch,) = take(TrainLoader(config, len(files) + 1, 0), 1)
    assert len(batch.skipped["refers to other files"]) == len(files)
    assert not canary.touched()


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "libx264", "mov"),
        ("mov", "libx264", "mov"),
        ("3gp", "libx264", "mov"),
        ("matroska", "libx264", "matroska"),
        ("webm", "libvpx-vp9", "matroska"),
        ("avi", "mpeg4", "avi"),
        ("mpegts", "libx264", "mpegts"),
        ("mpeg", "mpeg2video", "mpeg"),
        ("asf", "mpeg4", "asf"),
        ("flv", "libx264", "flv"),
        ("ogg", "libvpx", "ogg"),
    ],
)
def test_the_containers_of_the_list_are_known_and_read(
    make_video: MakeVideo, container: str, codec: str, name: str
) -> None:
    fps = 25 if container == "mpeg" else 12
    video = make_video(frames=12, container=container, codec=codec, fps=fps)
    assert identify(video) == name
    assert probe_video(video).frames >= 11
    assert decode_frames(video, [0, 5]).shape == (2, 48, 64, 3)


def test_a_gif_is_a_video(make_video: MakeVideo) -> None:
    assert identify(hostile.gif(32, 16, 3)) == "gif"
    assert probe_video(hostile.gif(32, 16, 3)).frames == 3


def test_a_format_is_never_guessed_from_a_file_that_is_two_things(make_video: MakeVideo) -> None:
    matroska = make_video(container="matroska")
    both = matroska[:5] + b"\nc=IN IP4 127.0.0.1\n" + matroska[5:]
    assert not is_safe_to_guess(both, "matroska")
    avi = make_video(codec="mpeg4", container="avi")
    assert is_safe_to_guess(avi, "avi")
    assert not is_safe_to_guess(avi + b"GAB2\0", "avi")
    with pytest.raises(DecodeError, match="not for decord"):
        decode_frames(avi + b"GAB2\0", [0], "decord")
    assert decode_frames(avi + b"GAB2\0", [0]).shape == (1, 48, 64, 3)


def test_a_file_of_nothing_but_boxes_ends_soon() -> None:
    for content in (hostile.box(b"ftyp") + hostile.box(b"free") * 200_000, hostile.box(b"moov") * 200_000):
        with pytest.raises(DecodeError, match="malformed container"):
            identify(content)


def test_ordinary_data_references_are_no_reason_to_refuse(make_video: MakeVideo) -> None:
    video = make_video(container="mov")
    place = video.index(b"dref") + 16
    assert identify(video[:place] + b"alis" + video[place + 4 :]) == "mov"


def test_shards_with_refused_members_are_read_as_bytes_only(tmp_path: Path) -> None:
    make_set(tmp_path, [{"mp4": b"#EXTM3U\n"}])
    assert ShardReader(Manifest.load(tmp_path)).read(0, 0).video == b"#EXTM3U\n"
