"""Who may import whom, and that the wheel holds the library alone."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "vjepa": {"vjepa"},
    "data": {"data"},
    "probes": {"probes", "vjepa", "data"},
    "launch": {"launch", "probes", "vjepa", "data"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        crossed = imported(path) & ALLOWED.keys() - ALLOWED[package]
        assert not crossed, f"{path.relative_to(ROOT)} imports {crossed}"


def test_nothing_read_from_a_shard_is_unpickled() -> None:
    for path in (ROOT / "data").rglob("*.py"):
        assert not imported(path) & {"pickle", "marshal", "shelve", "dill"}, path
        assert not {"torch.load", "WebDataset(", "np.load"} & set(path.read_text().split()), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(words, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vjepa", next(top for top in tops if top.endswith(".dist-info"))}
    assert "vjepa/formats/native.py" in names
    assert "vjepa/py.typed" in names


def test_installed_wheel_encodes_a_clip_without_the_training_loop(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean"], check=True)
    clean = tmp_path / "clean" / "bin" / "python"
    site = next((tmp_path / "clean" / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)  # what an installer does with a pure wheel
    installed = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{installed}\n")  # torch and timm, which are too large to fetch again
    program = """
import sys, torch, vjepa
from pathlib import Path
assert "clean" in vjepa.__file__, vjepa.__file__
config = vjepa.EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
encoder = vjepa.load_encoder(vjepa.save_encoder(vjepa.Encoder(config), "encoder"))
features = encoder(vjepa.normalise(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)))
assert features.shape == (1, 32, 24)
assert not {"pytorch_lightning", "data", "webdataset", "decord"} & set(sys.modules)
print("encoded")
"""
    done = subprocess.run([clean, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "encoded", done.stderr
