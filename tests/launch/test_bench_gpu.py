"""`bench gpu` in its smallest form, and the step of another checkout beside ours. No time decides anything here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.__main__ import main
from launch.bench import gpu
from launch.bench.gpu import Case, decide, usual_cases
from launch.bench.peer import bench_peer
from launch.config import load_config
from launch.training.config import TrainConfig
from vjepa.attention import KERNELS

CONFIG = str(Path(__file__).parents[2] / "configs" / "pretrain" / "tiny_cpu.yaml")
SMALL = ["encoder.depth=1", "predictor.depth=1", "data.frames=4", "data.crop=32", "run.precision=fp32", "run.batch=2"]
TINY = [
    "encoder.size=custom",
    "encoder.width=24",
    "encoder.heads=2",
    "encoder.patch=8",
    "predictor.width=12",
    "predictor.heads=2",
]


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_everything_is_measured_and_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "matrix_rate", lambda half, device: 1e9)
    monkeypatch.setattr(gpu, "STATE_BYTES", 2**20)
    assert main(["bench", "gpu", CONFIG, *SMALL, *TINY, "--repeats", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = json.loads(shown[-1])
    assert found["bench"] == "gpu"
    assert [row["name"] for row in found["steps"]] == [
        "eager, blocking copy", "eager", "eager, checkpointed", "eager, products kept",
    ]  # fmt: skip
    assert all(row["clips_per_s"] > 0 and row["estimated_gib"] >= 0 and "error" not in row for row in found["steps"])
    assert all(set(KERNELS) < set(row) and row["math"] for row in found["attention"])
    assert found["waits"] is None, "known on a GPU only"
    assert found["state"]["copy_gb_per_s"] > 0
    assert found["curve"]["largest_relative_difference"] < 0.05
    assert len(found["curve"]["here"]) == 20
    assert found["decisions"] == [line.removeprefix("- ") for line in shown if line.startswith("- ")]
    assert any(line.startswith("eager, checkpointed") for line in shown)


def test_a_step_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(bench: object, build: object) -> float:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(gpu.StepBench, "peak", peak)
    row = gpu.measure_case(Case("large", CONFIG, (*SMALL, *TINY)), 1, 1e9)
    assert row["error"] == "RuntimeError: CUDA out of memory"


def test_the_usual_steps_are_those_of_the_ready_made_configs() -> None:
    for case in usual_cases():
        config = load_config(TrainConfig, case.config, list(case.overrides))
        assert config.encoder.size in ("large", "giant"), case.name


def row(name: str, speed: float, peak: float = 10.0, estimated: float = 10.0) -> dict[str, Any]:
    return {"name": name, "clips_per_s": speed, "peak_gib": peak, "estimated_gib": estimated}


def test_decisions_follow_from_the_numbers() -> None:
    steps = [
        row("ViT-L 24", 10), row("ViT-L 24, compiled", 11), row("ViT-L 48, compiled", 12, 76.0, 50.0),
        {"name": "ViT-L 6, compiled", "error": "OutOfMemoryError"},
    ]  # fmt: skip
    attention = [{"shape": [1], "flash": 3.0, "cudnn": 2.0, "efficient": None, "math": 1.0}]
    curve = {"largest_relative_difference": 0.2}
    says = decide({"waits": ["jepa.py:7"], "attention": attention, "steps": steps, "curve": curve})
    assert says[0] == "the host waits for the GPU at jepa.py:7: remove this first"
    assert "run.attention=flash" in says[1]
    assert "compilation: 1.10x, less than the 1.15x hoped for; look for graph breaks" in says[2]
    assert "peaks at 76.0 GiB: take 40" in says[3]
    assert "the estimate of memory is too low" in says[4]
    assert "the loss curve departs" in says[5]
    quiet = {"waits": None, "attention": [], "steps": [], "curve": {"largest_relative_difference": 0.0}}
    assert decide(quiet) == []


STUB = """
import torch
from torch import nn

def pick(x, index):
    return torch.stack([row[kept] for row, kept in zip(x, index)])

class Encoder(nn.Module):
    def __init__(self, width, patch, tubelet):
        super().__init__()
        self.embed = nn.Conv3d(3, width, (tubelet, patch, patch), (tubelet, patch, patch))

    def forward(self, clips, masks=None):
        tokens = [self.embed(clip).flatten(2).transpose(1, 2) for clip in clips]
        return tokens if masks is None else [[pick(x, index) for index in kinds] for x, kinds in zip(tokens, masks)]

class Predictor(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(self, contexts, masks, targets):
        return [
            [self.project(context.mean(1, keepdim=True)).expand(-1, target.shape[1], -1)
             for context, target in zip(*pair)] for pair in zip(contexts, targets)
        ]

def init_video_model(device, model_name, patch_size, tubelet_size, **options):
    assert model_name == "vit_tiny" and options["use_sdpa"]
    return Encoder(192, patch_size, tubelet_size).to(device), Predictor(192).to(device)

def init_opt(encoder, predictor, mixed_precision, **options):
    assert not mixed_precision
    return torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()]), None, None, None
"""


def test_the_step_of_a_checkout_is_timed_on_the_same_tokens(tmp_path: Path) -> None:
    for name in ("app/vjepa/utils.py", "src/models/vision_transformer.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(STUB)
    config = load_config(TrainConfig, CONFIG, [*SMALL, "encoder.patch=8"])
    found = bench_peer(tmp_path, config, 1, warm_up=0)
    assert found["ours"]["tokens"] == found["peer"]["tokens"]
    assert found["peer"]["step_ms"] > 0
    assert "app.vjepa.utils" not in sys.modules
    assert str(tmp_path) not in sys.path


def test_a_folder_that_is_no_checkout_and_a_recipe_it_lacks_are_refused(tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, SMALL)
    with pytest.raises(
        FileNotFoundError, match=r"--peer .* must be a checkout .* lacks src/models/vision_transformer.py"
    ):
        bench_peer(tmp_path, config, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "step"], "`bench step` needs a config"),
        (["bench", "step", CONFIG, "--peer", "x"], "--peer belongs to `bench gpu`"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
