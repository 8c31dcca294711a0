"""The wheel: the console script and every command from any folder, without names in anybody's site-packages."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launch.config_files import CONFIGS, find_config, list_configs
from vjepa.extras import EXTRAS, explain_missing, install_command

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy: an old `build` folder would add files that are gone."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    files = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "vjepa", "data", "probes", "launch", "configs"]
    copy.mkdir()
    subprocess.run(["cp", "-r", *files, f"{copy}/"], check=True, cwd=ROOT)
    words = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run(words, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """site-packages with the wheel alone."""
    site = tmp_path_factory.mktemp("bare")
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture(scope="module")
def script(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vjepa` as pip installs it, in an environment that finds the dependencies installed here."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    installed = next(Path(entry) for entry in sys.path if entry.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{installed}\n")
    return folder / "bin" / "vjepa"


def run(words: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env={**kept, **environment})


def test_wheel_has_every_file_of_the_tools(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = {
        path.relative_to(ROOT).as_posix()
        for folder in ("vjepa", "data", "probes", "launch", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".typed")
        and ("vjepa/" if folder == "vjepa" else f"vjepa/_tools/{folder}/") + path.relative_to(ROOT / folder).as_posix()
        not in names
    }
    assert not missing, f"list their folders under packages in setup.cfg: {missing}"


def test_wheel_holds_one_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"vjepa", next(top for top in tops if top.endswith(".dist-info"))}


def test_script_works_from_an_empty_folder(script: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"vjepa \d+\.\d+\.\d+\n", run([script, "--version"], tmp_path).stdout)
    shown = run([script, "train", "tiny_cpu", "run.steps=7", "--show"], tmp_path)
    assert "steps: 7" in shown.stdout, shown.stderr
    assert not list(tmp_path.iterdir())


def test_doctor_works_after_an_install(script: Path, tmp_path: Path) -> None:
    done = run([script, "doctor"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Everything required is installed" in done.stdout


def test_packages_of_the_same_name_in_the_folder_do_not_hide_the_tools(script: Path, tmp_path: Path) -> None:
    for name in ("data", "launch", "probes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    assert "steps: 100" in run([script, "configs", "tiny_cpu"], tmp_path).stdout
    as_module = [script.parent / "python", "-m", "vjepa", "configs", "tiny_cpu"]
    assert "steps: 100" in run(as_module, tmp_path).stdout


def test_importing_the_library_makes_no_package_named_data_importable(script: Path, tmp_path: Path) -> None:
    program = "import vjepa, importlib.util as u; print([u.find_spec(n) for n in ('data', 'launch', 'probes')])"
    assert run([script.parent / "python", "-c", program], tmp_path).stdout == "[None, None, None]\n"


def test_plugin_by_module_name_is_found_in_the_current_folder(script: Path, tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text("print('imported')\n")
    assert run([script, "--plugin", "ours", "configs"], tmp_path).stdout.startswith("imported\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_bare_python_is_told_what_to_install(version: str, bare: Path, tmp_path: Path) -> None:
    python = find_python(version)
    done = run([python, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(bare)!r})\n{RUN}"], tmp_path)
    assert "pip install 'vjepa-pretraining[train]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    sources = [str(path) for path in bare.rglob("*.py")]
    program = "import sys\nfor p in sys.argv[1:]: compile(open(p, encoding='utf-8').read(), p, 'exec')"
    assert run([python, "-I", "-S", "-c", program, *sources], tmp_path).returncode == 0


RUN = "sys.argv = ['vjepa', 'doctor']\nfrom vjepa.cli import main\nmain()"


def find_python(version: str) -> str:
    """An interpreter of this version without any packages; skipped if there is none."""
    homes = [Path(sys.base_prefix).parent, Path("/usr"), Path("/usr/local")]
    found = [path for home in homes for path in sorted(home.glob(f"{version}*/bin/python{version}"))]
    found += [path for home in homes if (path := home / "bin" / f"python{version}").is_file()]
    if not found:
        pytest.skip(f"there is no Python {version} here")
    return str(found[0])


def test_name_that_needs_more_says_what_to_install(bare: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(bare)!r})
import vjepa
assert "load_encoder" in dir(vjepa)
try:
    vjepa.load_encoder
except ImportError as error:
    print(error)
"""
    done = run([find_python("3.11"), "-I", "-S", "-c", program], tmp_path)
    assert done.stdout == "vjepa.load_encoder needs torch, which is not installed: pip install vjepa-pretraining\n"


