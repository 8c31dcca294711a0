"""Composes the dataclasses of the packages into one config, filled by a YAML file and `key=value` words.

After `load_config` nobody sees OmegaConf: what comes back are frozen dataclasses.
"""

import argparse
import difflib
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from vjepa.registry import import_plugins

Config = TypeVar("Config")


def add_config_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """What every command with a config takes: the file, the words, and --show."""
    parser.add_argument("config", help=f"YAML file; the ready ones are in {folder}")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs from the file, as run.steps=100")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")


def read_config(kind: type[Config], arguments: argparse.Namespace) -> Config | None:
    """The config that the arguments ask for; printed, and None, where they ask to see it."""
    config = load_config(kind, arguments.config, arguments.words)
    if arguments.show:
        print(to_yaml(config), end="")
        return None
    return config


def load_config(kind: type[Config], path: str | Path | None, words: list[str]) -> Config:
    """A config of the dataclass `kind` from a YAML file (None: the defaults) and `key=value` words.

    Raises FileNotFoundError for a missing file and ValueError for a key that does not exist (it names the nearest
    one), a value of the wrong type, or one that the dataclass refuses.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"there is no config {path}; the ready ones are in configs/")
    import_plugins(find_plugins(path, words))
    schema: Any = getattr(kind, "schema", lambda: kind)()
    merged = OmegaConf.merge(OmegaConf.structured(schema), _declared(schema))
    if path is not None:
        merged = _merge(merged, OmegaConf.load(path), str(path), schema)
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word!r} must have the form key=value, for instance run.steps=1000")
        merged = _merge(merged, OmegaConf.from_dotlist([word]), word, schema)
    return cast(Config, OmegaConf.to_object(merged))


def find_plugins(path: str | Path | None, words: list[str]) -> list[str]:
    """The modules that a config names under `plugins` or `run.plugins`: known before anything else is read."""
    found: list[str] = []
    layers = [] if path is None else [OmegaConf.load(path)]
    layers += [OmegaConf.from_dotlist([word]) for word in words if "=" in word]
    for layer in layers:
        for key in ("plugins", "run.plugins"):
            named = OmegaConf.select(layer, key)
            if named is not None:
                found = [named] if isinstance(named, str) else list(named)
    return found


def to_yaml(config: Any) -> str:
    """A config as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _merge(base: Any, extra: Any, source: str, kind: type) -> Any:
    try:
        return OmegaConf.merge(base, extra)
    except ConfigKeyError as error:
        wanted = str(error.full_key)
        near = difflib.get_close_matches(wanted, list(config_keys(kind)), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(config_keys(kind))}"
        raise ValueError(f"{source}: there is no key {wanted}{hint}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: {error.full_key or 'the config'}: {reason}") from error


def _declared(kind: type) -> dict[str, Any]:
    """The defaults as they are written in a dataclass and those inside it.

    OmegaConf takes those inside from an instance, whose `__post_init__` has already worked out what follows from them:
    the width of the default size would then stand beside a size named later.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            found[entry.name] = _declared(cast(type, hints[entry.name]))
        elif entry.default is not MISSING:
            found[entry.name] = entry.default
    return found


def config_keys(kind: type, prefix: str = "") -> list[str]:
    """Every key of a dataclass, dotted; NAME stands for a free name."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        inner = [part for part in get_args(hint) if is_dataclass(part)]
        if is_dataclass(hint):
            keys += config_keys(cast(type, hint), f"{prefix}{name}.")
        elif inner:
            keys += config_keys(cast(type, inner[0]), f"{prefix}{name}.NAME.")
        else:
            keys.append(prefix + name)
    return keys
