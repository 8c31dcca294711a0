"""The completion script does its work in a real shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS, main

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "vjepa"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, **more: lines.append(text))
        assert main(["completion", "bash"]) == 0
    path.write_text("".join(lines))
    return path


def complete(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    line = " ".join(f"'{word}'" for word in ("vjepa", *words))
    program = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _vjepa; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    assert BASH is not None
    return set(subprocess.run([BASH, "-c", program], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_commands_options_configs_and_keys_are_completed(script: Path, tmp_path: Path) -> None:
    assert complete(script, "") >= set(COMMANDS)
    assert complete(script, "exp") == {"export"}
    assert "--table" in complete(script, "features", "--t")
    assert complete(script, "train", "sma") == {"small"}
    assert complete(script, "train", "small", "run.logg") == {"run.loggers="}
    assert "own" in complete(script, "probe", "ow")
    assert complete(script, "pack", "--no-such") == set()


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
def test_files_are_completed_too(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos-of-mine").mkdir()
    assert complete(script, "pack", "videos-of") == {"videos-of-mine"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_script_is_valid(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    assert subprocess.run([shell, "-n", tmp_path / "script"]).returncode == 0
