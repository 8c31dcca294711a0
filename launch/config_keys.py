"""The keys of a config: every field of a dataclass and its nested dataclasses, with type, default and comment.

The comment on a field in the source is its documentation: `--show`, the suggestions for a misspelt key and
docs/configuration.md all print it.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

FREE = "NAME"  # placeholder in a key for a name that the user chooses


@dataclass(frozen=True)
class Key:
    """One setting."""

    name: str  # dotted
    type: str  # in YAML terms, such as "int or null"
    default: Any
    comment: str
    required: bool = False

    @property
    def leaf(self) -> str:
        """Its last part."""
        return self.name.rsplit(".", 1)[-1]


def list_keys(kind: type, prefix: str = "") -> list[Key]:
    """Every key of a dataclass, in source order."""
    keys: list[Key] = []
    hints, comments = get_type_hints(kind), read_comments(kind)
    for entry in fields(kind):
        name, hint = prefix + entry.name, hints[entry.name]
        inner = inner_dataclass(hint)
        if inner is not None:
            keys += list_keys(inner, f"{name}." if is_dataclass(without_none(hint)) else f"{name}.{FREE}.")
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            required = default is MISSING
            keys.append(
                Key(name, describe_type(hint), None if required else default, comments.get(entry.name, ""), required)
            )
    return keys


def config_keys(kind: type) -> list[str]:
    """The dotted names of all keys; NAME stands for a name chosen by the user."""
    return [key.name for key in list_keys(kind)]


def declared_defaults(kind: type) -> dict[str, Any]:
    """The defaults as written in a dataclass and its nested dataclasses.

    An instance will not do: its `__post_init__` may have derived values from the defaults, such as the width of the
    default size, which would be wrong once the size is overridden.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            found[entry.name] = declared_defaults(cast(type, hints[entry.name]))
        elif entry.default is not MISSING:
            found[entry.name] = entry.default
        elif entry.default_factory is not MISSING:
            found[entry.name] = entry.default_factory()
    return found


def inner_dataclass(hint: Any) -> type | None:
    """The dataclass that a type is, or holds in a dict or a list; None for a plain value."""
    return next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)


def without_none(hint: Any) -> Any:
    """`X | None` -> X; any other type unchanged."""
    parts = [part for part in get_args(hint) if part is not NoneType]
    return parts[0] if get_origin(hint) in (Union, UnionType) and len(parts) == 1 else hint


def list_choices(hint: Any) -> tuple[Any, ...]:
    """The choices of a `Literal`, also inside `X | None` and tuples; empty for any other type."""
    plain = without_none(hint)
    if get_origin(plain) is Literal:
        return get_args(plain)
    return next((found for part in get_args(plain) if (found := list_choices(part))), ())


def describe_type(hint: Any) -> str:
    """A type in YAML's terms: `int or null`, `list of float`, `small | large`."""
    plain = without_none(hint)
    suffix = " or null" if plain is not hint else ""
    if get_origin(plain) is Literal:
        return " | ".join(map(str, get_args(plain))) + suffix
    if get_origin(plain) in (tuple, list):
        parts = [part for part in get_args(plain) if part is not Ellipsis]
        many = get_origin(plain) is list or Ellipsis in get_args(plain)
        if many:
            return f"list of {describe_type(parts[0])}{suffix}"
        return f"[{', '.join(map(describe_type, parts))}]{suffix}"
    if get_origin(plain) is dict:
        return f"mapping{suffix}"
    return getattr(plain, "__name__", str(plain)) + suffix


@cache
def read_comments(kind: type) -> dict[str, str]:
    """The comment on each field of a dataclass: after it, inside its parentheses, or on the lines above it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            found |= _comments_of(base)
    return found


def _comments_of(kind: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}  # no source available, so no comments
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found, statements = {}, cast(ast.ClassDef, ast.parse(source).body[0]).body
    before = statements[0].lineno - 1
    for statement in statements:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            numbers = range(before + 1, (statement.end_lineno or statement.lineno) + 1)
            words = [lines[number].removesuffix("fmt: skip").strip() for number in numbers if number in lines]
            found[statement.target.id] = " ".join(word for word in words if word)
        before = statement.end_lineno or statement.lineno
    return found
