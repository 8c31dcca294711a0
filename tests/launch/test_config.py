"""One config out of dataclasses, a file and words; and what happens when it is wrong."""

import ast
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS, main
from launch.config import load_config, to_yaml
from launch.config_keys import config_keys
from launch.probing.probe import ProbeConfig
from launch.training.config import TrainConfig
from vjepa.encoder import SIZES
from vjepa.masks import LONG_RANGE, SHORT_RANGE

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("pretrain/*.yaml")), ids=lambda path: path.stem)
def test_ready_pretraining_configs_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(TrainConfig, path, [])
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(TrainConfig, copy, []) == config
    assert path.read_text().startswith("# "), "the header says the command"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("probe/*.yaml")), ids=lambda path: path.stem)
def test_ready_probe_configs_load(path: Path) -> None:
    load_config(ProbeConfig, path, [])


def test_published_masks_are_the_default_and_named_ones_replace_them() -> None:
    assert load_config(TrainConfig, None, []).jepa.masks == {"short_range": SHORT_RANGE, "long_range": LONG_RANGE}
    named = load_config(TrainConfig, None, ["masks.ahead.kind=future"])
    assert list(named.masks) == ["ahead"]


def names_read(source: str) -> set[str]:
    """Attributes and names in quotes that code reads; a config's check of its own fields is no use of them."""
    found, tree = set(), ast.parse(source)
    checks = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == "__post_init__"]
    guards = [
        one
        for check in checks
        for one in ast.walk(check)
        if isinstance(one, ast.If) and isinstance(one.body[0], ast.Raise)
    ]
    loops = [one.iter for check in checks for one in ast.walk(check) if isinstance(one, ast.For)]
    within = {node for part in (*guards, *loops) for node in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if node not in within or not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in within:
            found.add(node.value)
    return found


def test_a_key_that_is_only_checked_or_named_in_prose_is_not_read() -> None:
    source = (
        'class AConfig:\n    """Has .one."""\n    one = 1\n    def __post_init__(self):\n        if self.one: raise E\n'
    )
    assert "one" not in names_read(source)
    assert "one" in names_read(source + "def use(config):\n    return config.one\n")


def test_every_key_is_read_somewhere() -> None:
    """A key that nothing reads is a promise that nobody keeps."""
    root = CONFIGS.parent
    files = [path for name in ("vjepa", "data", "probes", "launch") for path in (root / name).rglob("*.py")]
    read = set().union(*(names_read(path.read_text()) for path in files))
    for kind in (TrainConfig, ProbeConfig):
        for key in config_keys(kind):
            name = key.rsplit(".", 1)[-1]
            assert name in read, key


@pytest.mark.parametrize("size", list(SIZES))
def test_a_named_size_is_that_size(size: str) -> None:
    encoder = load_config(TrainConfig, None, [f"encoder.size={size}"]).encoder
    assert encoder.shape == SIZES[size]
    assert load_config(TrainConfig, None, [f"encoder.size={size}", "encoder.depth=3"]).encoder.shape.depth == 3


def test_clips_decide_the_size_of_the_encoder() -> None:
    config = load_config(TrainConfig, None, ["data.frames=8", "data.crop=64"])
    assert (config.encoder.frames, config.encoder.crop) == (8, 64)
    assert config.jepa.encoder.grid == (4, 4, 4)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("encoder.dpth=3", "did you mean encoder.depth (blocks"),
        ("run.stesp=3", "did you mean run.steps (optimiser steps"),
        ("masks.a.kindd=future", "no key masks.a.kindd"),
        ("data.crop=abc", "could not be converted to Integer"),
        ("data.crop=100", "data.crop must be a multiple of encoder.patch"),
        (
            "encoder.positions=absolute",
            "error: encoder.positions=absolute does not exist; choose among sincos, sincos_2d, rotary",
        ),
        ("encoder.size", "must have the form key=value"),
        ("run.batch=0", "run.batch must be at least 1"),
    ],
)
def test_wrong_words_are_answered_in_one_line(word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIGS / "pretrain" / "tiny_cpu.yaml"), word, "--show"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_missing_file_and_an_unknown_command_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere.yaml"]) == 2
    assert "there is no config nowhere.yaml" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert "there is no command 'trian'" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "train", "nowhere.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"vjepa {name}" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "x${oc.env:SECRET,none}/y", "${data.path}", "${oc.env:SECRET"])
def test_interpolations_are_refused_with_file_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SECRET", "swordfish")
    file = tmp_path / "c.yaml"
    for text in (f"run: {{output: '{value}'}}", f"run: {{plugins: ['{value}']}}", f"base: '{value}'"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"c.yaml: (run.output|run.plugins|base)") as error:
            load_config(TrainConfig, file, [])
        assert "swordfish" not in str(error.value)
    with pytest.raises(ValueError, match=r"^run.output=.*\$\{") as error:
        load_config(TrainConfig, None, [f"run.output={value}"])
    assert "swordfish" not in str(error.value)


def test_an_escaped_interpolation_is_text_and_survives_a_round_trip(tmp_path: Path) -> None:
    config = load_config(TrainConfig, None, [r"data.path='pipe:cat \${FOLDER}/{}'"])
    assert config.data.path == "pipe:cat ${FOLDER}/{}"
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(TrainConfig, tmp_path / "config.yaml", []) == config


@pytest.mark.parametrize("text", ["a: [1,", "a: b: c", "\t- x", "%", "'", "- 1", "plain", "a: !!python/name:os.system"])
def test_a_file_that_is_no_config_is_an_error_with_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"c.yaml"):
        load_config(TrainConfig, file, [])


@pytest.mark.parametrize("word", ["data.path=[1,", "data.path='", "data.path={", "data.path=!!python/name:os.system"])
def test_an_override_that_is_not_yaml_is_an_error_with_its_text(word: str) -> None:
    with pytest.raises(ValueError, match="not YAML|cannot|Could|could") as error:
        load_config(TrainConfig, None, [word])
    assert word in str(error.value)
