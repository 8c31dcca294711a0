"""Who may import whom."""

import ast
import re
from collections.abc import Iterable
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
        assert not {"torch.load", "np.load", "numpy.load", "WebDataset"} & called(path.read_text()), path


def called(source: str) -> set[str]:
    """What a source calls, as torch.load, and by its last name alone where that is a class."""
    names = {ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}
    return names | {last for name in names if (last := name.rsplit(".", 1)[-1])[:1].isupper()}


def test_a_call_is_seen_wherever_it_stands() -> None:
    assert {"torch.load", "WebDataset"} <= called("x = [torch.load(p), wds.WebDataset(u)]")


def test_no_two_modules_import_each_other_not_even_for_types() -> None:
    files = {name_of_module(path): path for package in ALLOWED for path in (ROOT / package).rglob("*.py")}
    arrows = {name: imported_modules(path.read_text(), files.keys()) - {name} for name, path in files.items()}
    assert not circles(arrows)


def test_a_circle_is_found_also_where_it_is_for_types_alone() -> None:
    hidden = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import b\n    from a.c import D\n"
    arrows = {"x": imported_modules(hidden, {"a.b", "a.c", "x"}), "a.b": {"a.c"}, "a.c": {"x"}, "a.e": {"a.b"}}
    assert arrows["x"] == {"a.b", "a.c"}
    assert circles(arrows) == {("a.b", "a.c"), ("a.b", "x"), ("a.c", "x")}


def name_of_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(source: str, known: Iterable[str]) -> set[str]:
    """Modules among `known` that a source imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (within & set(known)) or {node.module}
    return names & set(known)


def circles(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Pairs of modules each of which can be reached from the other."""
    reached = {}
    for start in arrows:
        seen, edge = set[str](), [start]
        while edge:
            found = arrows.get(edge.pop(), set()) - seen
            seen |= found
            edge += found
        reached[start] = seen
    return {(one, two) for one in arrows for two in arrows if one < two and two in reached[one] and one in reached[two]}


def test_an_objective_is_known_by_name_in_its_own_file_alone() -> None:
    for package in ("vjepa", "probes", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            if path.parent.name != "objectives":
                assert not re.search(r"objective\s*(==|!=|in)\s*[\"'(\[]", path.read_text()), path
