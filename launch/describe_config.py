"""Configs as text: the output of `--show`, and the page docs/configuration.md."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from launch.config_keys import Key, declared_defaults, list_keys, read_comments

COLUMN = 40  # column in which comments start, unless the line is longer


def show_config(config: Any) -> str:
    """A config as YAML that `load_config` reads back: each key with its comment, and its default if it differs."""
    header = "# [default: X] marks a value that differs from the default X.\n"
    return header + "\n".join(_show(config, declared_defaults(type(config)), "")) + "\n"


def reference(title: str, introduction: str, kinds: Mapping[str, type]) -> str:
    """A Markdown page with every key of several configs: a heading and a table per section."""
    lines = [f"# {title}", "", introduction]
    for heading, kind in kinds.items():
        lines += [f"## {heading}", "", *_document(kind)]
        sections: dict[str, list[Key]] = {}
        for key in list_keys(kind):
            sections.setdefault(key.name.rpartition(".")[0], []).append(key)
        for section, keys in sections.items():
            lines += [f"### {section}", ""] if section else []
            lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
            lines += [_row(key) for key in keys] + [""]
    return "\n".join(lines)


def _document(kind: type) -> list[str]:
    return [" ".join(kind.__doc__.split()), ""] if kind.__doc__ else []


def _row(key: Key) -> str:
    default = "required" if key.required else f"`{_inline(key.default)}`"
    cells = (f"`{key.name}`", key.type, default, key.comment)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _show(config: Any, defaults: Mapping[str, Any], indent: str) -> list[str]:
    kind: type = type(config)
    comments, lines = read_comments(kind), []
    for entry in fields(config):
        value, default = getattr(config, entry.name), defaults.get(entry.name)
        if is_dataclass(value) and not isinstance(value, type):
            inner = default if isinstance(default, dict) else declared_defaults(type(value))
            lines += [_comment(f"{indent}{entry.name}:", comments.get(entry.name, ""))]
            lines += _show(value, inner, f"{indent}  ")
        elif isinstance(value, dict) and value:
            lines += [_comment(f"{indent}{entry.name}:", comments.get(entry.name, ""))]
            for name, part in value.items():
                lines += [f"{indent}  {_inline(name)}:"] if is_dataclass(part) else []
                lines += (
                    _show(part, declared_defaults(type(part)), f"{indent}    ")
                    if is_dataclass(part) and not isinstance(part, type)
                    else [f"{indent}  {_inline(name)}: {_inline(part)}"]
                )
        else:
            differs = _plain(value) != _plain(default)
            note = f"[default: {_inline(default)}] " if differs else ""
            lines.append(_comment(f"{indent}{entry.name}: {_inline(value)}", note + comments.get(entry.name, "")))
    return lines


def _comment(text: str, comment: str) -> str:
    return f"{text:<{COLUMN}}  # {comment}".rstrip() if comment.strip() else text


def _inline(value: Any) -> str:
    """A value as one line of YAML."""
    dumped: str = yaml.safe_dump(
        _plain(value), default_flow_style=True, width=1_000_000, allow_unicode=True, sort_keys=False
    )
    return dumped.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
