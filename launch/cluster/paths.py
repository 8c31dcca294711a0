"""Paths in the configs of jobs: made absolute, because a job runs in another folder, and checked before it queues."""

from pathlib import Path
from typing import TypeVar

Text = TypeVar("Text", str, str | None)


def absolute(path: Text) -> Text:
    """Make local paths absolute; URLs, pipes and model names are unchanged."""
    return str(Path(path).absolute()) if path and is_local(path) else path


def absolute_plugins(names: tuple[str, ...]) -> tuple[str, ...]:
    """Make the paths of plugins absolute; dotted names are unchanged."""
    return tuple(str(Path(name).expanduser().absolute()) if name.endswith(".py") else name for name in names)


def need(path: str | None, name: str) -> None:
    """Raise FileNotFoundError, naming the setting, if a local path does not exist."""
    if path and is_local(path) and not Path(path).exists():
        raise FileNotFoundError(f"{name}: there is no {path}")


def is_local(path: str) -> bool:
    """Whether this names a local file or folder."""
    return bool(path) and "://" not in path and not path.startswith(("pipe:", "timm:", "~"))
