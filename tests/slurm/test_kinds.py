"""The other kinds of jobs on a real SLURM of two nodes: what one does, the next one finds."""

import json
from pathlib import Path

import pytest
from cluster import facts, logs, submit_chain, wait_for_end

from data.generated.sprites import SyntheticConfig, write_videos
from data.loading.tars import index_path
from data.manifest import Manifest
from launch.__main__ import main


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tiny videos in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("films") / "my videos"
    write_videos(folder, 8, 0, SyntheticConfig(size=32, frames=8))
    return folder


def test_parts_are_packed_side_by_side_and_merged(slurm: None, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    words = ["submit", str(videos), str(output), "--job=pack", "--parts=2", "--cpus-per-task=1", "crf=20"]
    array, merge = submit_chain(*words[1:])
    assert wait_for_end(merge, output.with_name("shards.job")) == "COMPLETED", logs(output.with_name("shards.job"))
    manifest = Manifest.load(output)
    assert manifest.samples == 8
    assert manifest.made["options"]["crf"] == 20
    assert {shard.name.split("-")[2] for shard in manifest.shards} == {"0001", "0002"}
    assert all(index_path(output / shard.name).is_file() for shard in manifest.shards)
    assert facts(array)["JobState"] == "COMPLETED"


def test_two_nodes_share_the_videos_of_a_features_job(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    output, home = tmp_path / "features", tmp_path / "features.job"
    (job,) = submit_chain(
        str(videos), str(output), "--job=features", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1",
        f"encoder={undisturbed}", "pool=mean",
    )  # fmt: skip
    assert wait_for_end(job, home) == "COMPLETED", logs(home)
    assert len(list(output.rglob("*.safetensors"))) == 8
    for rank in range(2):
        assert "4 videos, 0 already done, 0 could not be read" in (home / "logs" / f"rank-{rank}.log").read_text()


@pytest.mark.slow
def test_surprise_is_measured_in_a_job(undisturbed: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "twins"
    assert main(["generate", "twins", str(pairs), "--clips", "8"]) == 0
    output, home = tmp_path / "surprise", tmp_path / "surprise.job"
    (job,) = submit_chain(
        str(undisturbed), "--job=surprise", "--gpus-per-node=0", f"pairs={pairs}", f"output={output}", "step=4"
    )
    assert wait_for_end(job, home) == "COMPLETED", logs(home)
    assert json.loads((output / "results.json").read_text())["pairs"] == str(pairs)


@pytest.mark.slow
def test_choices_are_compared_in_an_array_between_two_jobs(slurm: None, words: list[str], tmp_path: Path) -> None:
    shards = next(word for word in words if word.startswith("data.path=")).partition("=")[2]
    base = tmp_path / "base.yaml"
    settings = [f"{word.replace('=', ': ', 1)}" for word in words if not word.startswith(("data.path", "masks"))]
    nested: dict[str, list[str]] = {}
    for setting in settings:
        section, _, rest = setting.partition(".")
        nested.setdefault(section, []).append(f"  {rest}")
    nested["masks"] = ["  ahead:", "    kind: future"]
    base.write_text("\n".join(line for name, lines in nested.items() for line in (f"{name}:", *lines)) + "\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"pretrain: {base}\nchoices:\n  a: {{about: one}}\n  b: {{about: two, settings: {{optim: {{lr: 0.001}}}}}}\n"
    )
    output, home = tmp_path / "study", tmp_path / "study.job"
    chain = submit_chain(
        str(study), "--job=compare-objectives", "--gpus-per-node=0", f"train={shards}", f"test={shards}",
        f"output={output}", "budget=2s", "seeds=1",
    )  # fmt: skip
    assert len(chain) == 3
    assert wait_for_end(chain[-1], home) == "COMPLETED", "\n".join(path.read_text() for path in home.rglob("*.log"))
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert {"a", "b"} <= {row["name"] for row in rows}
