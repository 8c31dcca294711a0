"""What --show prints, and docs/configuration.md."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from config_kinds import KINDS

from launch.__main__ import main
from launch.config import load_config
from launch.config_keys import list_keys, read_comments
from launch.describe_config import reference, show_config
from launch.planning.config import PlanConfig
from launch.probing.probe import ProbeConfig
from launch.studies.compare_objectives import StudyConfig
from launch.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"


@dataclass(frozen=True)
class Inner:
    """Fields whose comments stand in all the places where a formatter puts them."""

    plain: int = 3  # behind it, # twice
    bare: int = 4
    choice: Literal["one", "two"] = "one"  # inside parentheses
    # above it,
    # on two lines
    above: tuple[int, int] = (1, 2)
    maybe: float | None = None  # none


@dataclass(frozen=True)
class Outer:
    """A config with a free name."""

    inner: Inner = field(default_factory=Inner)
    named: dict[str, Inner] = field(default_factory=dict)  # by name


def test_comments_are_found_wherever_they_stand() -> None:
    assert read_comments(Inner) == {
        "plain": "behind it, # twice", "bare": "", "choice": "inside parentheses",
        "above": "above it, on two lines", "maybe": "none",
    }  # fmt: skip


def test_keys_have_type_and_default() -> None:
    found = {key.name: (key.type, key.default) for key in list_keys(Outer)}
    assert found["inner.choice"] == ("one | two", "one")
    assert found["inner.above"] == ("[int, int]", (1, 2))
    assert found["named.NAME.maybe"] == ("float or null", None)


def test_shown_keys_carry_their_comment_and_the_default_they_differ_from() -> None:
    shown = show_config(load_config(Outer, None, ["inner.plain=5", "named.x.maybe=0.5"])).splitlines()
    assert shown[2].split("#", 1) == [f"{'  plain: 5':<42}", " [default: 3] behind it, # twice"]
    assert shown[3] == "  bare: 4"
    assert "  above: [1, 2]" in shown[5]
    assert shown[5].endswith("  # above it, on two lines")
    assert shown[-1].startswith("    maybe: 0.5  ")
    assert "[default: null]" in shown[-1]


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda path: path.stem)
def test_what_is_shown_loads_as_the_same_config(path: Path, tmp_path: Path) -> None:
    kind: type = KINDS[path.parent.name]
    config = load_config(kind, path, [])
    (tmp_path / "shown.yaml").write_text(show_config(config))
    assert load_config(kind, tmp_path / "shown.yaml", []) == config


def test_the_command_shows_comments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml"), "--show"]) == 0
    assert "# [default: 3072] clips per optimiser step" in capsys.readouterr().out


def test_the_page_of_all_keys_is_up_to_date() -> None:
    """GOLDEN=1 python -m pytest tests/launch/test_describe_config.py writes it anew."""
    kinds = {
        "Pretraining: `train`, `submit`, `bench`": TrainConfig,
        "Probes: `probe`": ProbeConfig,
        "Planning: `plan`": PlanConfig,
        "Studies: `compare-objectives`": StudyConfig,
    }
    page = reference("Configuration", INTRODUCTION, kinds)
    if os.environ.get("GOLDEN"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, test_the_page_of_all_keys_is_up_to_date.__doc__


INTRODUCTION = """\
Every key of every config: what a YAML file may say and what `key=value` changes on the command line. `--show` prints
the resolved config of a command with the same comments. `NAME` stands for a name of your own. `null` means unset; what
happens then is said under meaning.

A YAML file says only what differs from the defaults, or from another file that it names as `base:` (a path relative to
itself): the values of that file come first, its own replace them key by key, and `key=value` has the last word.

The page is made from the comments in the source by `GOLDEN=1 python -m pytest tests/launch/test_describe_config.py`.
"""
