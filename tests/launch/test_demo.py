"""The whole way in small: generate, pack, pretrain, export, probe, report; and the commands one by one."""

import json
from pathlib import Path

import pytest
import torch

import vjepa
from launch.__main__ import main

FAST = ("run.progress=false", "health.pictures_every=null", "health.matrix_tflops=1")


def test_demo_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    small = ["--steps", "4", "--clips", "36", "12", "--output", str(folder)]
    model = ["encoder.width=24", "encoder.heads=2", "encoder.depth=1", "predictor.width=12", "predictor.heads=2"]
    assert main(["demo", *small, *model, "run.batch=8", "data.workers=0", *FAST]) == 0
    results = json.loads((folder / "results.json").read_text())
    rows = {(row["features"], row["head"]): row for row in results["results"]}
    assert {features for features, _ in rows} == {
        "encoder", "random encoder", "raw pixels", "encoder, first frame only",
    }  # fmt: skip
    assert all(row["samples"] == 12 for row in rows.values())
    encoder = vjepa.load_encoder(folder / "encoder")
    config = encoder.config
    clip = torch.zeros(1, config.frames, config.crop, config.crop, 3, dtype=torch.uint8)
    assert encoder(vjepa.normalise(clip)).shape[-1] == 24
    page = (folder / "report.html").read_text()
    assert page.count("data:image/webp") == 6 * 2 * 2, "six clips, moving, with their mask and with their features"
    assert page.count("data:image/png") == 4 + 1, "curves and the confusion matrix"
    assert "http" not in page.replace("http-equiv", ""), "the report must stand alone"
    shown = capsys.readouterr().out
    assert str(folder / "report.html") in shown
    assert "chance: 8.3 %" in shown


def test_probe_command_reports_every_sample_once(quick: list[str], shards: Path, tmp_path: Path) -> None:
    config = Path(__file__).parent.parent.parent / "configs"
    assert main(["train", str(config / "pretrain" / "tiny_cpu.yaml"), *quick, "run.steps=2"]) == 0
    output = tmp_path / "probe"
    asked = [f"encoder={tmp_path / 'run'}", f"train={shards}", f"test={shards}", f"output={output}", "data.workers=1"]
    assert main(["probe", str(config / "probe" / "synthetic.yaml"), *asked, "baselines=[pixels]"]) == 0
    found = json.loads((output / "results.json").read_text())
    assert found["format"] == "vjepa-probe-2"
    assert {row["samples"] for row in found["results"]} == {48}
    assert {row["missing"] for row in found["results"]} == {0}


def test_probe_without_an_encoder_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parent.parent.parent / "configs" / "probe" / "synthetic.yaml"
    assert main(["probe", str(config)]) == 2
    assert "encoder is required" in capsys.readouterr().err


def test_doctor_finds_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "decoder: pyav" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["step", "loader"])
def test_bench_prints_one_json_line(what: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parent.parent.parent / "configs" / "pretrain" / "tiny_cpu.yaml"
    assert main(["bench", what, str(config), *words, "--repeats", "2"]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row["bench"] == what
    assert row["clips_per_s"] > 0
