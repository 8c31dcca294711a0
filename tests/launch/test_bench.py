"""The measuring tool: what it counts is right, what it prints is whole. No time decides anything here."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as lightning
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from launch.__main__ import main
from launch.bench import loader as bench_data
from launch.bench.plain import PlainStep
from launch.bench.step import PARTS, REST, OurStep, Step, StepBench
from launch.bench.sweep import Point, grow, measure, render
from launch.config import load_config
from launch.meter import PartClock, _read_limits
from launch.training.config import TrainConfig
from vjepa.jepa import JEPA
from vjepa.precision import choose_precision

CPU = torch.device("cpu")
CONFIG = Path(__file__).parent.parent.parent / "configs" / "pretrain" / "tiny_cpu.yaml"
TINY = [
    "encoder.size=custom", "encoder.width=24", "encoder.depth=2", "encoder.heads=2", "encoder.patch=8",
    "predictor.width=32", "predictor.depth=1", "predictor.heads=2", "data.frames=4", "data.crop=32",
    "run.precision=fp32", "run.batch=4",
]  # fmt: skip
KEYS = {
    "bench", "date", "device", "threads", "torch", "lightning", "python", "commit", "encoder", "tokens", "batch",
    "precision", "compile", "checkpoint_activations", "step_ms", "clips_per_s", "gflop_per_clip", "gflop_per_s",
    "matrix_gflop_per_s", "utilisation", "peak_gib", "parts_ms", "masks_ms", "recompilations",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def tiny(*words: str) -> TrainConfig:
    return load_config(TrainConfig, CONFIG, [*TINY, *words])


def gradients(step: Step, config: TrainConfig, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients by name, for the batch of a step."""
    bench = StepBench(config, 4)
    torch.manual_seed(0)
    batch = next(itertools.islice(bench.made_clips(), number, None))
    loss = step.forward(batch)
    step.clear()
    loss.backward()
    modules = (
        {"encoder": step.encoder, "predictor": step.predictor}
        if isinstance(step, PlainStep)
        else {"encoder": step.model.context_encoder, "predictor": step.model.predictor}  # type: ignore[attr-defined]
    )
    return loss.detach(), {
        f"{name}.{key}": value.grad for name, module in modules.items() for key, value in module.named_parameters()
    }


@pytest.mark.parametrize("words", [["encoder.positions=sincos"], ["encoder.positions=rotary", "optim.warmup_steps=0"]])
def test_plain_step_is_the_same_step(words: list[str]) -> None:
    config = tiny(*words, "optim.clip_after_warmup=true", "optim.clip=0.5", "optim.start_lr=1e-2", "optim.eps=1e-2")
    ours = OurStep(config, CPU)
    plain = PlainStep(config, CPU, ours.model)
    for number in range(2):  # the second after an update of everything, teacher included
        mine, wanted = gradients(plain, config, number), gradients(ours, config, number)
        torch.testing.assert_close(mine[0], wanted[0], atol=1e-5, rtol=1e-5)
        assert mine[1].keys() == wanted[1].keys()
        for name, gradient in wanted[1].items():
            torch.testing.assert_close(mine[1][name], gradient, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: n + text)
        for step in (plain, ours):
            step.optimise()
            step.follow()
    for mine, theirs in (
        (plain.encoder, ours.model.context_encoder),
        (plain.predictor, ours.model.predictor),
        (plain.teacher, ours.model.target_encoder.encoder),
    ):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("objective=dense", "objective=masked"),
        ("teacher.source=pixels", "teacher.source=average"),
        ("regulariser.variance=0.1", "regulariser.variance=0"),
    ],
)
def test_plain_step_of_another_recipe_is_refused(word: str, field: str) -> None:
    with pytest.raises(ValueError, match=f"--plain requires {field}"):
        PlainStep(tiny(word, "dense.levels=2"), CPU)


def test_parts_exclude_what_is_inside_them_and_add_up() -> None:
    ticks: Iterator[int] = itertools.count()
    clock = PartClock(CPU, now=lambda: next(ticks))
    with clock.part("outer"):
        with clock.part("teacher_forward"), clock.part("context_forward"):
            next(ticks)
        with clock.part("inner"):
            next(ticks)
    assert clock.seconds == {"outer": 3, "teacher_forward": 2, "inner": 2}
    assert sum(clock.seconds.values()) == next(ticks) - 1


@pytest.mark.parametrize("words", [[], ["objective=views"], ["objective=dense", "teacher.source=stop_gradient"]])
def test_parts_of_a_step_are_found_and_add_up_to_it(words: list[str]) -> None:
    config = tiny("dense.levels=2", *words)
    ticks: Iterator[int] = itertools.count()
    bench = StepBench(config, 4)
    step = OurStep(config, CPU)
    row = bench.time_parts(step, bench.made_clips(), PartClock(CPU, now=lambda: next(ticks)))
    assert row.keys() == set(PARTS) - ({"predictor", "teacher_forward"} if "objective=views" in words else set())
    assert min(row.values()) > 0
    assert sum(row.values()) == next(ticks) - 1
    assert "forward" not in vars(step.model.target_encoder)  # nothing stays watched
    assert REST in PARTS


