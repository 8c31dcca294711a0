"""A job is checked before it waits, its script can be read, and its code cannot change; no SLURM is needed here."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.cluster.jobs import count_cores_wanted
from launch.cluster.snapshot import ROOT, describe_code
from launch.cluster.submit import expand, name_of
from launch.config import load_config
from launch.training.config import TrainConfig

CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of SLURM: an sbatch that answers a number, and nothing else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/bash\necho 4711\n")
    (programs / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["submit", *words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    return script


def test_a_dry_run_prints_the_script_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = dry(
        capsys, CONFIG, *words, "--nodes=4", "--gpus-per-node=2", "--partition=gpu", "--time=24:00:00", "--account=me",
        "--qos=high", "--constraint=a100", "--mem=64G", "--cpus-per-task=6", "--after=12", "--setup=module load cuda",
        "--sbatch=--mail-type=FAIL", "--container=apptainer exec --nv image.sif",
    )  # fmt: skip
    for line in (
        "--nodes=4", "--ntasks-per-node=2", "--gpus-per-node=2", "--partition=gpu", "--time=24:00:00", "--account=me",
        "--qos=high", "--constraint=a100", "--mem=64G", "--cpus-per-task=6", "--dependency=afterok:12",
        "--kill-on-invalid-dep=yes",
        "--signal=USR1@120", "--open-mode=append", "--requeue", "--mail-type=FAIL",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, line
    assert "\nmodule load cuda\n" in script
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=6" in script
    assert "apptainer exec --nv image.sif python -m launch train" in script
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["run.stesp=3"], "did you mean run.steps (optimiser steps"),
        (["data.path=nowhere"], "nowhere"),
        (["--nodes=3"], "run.batch must be a multiple of ranks x run.accumulate = 3 x 1, got 8"),
        (["run.devices=4"], "run.devices=4, but the job requests 1"),
        (["run.start=nowhere"], "run.start: there is no"),
        (["--sweep=optim.lr"], "must have the form key=a,b"),
        (["--sweep=run.seed=1,1"], "gives the same run twice"),
        (["health.probe_train=nowhere", "health.probe_test=nowhere"], "health.probe_train: there is no"),
        (["run.budget=5d", "--nodes=2"], "run.budget requires a single process, got 2"),
        (["--nodes=0"], "--nodes and --notice must be at least 1"),
        (
            ["masks.ahead.kind=blocks", "masks.ahead.keep=0.01", "masks.ahead.predict=0.5"],
            "at least 1 of each is needed",
        ),
    ],
)
def test_what_would_fail_in_the_queue_fails_before_it(
    words: list[str], extra: list[str], message: str, sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", CONFIG, *words, *extra]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_submission_copies_code_and_config_and_can_be_repeated(
    words: list[str], sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["submit", CONFIG, *words, "--partition=gpu", "--after=3"]) == 0
    said = capsys.readouterr().out
    assert "submitted job 4711: 1 x 1 tasks" in said
    assert f"vjepa status {run}" in said
    copy = next((run / "code").iterdir())
    assert (copy / "launch/cluster/submit.py").read_bytes() == (ROOT / "launch/cluster/submit.py").read_bytes()
    assert json.loads((copy / "code.json").read_text()) == describe_code()
    assert str(copy) in (run / "job.sh").read_text()
    submitted = load_config(TrainConfig, run / "submitted.yaml", [])
    assert submitted == load_config(TrainConfig, CONFIG, words)
    assert Path(submitted.data.path).is_absolute()

    assert main(["submit", str(run), "--time=1:00:00"]) == 0
    again = (run / "job.sh").read_text()
    assert "#SBATCH --partition=gpu\n" in again
    assert "#SBATCH --time=1:00:00\n" in again
    assert "--dependency" not in again
    assert main(["status", str(run)]) == 0
    assert "submitted" in capsys.readouterr().out


def test_a_sweep_is_an_array_with_a_folder_for_each_run(
    words: list[str], sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", CONFIG, *words, "--sweep=optim.lr=0.1,0.2", "--sweep=run.seed=0,1"]) == 0
    run = tmp_path / "run"
    folders = [Path(line) for line in (run / "runs.txt").read_text().splitlines()]
    assert [folder.name for folder in folders] == [
        "optim.lr=0.1_run.seed=0", "optim.lr=0.1_run.seed=1", "optim.lr=0.2_run.seed=0", "optim.lr=0.2_run.seed=1",
    ]  # fmt: skip
    third = load_config(TrainConfig, folders[2] / "submitted.yaml", [])
    assert (third.optim.lr, third.run.seed, third.run.output) == (0.2, 0, str(folders[2]))
    assert "#SBATCH --array=0-3\n" in (run / "job.sh").read_text()
    assert list(expand(["masks.a.hidden=[0.5,0.5],[0.3,0.3]"])) == [
        ["masks.a.hidden=[0.5,0.5]"], ["masks.a.hidden=[0.3,0.3]"],
    ]  # fmt: skip
    assert "/" not in name_of(["teacher.weights=/runs/a"])
    choose = next(line for line in (run / "job.sh").read_text().splitlines() if line.startswith("run="))
    chosen = subprocess.run(
        ["bash", "-c", f"{choose}; echo $run"],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert chosen.stdout.strip() == str(folders[2])


def test_probe_and_export_wait_for_the_training(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = str(ROOT / "configs" / "probe" / "synthetic.yaml")
    words = [f"train={shards}", f"test={shards}", f"encoder={tmp_path / 'run'}", f"output={tmp_path / 'probe'}"]
    script = dry(capsys, probe, *words, "--job=probe", "--after=4711")
    assert "#SBATCH --dependency=afterok:4711\n" in script
    assert "-m launch probe" in script
    assert "--signal" not in script
    assert main(["submit", probe, *words, "--job=probe", "--dry-run"]) == 2
    assert "encoder: there is no" in capsys.readouterr().err
    script = dry(capsys, str(tmp_path / "run"), str(tmp_path / "out"), "--job=export", "--after=1", "--format=onnx")
    assert f"-m launch export {tmp_path / 'run'} {tmp_path / 'out'} --format onnx" in script


def test_without_slurm_it_says_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["submit", CONFIG, *words]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


def test_an_export_finds_folders_with_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "my run", tmp_path / "the $out put"
    script = dry(capsys, str(run), str(out), "--job=export", "--after=1")
    start = script[script.index(" -m launch export") :].splitlines()[0]
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {start}"], capture_output=True, text=True).stdout
    assert said.splitlines() == ["-m", "launch", "export", str(run), str(out), "--format", "native"]
    assert f"#SBATCH --output='{out}.job/logs/slurm-%j.log'\n" in script


@pytest.fixture
def film(tmp_path: Path) -> Path:
    folder = tmp_path / "my videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"")
    return folder


def test_packing_is_an_array_of_parts_and_a_merge_after_it(
    film: Path, sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", str(film), str(tmp_path / "out"), "--job=pack", "short_side=64", "fast_decode=true"]
    assert main([*words, "--parts=3"]) == 0
    home = tmp_path / "out.job"
    script, merge = (home / "job.sh").read_text(), (home / "merge" / "job.sh").read_text()
    for line in ("--array=0-2", "--cpus-per-task=8", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in script, line
    assert "--gpus-per-node" not in script
    assert f"pack '{film}' {tmp_path / 'out'} --short-side 64 --fast-decode --jobs 8 --part" in script
    assert "#SBATCH --dependency=afterok:4711\n" in merge
    assert f"pack --merge {tmp_path / 'out'}" in merge
    start = script[script.index(" -m launch pack") :].splitlines()[0]
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {start}"], capture_output=True, text=True,
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"},
    )  # fmt: skip
    assert said.stdout.splitlines()[-1] == "2/3"
    assert capsys.readouterr().out.count("submitted") == 2
    for extra, message in (
        ("--parts=-1", "--parts must be at least 1"),
        ("part=1/2", "a job packs all parts"),
        ("shrot_side=3", "did you mean short_side"),
        ("--sweep=a=1", "--sweep goes with train"),
    ):
        assert main([*words, extra, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_features_are_shared_by_all_tasks(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(film), str(tmp_path / "out"), "--job=features", "--after=1", "--nodes=2", "--gpus-per-node=4"]
    script = dry(capsys, *words, "encoder=runs/a", "pool=mean", "layers=3,5", "hierarchical=true")
    assert "#SBATCH --ntasks-per-node=4\n" in script
    assert "#SBATCH --cpus-per-task=3\n" in script
    assert f"--encoder {Path('runs/a').absolute()} --pool mean --layers 3 5 --hierarchical" in script
    for extra, message in (("pool=some", "argument --pool"), ("encodr=x", "encodr")):
        assert main(["submit", *words, "encoder=runs/a", extra, "--dry-run"]) == 2
        assert message in capsys.readouterr().err


def test_surprise_and_planning_run_as_one_task(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "run"
    model.mkdir()
    script = dry(capsys, str(model), "--job=surprise", f"pairs={shards}", "batch=8")
    assert f"launch surprise {model} pairs={shards} batch=8 pairs={shards} output={model / 'surprise'}" in script
    plan = str(ROOT / "configs" / "plan" / "plan_two_rooms.yaml")
    script = dry(
        capsys, plan, "--job=plan", f"model={model}", f"data={shards}", f"test={shards}", f"output={tmp_path / 'plan'}"
    )
    assert 'launch plan "$run/submitted.yaml"' in script
    assert main(["submit", plan, "--job=plan", f"model={model}", f"data={shards}", f"test={shards}", "--nodes=2"]) == 2
    assert "runs as one task" in capsys.readouterr().err


def test_a_comparison_measures_then_runs_its_choices_side_by_side(
    shards: Path, sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(ROOT / "configs" / "objectives" / "cpu.yaml")
    words = [f"train={shards}", f"test={shards}", f"output={tmp_path / 'study'}"]
    assert main(["submit", study, "--job=compare-objectives", *words]) == 0
    home = tmp_path / "study.job"
    first, middle, last = (home / name / "job.sh" for name in ("steps", "", "table"))
    assert "--measure" in first.read_text()
    names = [Path(line).name for line in (home / "runs.txt").read_text().splitlines()]
    assert f"#SBATCH --array=0-{len(names) - 1}\n" in middle.read_text()
    assert f"only:\n- {names[1]}" in (home / names[1] / "submitted.yaml").read_text()
    for script in (middle, last):
        assert "#SBATCH --dependency=afterok:4711\n" in script.read_text()
    assert capsys.readouterr().out.count("submitted") == 3


def test_cores_are_asked_for_by_what_the_loader_needs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--cpus-per-task=3\n" in dry(capsys, CONFIG, *words, "data.workers=2")
    assert "--cpus-per-task=9\n" in dry(capsys, CONFIG, *words, "data.workers=null")
    assert "cpus-per-task" not in dry(capsys, CONFIG, *words, "data.workers=2", "--cpus-per-task=0")
    assert "cpus-per-task" not in dry(capsys, CONFIG, *words, "data.workers=null", "--gpus-per-node=0")
    assert count_cores_wanted(None, fast=True, gpus=8) == 4
