"""Objectives side by side: each gets the same compute, runs once, and lands in one table."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main
from launch.config import load_config, to_yaml
from launch.studies.compare_objectives import Choice, StudyConfig, choose_steps, measure_steps, measured_parts, resolve
from launch.studies.objective_table import Row, draw_figure, render
from launch.training.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent
STUDIES = sorted((ROOT / "configs" / "objectives").glob("*.yaml"))


@pytest.fixture
def study(quick: list[str], shards: Path, tmp_path: Path) -> Path:
    """A study of three objectives of a tiny model, one with a teacher of its own."""
    base = load_config(TrainConfig, None, [*quick, "run.progress=false"])
    (tmp_path / "base.yaml").write_text(to_yaml(base))
    (tmp_path / "probe.yaml").write_text("data: {stride: 1, workers: 0}\nheads: {names: [linear, knn]}\n")
    content = {
        "pretrain": str(tmp_path / "base.yaml"), "probe": str(tmp_path / "probe.yaml"),
        "train": str(shards), "test": str(shards), "budget": "1s", "seeds": 2, "output": str(tmp_path / "out"),
        "transfer": {"again": {"train": str(shards), "test": str(shards)}},
        "choices": {
            "plain": {"about": "the base"},
            "salt": {
                "about": "frozen", "settings": {"teacher": {"source": "frozen"}},
                "teacher": {"teacher": {"source": "pixels"}},
            },
        },
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_each_choice_is_trained_probed_and_tabled_once(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study.parent / "out"
    out.mkdir()
    seconds = {"plain": {"run": 0.25}, "salt": {"run": 0.19, "teacher": 0.09}}
    (out / "steps.json").write_text(json.dumps({"budget": "1s", "seconds": seconds}))
    assert main(["compare-objectives", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "| plain | 4 |" in shown
    assert "| salt | 4 + 3 |" in shown
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    assert {"plain", "salt", "random encoder", "raw pixels"} <= set(rows)
    assert all(len(values) == 2 for row in rows.values() for values in row["top1"].values())
    assert {"linear", "knn", "again: linear", "again: knn"} <= set(rows["salt"]["top1"])
    assert set(rows["plain"]["gauges"]) == {"rank", "spread", "uniformity"}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}
    assert len({path.parent for path in times}) == 2 * 3
    assert main(["compare-objectives", str(study)]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, content = study.parent / "out", yaml.safe_load(study.read_text())
    content["choices"]["wild"] = {"about": "too fast", "settings": {"optim": {"lr": 1e30, "start_lr": 1e30}}}
    content |= {"seeds": 1, "transfer": {}, "only": ["wild", "plain"]}
    study.write_text(yaml.safe_dump(content))
    out.mkdir()
    (out / "steps.json").write_text(
        json.dumps(
            {
                "budget": "1s",
                "seconds": {"plain": {"run": 0.25}, "salt": {"run": 1, "teacher": 1}, "wild": {"run": 0.03}},
            }
        )
    )
    assert main(["compare-objectives", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "updates were all skipped" in (out / "wild" / "seed-0" / "diverged.txt").read_text()
    assert "| wild | 33, 1 diverged | - |" in shown
    assert "| plain | 4 |" in shown


def test_a_run_may_diverge_while_it_is_measured_and_stays_so_until_its_settings_change(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.training.budget.MEASURED", 8)  # steps
    monkeypatch.setattr("launch.training.budget.WARMUP", 2)
    monkeypatch.setattr("launch.studies.compare_objectives.ROUNDS", 1)
    out, content = study.parent / "out", yaml.safe_load(study.read_text())
    content["choices"]["wild"] = {"about": "too fast", "settings": {"optim": {"lr": 1e30, "start_lr": 1e30}}}
    content |= {"seeds": 1, "transfer": {}}
    content["choices"] = {name: content["choices"][name] for name in ("wild", "plain")}
    content["budget"] = "1s"
    study.write_text(yaml.safe_dump(content))
    assert main(["compare-objectives", str(study)]) == 0
    shown = capsys.readouterr().out
    note = out / "wild" / "seed-0" / "diverged.txt"
    assert "updates were all skipped" in note.read_text()
    assert re.search(r"\| wild \| \d+, 1 diverged \| - \|", shown)
    assert re.search(r"\| plain \| \d+ \| \d", shown)
    assert re.search(r"\| random encoder \| - \| \d", shown), "the first choice has none to give"
    content["only"] = ["wild"]
    study.write_text(yaml.safe_dump(content))
    assert main(["compare-objectives", str(study)]) == 0
    assert "diverged before and is not retried" in capsys.readouterr().out
    content["choices"]["wild"]["settings"]["optim"]["lr"] = 1e-4
    study.write_text(yaml.safe_dump(content))
    assert main(["compare-objectives", str(study)]) == 2
    said = capsys.readouterr().err
    assert "optim.lr: 0.0001 (was 1e+30)" in said
    assert f"delete {note.parent}" in said


def test_a_comparison_in_which_all_diverged_is_a_table_too(tmp_path: Path) -> None:
    rows = [Row("a", "about a", 10, diverged=2)]
    assert "| choice | steps |\n" in render(rows, "1h")
    draw_figure(rows, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_another_budget_in_the_same_folder_is_refused(study: Path, tmp_path: Path) -> None:
    config = load_config(StudyConfig, study, [])
    (tmp_path / "steps.json").write_text(json.dumps({"budget": "9h", "seconds": {}}))
    with pytest.raises(ValueError, match=r"holds a comparison with budget=9h; choose another output"):
        choose_steps(config, tmp_path)


def test_a_typo_in_a_choice_is_found_before_anything_is_trained(study: Path, tmp_path: Path) -> None:
    config = load_config(StudyConfig, study, [])
    with pytest.raises(ValueError, match=r"there is no key regulariser.varience; did you mean regulariser.variance"):
        resolve(config, {"regulariser": {"varience": 1.0}}, tmp_path / "x")
    wrong = replace(config, choices={**config.choices, "typo": Choice(settings={"masks": {"a": {"kid": "tubes"}}})})
    with pytest.raises(ValueError, match=r"there is no key masks.a.kid"):
        measure_steps(wrong, wrong.choices, tmp_path / "y")


def test_masks_of_a_choice_replace_those_of_the_base(study: Path, tmp_path: Path) -> None:
    config = load_config(StudyConfig, study, [])
    assert list(resolve(config, {"masks": {"tubes": {"kind": "tubes"}}}, tmp_path / "x").masks) == ["tubes"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_ready_study_resolves(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(StudyConfig, path, [])
    assert len(config.choices) >= 3
    for choice in config.choices.values():
        assert choice.about
        for settings in measured_parts(choice).values():
            assert resolve(config, settings, tmp_path).jepa


def test_the_table_shows_mean_and_range_over_seeds() -> None:
    rows = [Row("a", "about a", 10, 5, {"linear": [0.5, 0.6]}, {"rank": [3.0]}), Row("raw pixels", "baseline")]
    table = render(rows, "10min")
    assert "| a | 5 + 10 | 55.0 (50.0 to 60.0) | 3.0 |" in table
    assert "| raw pixels | - | - | - |" in table
    assert "- **a**: about a" in table
    assert "**raw pixels**" not in table


def test_few_labels_and_other_sets_have_tables_of_their_own() -> None:
    top1 = {"linear": [0.5], "linear, 1% of labels": [0.2], "new: linear": [0.4], "new: linear, 1% of labels": [0.3]}
    whole, few, other = (
        part.splitlines() for part in render([Row("a", "about a", 10, 0, top1)], "1h").split("| choice")[1:]
    )
    assert (whole[2], few[2], other[2]) == ("| a | 10 | 50.0 |", "| a | 10 | 20.0 |", "| a | 10 | 40.0 |")


def test_a_share_of_the_budget_goes_to_the_teacher() -> None:
    with pytest.raises(ValueError, match=r"teacher_share must lie in \(0, 1\)"):
        Choice(teacher_share=1.0)
