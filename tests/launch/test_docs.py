"""The commands and programs printed in the documents work as printed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vjepa
from data.generated.sprites import SyntheticConfig, write_videos
from launch.__main__ import COMMANDS, main, make_parser
from launch.config import load_config
from launch.probing.probe import ProbeConfig
from launch.training.config import TrainConfig
from vjepa.registry import import_plugins

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
KINDS = {"train": TrainConfig, "probe": ProbeConfig}


def printed_commands(page: Path) -> list[str]:
    """Lines that are a `vjepa` command, without trailing remarks; a backslash continues a line."""
    text = page.read_text().replace("\\\n", " ")
    found = re.findall(r"^(?: {4})?(?:\$ )?(vjepa [a-z-].*)$", text, re.MULTILINE)
    return [re.split(r"\s{2,}(?=[#(a-zA-Z])|\s+#|\s>\s", line)[0].strip() for line in found]


LINES = [(page, line) for page in PAGES for line in printed_commands(page)]


@pytest.mark.parametrize(
    ("page", "line"), LINES, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(LINES)]
)
def test_printed_command_parses(page: Path, line: str) -> None:
    words = shlex.split(re.sub(r"(?<=\s)\.\.\.$|\bCONFIG\b", "small", line.removesuffix(" ...")))[1:]
    if words[0] == "--plugin":
        import_plugins([str(ROOT / words[1])])
        words = words[2:]
    assert words[0] in COMMANDS, line
    arguments = make_parser(words[0]).parse_intermixed_args(words[1:])
    overrides = [word.replace("[examples/", f"[{ROOT}/examples/") for word in getattr(arguments, "overrides", [])]
    if words[0] in KINDS:
        load_config(KINDS[words[0]], arguments.config, [word for word in overrides if word not in ("...", "key=value")])


def test_every_test_that_the_page_on_security_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    for name in re.findall(r"`(test_\w+)`", page):
        assert any(f"def {name}(" in source for source in sources), name
    for name in re.findall(r"`(tests/[\w/]+\.py)`", page):
        assert (ROOT / name).is_file(), name


def test_there_are_commands_to_check() -> None:
    assert len(LINES) > 30


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^``` ?python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/training.md"])
def test_python_runs_as_printed(page: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(shards)
    config = vjepa.EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
    vjepa.save_encoder(vjepa.Encoder(config), tmp_path / "vitl-encoder")
    blocks = python_blocks(ROOT / page)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {"clips": torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)})


def test_no_page_has_python_that_no_test_runs() -> None:
    """Those of the tutorial and of formats.md have tests of their own."""
    run = {"README.md", "data.md", "training.md", "tutorial.md", "formats.md"}
    assert {page.name for page in PAGES if page.suffix == ".md" and python_blocks(page)} == run


def test_every_example_is_shown_on_the_site() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    shown = re.findall(r'^--8<-- "examples/(\w+\.py)"$', text, re.MULTILINE)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.slow
def test_tutorial_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its commands in order, then its programs; only the five minutes are shortened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_videos(tmp_path / "videos", 48, 0, SyntheticConfig(size=160, frames=24))
    for line in printed_commands(TUTORIAL):
        short = line.replace("--minutes 5", "--minutes 0.05").replace("run.budget=5min", "run.steps=4")
        assert main(shlex.split(short)[1:]) == 0, line
    assert (tmp_path / "runs" / "videos" / "report.html").is_file()
    assert (tmp_path / "videos.png").is_file()
    for program in re.findall(r"``` python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    mkdocs = shutil.which("mkdocs") or Path(sys.executable).with_name("mkdocs")
    if not Path(mkdocs).is_file():
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    words = [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "api" / "index.html").is_file()
    assert "hide_band" in (tmp_path / "site" / "extending" / "index.html").read_text()
