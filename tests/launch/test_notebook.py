"""examples/quickstart.ipynb runs from top to bottom, small, and is stored with its pictures."""

import sys
from pathlib import Path

import pytest

from vjepa.extras import DISTRIBUTION

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SMALL = """CLIPS, MINUTES = 24, 0.001
OVERRIDES = (
    "encoder.width=24 encoder.depth=1 encoder.heads=2 predictor.width=12 predictor.depth=1 predictor.heads=2 "
    "data.crop=32 data.workers=0 run.precision=fp32 run.batch=4 health.pictures_every=null health.matrix_tflops=1"
)
"""
PICTURES = {"image/png", "image/gif"}


def pictures(cell: dict) -> list[str]:  # type: ignore[type-arg]
    return [kind for output in cell.get("outputs", []) for kind in output.get("data", {}) if kind in PICTURES]


def test_stored_notebook_shows_its_pictures_and_no_error() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    assert sum(len(pictures(cell)) for cell in notebook.cells) >= 4
    assert NOTEBOOK.stat().st_size < 3e6
    text = NOTEBOOK.read_text()
    assert "Traceback" not in text
    assert f"pip install '{DISTRIBUTION}[probe]'" in text
    assert str(Path.home()) not in text


@pytest.mark.slow  # a minute of CPU time: three commands and a kernel
@pytest.mark.timeout(600)
def test_notebook_runs_as_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the numbers of its first cell are smaller."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "vjepa"  # of this checkout, whatever is installed
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m vjepa "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source.startswith("CLIPS, MINUTES = ")
    code[0].source = SMALL
    (tmp_path / "work").mkdir()
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    assert sum(len(pictures(cell)) for cell in code) >= 4
    assert (tmp_path / "work" / "mine" / "report.html").is_file()
