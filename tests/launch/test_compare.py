"""`vjepa compare`: which differences are more than chance, and what cannot be compared."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from launch.studies.compare import choose_entries, compare, lay_out_pairs
from probes.evaluate import Answers, Result
from probes.metrics import score, score_values
from probes.results import read_results, write_results

CLASSES = ["left", "right"]


def write_probe(folder: Path, right: dict[str, list[bool]], first: int = 0, classes: list[str] = CLASSES) -> Path:
    """A probe whose linear and k-NN heads are right or wrong of each sample as it is told, by features."""
    results = []
    for features, hits in right.items():
        labels = torch.arange(first, first + len(hits)) % 2
        said = torch.nn.functional.one_hot(torch.where(torch.tensor(hits), labels, 1 - labels), 2).float()
        keys = [f"video {number}" for number in range(first, first + len(hits))]
        for head in ("linear", "knn"):
            answers = Answers(keys, labels, said, {})
            results.append(Result(features, head, score(said, labels), {}, 0, answers))  # type: ignore[arg-type]
    write_results(folder, results, classes, {})
    return folder


def test_clear_difference_is_significant_and_noise_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half, most = [True, False] * 50, [True] * 90 + [False] * 10
    write_probe(tmp_path / "a", {"encoder": half})
    write_probe(tmp_path / "b", {"encoder": most})
    write_probe(tmp_path / "c", {"encoder": [False, *most[1:]]})
    assert main(["compare", *(str(tmp_path / name) for name in "abc"), "--heads", "linear"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^b +encoder +linear +100 +0 +90.0 % \(82.6 to 94.5\)", shown, re.MULTILINE), shown
    assert re.search(r"linear +b, encoder +a, encoder +100 +\+40.0 \(.* significant$", shown, re.MULTILINE), shown
    assert re.search(r"linear +c, encoder +b, encoder +100 +-1.0 \(.* not significant$", shown, re.MULTILINE), shown
    assert "after Holm's correction for 3 comparisons" in shown
    assert "knn" not in shown


def test_many_comparisons_ask_for_more(tmp_path: Path) -> None:
    """Six wins against none: p = 0.03 alone, not significant among three."""
    base = [False] * 40
    folders = [write_probe(tmp_path / "a", {"encoder": base})]
    folders.append(write_probe(tmp_path / "b", {"encoder": [True] * 6 + base[6:]}))
    folders.append(write_probe(tmp_path / "c", {"encoder": [True] * 3 + base[3:]}))
    alone, _ = compare(choose_entries([read_results(path) for path in folders[:2]], None, ["linear"]))
    among, _ = compare(choose_entries([read_results(path) for path in folders], None, ["linear"]))
    assert alone[0].difference.p == pytest.approx(2 / 64)
    assert "not significant" not in lay_out_pairs(alone)
    assert lay_out_pairs(among).count("not significant") == 3


def test_one_probe_compares_its_features_with_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_probe(tmp_path / "a", {"encoder": [True] * 30, "random encoder": [True, False] * 15})
    assert main(["compare", str(folder / "results.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^linear +random encoder +encoder +30 +-50.0", shown, re.MULTILINE), shown
    assert "Holm's correction for 2 comparisons" in shown, "a pair a head"


def test_other_samples_are_refused_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_probe(tmp_path / "a", {"encoder": [True] * 30}))]
    folders.append(str(write_probe(tmp_path / "b", {"encoder": [False] * 25}, first=10)))
    assert main(["compare", *folders, "--heads", "knn"]) == 2
    message = capsys.readouterr().err
    assert "10 are only in the first and 5 only in the second, 20 in both; --common compares" in message
    assert main(["compare", *folders, "--heads", "knn", "--common"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"knn +b, encoder +a, encoder +20 +-100.0", shown), shown


def test_other_labels_of_the_same_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_probe(tmp_path / "a", {"encoder": [True] * 30}))]
    folders.append(str(write_probe(tmp_path / "b", {"encoder": [True] * 30}, classes=["left", "up"])))
    assert main(["compare", *folders]) == 2
    assert "disagree on the label of 15 of 30 samples" in capsys.readouterr().err


def test_values_are_compared_by_their_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = torch.linspace(0, 10, 60)
    for name, noise in (("a", 2.0), ("b", 0.2)):
        said = truth + noise * torch.randn(60, generator=torch.Generator().manual_seed(0))
        answers = Answers([f"video {number}" for number in range(60)], truth, said[:, None], {})
        write_results(tmp_path / name, [Result("encoder", "linear", score_values(said, truth), {}, 0, answers)], [], {})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"linear +b, encoder +a, encoder +60 +-1\.\d+ .* significant$", shown, re.MULTILINE), shown
    write_probe(tmp_path / "c", {"encoder": [True] * 60})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "only results of the same task can be compared, got classification and regression" in capsys.readouterr().err


def test_questions_without_an_answer_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_probe(tmp_path / "a", {"encoder": [True] * 10})
    assert main(["compare", str(folder), str(folder)]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["compare", str(folder), "--features", "encodr"]) == 2
    assert "the features are encoder and the heads are linear, knn" in capsys.readouterr().err
    assert main(["compare", str(folder)]) == 0
    assert "no pair of results with the same head" in capsys.readouterr().out
    shutil.copytree(folder, tmp_path / "x" / "a")
    names = [entry.name for entry in choose_entries([read_results(folder), read_results(tmp_path / "x/a")], None, None)]
    assert len(set(names)) == 2, "folders of the same name are told apart"