def test_weights_are_cast_as_often_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def forward(self: JEPA, batch: object, number: int) -> torch.Tensor:
        kept.append(torch.is_autocast_cache_enabled())
        return self.context_encoder.norm.weight.sum()

    monkeypatch.setattr(JEPA, "training_step", forward)
    config = tiny("run.precision=bf16")
    bench = StepBench(config, 2)
    bench.take(OurStep(config, CPU), next(bench.made_clips()), PartClock(CPU, on=False))
    with lightning.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False).precision_plugin.forward_context():
        forward(JEPA(config.jepa), None, 0)
    assert kept == [False, False]


def test_one_device_takes_its_share_and_says_where_memory_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(config: TrainConfig, *_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("launch.bench.bench.bench_step", run_out)
    large = str(CONFIG.with_name("vjepa2_vitl.yaml"))
    assert main(["bench", "step", large, "run.batch_per_device=null", "run.nodes=4", "run.devices=8"]) == 2
    assert "error: a batch of 96 clips needs more memory than this device has" in capsys.readouterr().err
    assert main(["bench", "step", large, "run.batch_per_device=24"]) == 2
    assert "error: a batch of 24 clips" in capsys.readouterr().err


def test_the_limit_of_a_job_counts_as_memory(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    for name, limit in (("a", "1000"), ("a/b", "max")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(limit + "\n")
        (tmp_path / name / "memory.current").write_text("400\n")
    own.write_text("0::/a/b\n")
    assert list(_read_limits(tmp_path, own)) == [(1000, 400)]
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("900\n")
    (tmp_path / "memory" / "job" / "memory.usage_in_bytes").write_text("300\n")
    own.write_text("4:cpu,cpuacct:/other\n3:memory:/job\n")
    assert list(_read_limits(tmp_path, own)) == [(900, 300)]
    assert list(_read_limits(tmp_path, tmp_path / "none")) == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["objective=dense", "dense.levels=2"],
        ["objective=views", "views.projection=16", "views.keep=0.5"],
        ["objective=views", "views.wide=1", "views.narrow=2", "views.narrow_crop=24"],
        ["teacher.source=pixels"],
    ],
)
def test_flops_are_those_that_torch_counts(words: list[str]) -> None:
    config = tiny("encoder.width=48", "data.crop=64", "data.frames=8", *words)
    step = OurStep(config, CPU)
    batch = next(StepBench(config, 2).made_clips())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.forward(batch).backward()
    assert config.jepa.clip_flops(2) == pytest.approx(counter.get_total_flops() / 2, rel=0.03)


def test_step_says_all_of_it_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, traces = tmp_path / "parts.png", tmp_path / "traces"
    words = [*TINY, "run.precision=auto", "--repeats", "1", "--figure", str(picture), "--profile", str(traces)]
    assert main(["bench", "step", str(CONFIG), *words, "--plain"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    row = json.loads(lines[-1])
    assert row.keys() == KEYS | {"plain", "speedup", "figure", "profile"}
    assert set(row["plain"]) == {"step_ms", "clips_per_s", "utilisation", "parts_ms", "peak_gib"}
    assert set(row["parts_ms"]) == set(row["plain"]["parts_ms"]) == set(PARTS)
    assert row["parts_ms"]["data_wait"] is None
    assert row["precision"] == choose_precision("auto", "cpu")
    assert row["recompilations"] is None
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert Path(row["profile"]["trace"]).stat().st_size > 0
    assert "aten::addmm" in Path(row["profile"]["operators"]).read_text()


def test_step_with_data_says_how_long_it_waits(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", str(CONFIG), *words, "--repeats", "1"]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row.keys() == KEYS
    assert row["parts_ms"]["data_wait"] >= 0


def test_sweep_prints_a_table_and_marks_the_best(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.bench.step.matrix_product", lambda dtype, device: (lambda: None, 1))
    words = ["--sweep", "--vary", "checkpoint", "--most-clips", "2", "--repeats", "1"]
    assert main(["bench", "step", str(CONFIG), *TINY, *words]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    row = json.loads(last)
    tried = {(p["checkpoint"], p["batch"]) for p in row["points"]}
    assert tried == set(itertools.product((False, True), (1, 2)))
    assert len(table) == 1 + 4
    marked = [number for number, line in enumerate(table[1:]) if line.endswith("<- fastest")]
    assert [row["points"][number] for number in marked] == [row["best"]]
    assert row["best"]["clips_per_s"] == max(point["clips_per_s"] for point in row["points"])
    assert len({len(line.removesuffix("  <- fastest")) for line in table[1:]}) == 1
    assert row["best"] in row["points"]


def test_a_point_that_fails_is_a_row_and_ends_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: TrainConfig, device: torch.device) -> Step:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore")

    monkeypatch.setattr("launch.bench.sweep.OurStep", build)
    (point,) = grow(tiny(), 1, 64)
    assert point.error == "out of memory"
    assert point.clips_per_s == 0
    assert render([point]).splitlines()[1].endswith("out of memory")


def test_a_series_ends_where_clips_a_second_or_memory_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def series(speeds: list[float], peaks: list[float], available: float) -> list[int]:
        answers = iter(zip(speeds, peaks, strict=True))

        def answer(config: TrainConfig, batch: int, repeats: int) -> Point:
            speed, peak = next(answers)
            return Point("fp32", False, False, batch, clips_per_s=speed, peak_gib=peak)

        monkeypatch.setattr("launch.bench.sweep.measure", answer)
        monkeypatch.setattr("launch.bench.sweep.available_gib", lambda: available)
        return [point.batch for point in grow(tiny(), 1, 64)]

    assert series([10, 20, 20.1, 20.2, 30], [1] * 5, 100) == [1, 2, 4, 8]
    assert series([10, 20, 20.1, 30, 30, 30, 30], [1] * 7, 100) == [1, 2, 4, 8, 16, 32]
    assert series([10, 20, 40, 80], [1.0, 2.0, 4.0, 8.0], 15) == [1, 2, 4]  # 8 would exceed 7.5


def test_other_mistakes_are_not_hidden_in_a_row() -> None:
    with pytest.raises(ValueError, match="a sum of at most 1|leaves"):
        measure(tiny("data.crop=8"), 1, 1)


def test_decode_names_the_decoders(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", str(CONFIG), *words, "--repeats", "2"]) == 0
    row = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert row["bench"] == "decode"
    assert set(row["cpu_ms_per_clip"]) == ({"decord", "av"} if bench_data.HAS_DECORD else {"av"})
    assert row["cpu_ms_per_clip"]["av"] > 0
    assert row["failed"]["av"] == 0
    assert (row["videos"], row["clips"], row["frames"], row["stride"]) == (2, 2, 4, 1)


def test_clips_of_a_video_are_decoded_at_once(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(bench_data, "decode_frames", lambda video, indices, name: decoded.append(len(indices)))
    config = load_config(TrainConfig, CONFIG, [*words, "run.batch=4", "data.clips_per_video=2"])
    monkeypatch.setattr(bench_data.Reader, "read", lambda self: [(b"", range(4 * self.clips), "av")])
    row = bench_data.bench_decode(config, 3)
    assert (row["videos"], row["clips"], row["frames"]) == (2, 4, 4)
    assert set(decoded) == {8}


def test_loader_says_how_many_workers_a_step_needs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(TrainConfig, CONFIG, [*words, "data.workers=0"])
    monkeypatch.setattr(bench_data, "clip_costs", lambda config, repeats: {"cpu_ms_per_clip": 50.0})
    assert bench_data.bench_loader(config, 1, step_ms=100.0)["workers_needed"] == 4  # 8 clips x 50 ms
    assert bench_data.bench_loader(config, 1, step_ms=101.0)["workers_needed"] == 4
    assert "workers_needed" not in bench_data.bench_loader(config, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loader", "--plain"], "--plain belongs to `bench step`, not to `bench loader`"),
        (["step", "--step-ms", "5"], "--step-ms belongs to `bench loader`, not to `bench step`"),
        (["probe", "--sweep"], "--sweep belongs to `bench step`"),
        (["step", "--sweep", "--plain"], "--plain does not go with --sweep"),
        (["step", "--most-clips", "2"], "--most-clips goes with --sweep"),
        (
            ["step", "--sweep", "--vary", "batch"],
            "--vary takes a comma-separated list of precision, compile, checkpoint",
        ),
        (["step", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["step", "--plain", "objective=views"], "--plain requires objective=masked, got views"),
        (["decode"], "data.path is required"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    what, *rest = words
    assert main(["bench", what, str(CONFIG), *rest]) == 2
    assert message in capsys.readouterr().err


def test_config_of_a_frozen_teacher_counts_its_own_width() -> None:
    config = tiny("teacher.source=frozen", "teacher.weights=somewhere").jepa
    own = replace(config, frozen=config.encoder)
    wider = replace(config, frozen=replace(config.encoder, width=48))
    assert wider.clip_flops(2) > own.clip_flops(2)
    larger = replace(config, frozen=replace(config.encoder, frames=16, crop=96))
    assert larger.clip_flops(2) == own.clip_flops(2), "it sees the run's clips, whatever it was trained on"


def test_the_loader_is_measured_with_the_decoding_it_has_in_training(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, decode = [], bench_data.decode_isolated
    monkeypatch.setattr(bench_data, "decode_isolated", lambda *given: calls.append(given) or decode(*given))
    costs = bench_data.clip_costs(load_config(TrainConfig, CONFIG, words), 1)
    assert len(calls) >= 2
    assert costs["cpu_ratio"] > 0