def test_library_needs_torch_and_safetensors_alone(script: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys({sorted({*EXTRAS} - {"numpy"})!r}))  # what is not installed
import torch, vjepa
assert "installed" in vjepa.__file__, vjepa.__file__
config = vjepa.EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
encoder = vjepa.load_encoder(vjepa.save_encoder(vjepa.Encoder(config), "encoder"))
print(tuple(encoder(vjepa.normalise(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))).shape))
missing = []
for name in vjepa.__all__:
    try:
        assert getattr(vjepa, name) is not None
    except ImportError as error:
        missing.append(f"{{name}}: {{error}}")
print("; ".join(missing))
"""
    said = run([script.parent / "python", "-c", program], tmp_path)
    lines = said.stdout.splitlines()
    assert lines[:1] == ["(1, 32, 24)"], said.stderr
    assert lines[1].startswith("JEPA: vjepa.JEPA needs pytorch_lightning")
    assert lines[1].endswith("pip install 'vjepa-pretraining[train]'")


def test_an_import_error_that_is_not_about_a_package_keeps_its_text() -> None:
    assert explain_missing(ImportError("cannot import name 'x'"), "vjepa train") == "cannot import name 'x'"
    assert explain_missing(ModuleNotFoundError("No module named 'own'", name="own"), "it") == "No module named 'own'"


def test_every_extra_named_is_declared() -> None:
    declared = (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1].split("\n[")[0]
    for package in EXTRAS:
        extra = re.search(r"\[(\w+)\]", install_command(package))
        assert extra is not None
        assert re.search(rf"^{extra[1]} =$", declared, re.MULTILINE), package


def test_configs_are_found_by_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = CONFIGS / "pretrain" / "tiny_cpu.yaml"
    for name in ("tiny_cpu", "tiny_cpu.yaml", "pretrain/tiny_cpu", "configs/pretrain/tiny_cpu.yaml"):
        assert find_config(name) == file
    (tmp_path / "tiny_cpu").write_text("run: {steps: 3}\n")
    assert find_config("tiny_cpu") == Path("tiny_cpu"), "a file of one's own comes first"
    assert find_config("missing") == Path("missing")


def test_no_two_configs_share_a_short_name() -> None:
    names = [name.rsplit("/", 1)[-1] for name in list_configs()]
    assert sorted(names) == sorted(set(names))


def test_containers_install_every_folder_with_an_extra_that_exists() -> None:
    """No daemon is at hand: the recipes are read, and what they copy and install is compared with the tree."""
    needed = {"pyproject.toml", "setup.cfg", "README.md", "LICENSE", "vjepa", "data", "probes", "launch", "configs"}
    docker = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", docker, re.MULTILINE) for word in line.split()[:-1]]
    apptainer = (ROOT / "apptainer.def").read_text()
    files = [line.split()[0] for line in apptainer.split("%files")[1].split("%post")[0].splitlines() if line.strip()]
    assert set(copied) == set(files) == needed
    assert all((ROOT / name).exists() for name in needed)
    declared = (ROOT / "setup.cfg").read_text()
    for text in (docker, apptainer):
        (extra,) = re.findall(r"pip install --no-cache-dir \S*\[(\w+)\]\S* torchvision", text)
        assert f"\n{extra} =\n" in declared
    assert re.search(r'^ENTRYPOINT \["vjepa"\]$', docker, re.MULTILINE)
    assert "exec vjepa" in apptainer
    instructions = {line.split()[0] for line in docker.splitlines() if line and not line.startswith("#")}
    assert instructions <= {"FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
