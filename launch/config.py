"""Loads a config: a tree of frozen dataclasses filled from YAML files and `key=value` overrides.

A file may name another one as `base:`, relative to itself, whose values it starts from. OmegaConf is an
implementation detail of this module: `load_config` returns plain frozen dataclasses. Its interpolations (`${...}`) are
refused: they read environment variables, and a config should say the same on every machine.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.config_files import find_config, list_configs
from launch.config_keys import declared_defaults, inner_dataclass, list_choices, list_keys, without_none
from launch.describe_config import show_config
from launch.plugins import PLUGINS
from launch.suggest import explain_file, explain_key, explain_value
from vjepa.registry import Registry, import_plugins

BASE = "base"  # the key with which a file names the file it starts from
PLUGIN_KEYS = ("plugins", "run.plugins")  # where a config lists the modules with extensions

Config = TypeVar("Config")
INTERPOLATION = re.compile(r"(?<!\\)(\\\\)*\$\{")


def add_config_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the arguments of every command with a config: the file, the overrides, and --show."""
    parser.add_argument("config", help=f"YAML file, or the name of a ready-made one: {_names(folder)}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as run.steps=100")
    parser.add_argument(
        "--show", action="store_true", help="print the resolved config, each key with its meaning, and exit"
    )


def read_config(kind: type[Config], arguments: argparse.Namespace) -> Config | None:
    """The config that the arguments specify; with --show it is printed instead, and None returned."""
    config = load_config(kind, arguments.config, arguments.overrides)
    if arguments.show:
        print(show_config(config), end="")
        return None
    return config


def load_config(kind: type[Config], path: str | Path | None, overrides: list[str]) -> Config:
    """A config of the dataclass `kind` from a YAML file (None: the defaults) and `key=value` overrides.

    What the command line names with --plugin is added to the plugins of the config, so whoever reads its copy later
    imports the same. Raises FileNotFoundError for a missing file, and ValueError for a cycle of base files, an unknown
    key (naming the closest ones), a value of the wrong type, or a value that the dataclass rejects.
    """
    files = [] if path is None else [(str(file), values) for file, values in read_files(path)]
    given = [_read_override(override) for override in overrides if "=" in override]
    schema = _open_schema(kind, [*(values for _, values in files), *given])
    merged = OmegaConf.merge(OmegaConf.structured(schema), declared_defaults(schema))
    for source, values in files:
        merged = _merge(merged, values, source, schema)
    for override in overrides:
        merged = _merge(merged, _parse_override(override, schema), override, schema)
    for key in PLUGIN_KEYS:
        named = OmegaConf.select(merged, key)
        if named is not None:
            layer = OmegaConf.create()
            OmegaConf.update(layer, key, list(dict.fromkeys([*named, *PLUGINS.get()])))
            merged = OmegaConf.merge(merged, layer)
    return cast(Config, OmegaConf.to_object(merged))


def read_values(kind: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """A config of the dataclass `kind` from plain data; error messages name `source`."""
    given = OmegaConf.create(_escape(dict(values)))
    schema = _open_schema(kind, [given])
    merged = OmegaConf.merge(OmegaConf.structured(schema), declared_defaults(schema))
    return cast(Config, OmegaConf.to_object(_merge(merged, given, source, schema)))


def _open_schema(kind: type, layers: Sequence[Any]) -> type:
    """The dataclass to fill: `kind`, or what `kind.schema()` returns once the plugins named by the layers are imported.

    Layers name plugins under `plugins` or `run.plugins`.
    """
    named: list[str] = []
    for layer in layers:
        for key in PLUGIN_KEYS:
            found = OmegaConf.select(layer, key)
            if found is not None:
                named = [found] if isinstance(found, str) else list(found)
    import_plugins(named)
    opened: type = kind.schema() if hasattr(kind, "schema") else kind
    return opened


def read_files(path: str | Path) -> list[tuple[Path, DictConfig]]:
    """A YAML file and its chain of base files, the outermost base first, with their values without the key `base`.

    Raises FileNotFoundError for a missing file and ValueError for invalid YAML or a cycle of base files.
    """
    file = find_config(path)
    if not file.is_file():
        if "=" in str(path):
            raise FileNotFoundError(f"{path} is an override, not a config: the YAML file must come first")
        raise FileNotFoundError(f"there is no config {path}; {explain_file(file)}")
    chain: list[tuple[Path, DictConfig]] = []
    while True:
        values = _read_yaml(file)
        base = values.pop(BASE, None)
        chain.insert(0, (file, values))
        if base is None:
            return chain
        before, file = file, file.parent / Path(str(base)).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"{before}: base: {base} does not exist, looked for {file}; {explain_file(file)}")
        if any(file.samefile(seen) for seen, _ in chain):
            cycle = " -> ".join(str(seen) for seen in [*(seen for seen, _ in reversed(chain)), file])
            raise ValueError(f"{before}: base: {base} closes a cycle, {cycle}; remove one base")


def to_yaml(config: Any) -> str:
    """A config as plain YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(asdict(config))))


def _names(folder: str) -> str:
    return ", ".join(name.split("/")[-1] for name in list_configs() if f"configs/{name}".startswith(folder))


def _read_yaml(path: Path) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:  # OmegaConf's word for a single value
        raise ValueError(f"{path} must hold `key: value` lines, found something else") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key or 'the file'}: {str(error).splitlines()[0]}") from error
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} must hold `key: value` lines, found a list")
    _refuse_interpolations(OmegaConf.to_container(values), "", str(path))
    return values


def _read_override(text: str) -> DictConfig:
    """The config of one `key=value`."""
    try:
        given = OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text}: the value is not YAML: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{text}: {str(error).splitlines()[0]}") from error
    _refuse_interpolations(OmegaConf.to_container(given), "", text)
    return given


def _refuse_interpolations(value: Any, key: str, source: str) -> None:
    """Raise ValueError for a string with `${`, unless it is escaped."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_interpolations(part, f"{key}.{name}" if key else str(name), source)
    elif isinstance(value, str) and INTERPOLATION.search(value):
        word = f"{key}={value}"
        where = "" if source == word else f"{source}: "
        raise ValueError(
            f"{where}{word} has an interpolation, and none is resolved, not even of environment variables; write the "
            r"value itself (the shell can insert it in an override), or \${ if the text shall contain ${"
        )


def _escape(value: Any) -> Any:
    """Plain data in which OmegaConf takes every string literally."""
    if isinstance(value, dict):
        return {name: _escape(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_escape(part) for part in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value


def _parse_override(text: str, kind: type) -> Any:
    if "=" in text:
        return _read_override(text)
    key = next((key for key in list_keys(kind) if key.name == text), None)
    if key is not None:
        raise ValueError(f"{text} is a key without a value, it must have the form key=value: {text}=... ({key.type})")
    if text.endswith((".yaml", ".yml")):
        raise ValueError(f"{text} is a second file, a command takes only one; a file can name another as `base:`")
    hint = explain_key(text, kind)
    raise ValueError(f"{text!r} must have the form key=value, for instance run.steps=1000; {hint}")


def _merge(base: Any, extra: Any, source: str, kind: type) -> Any:
    _check(kind, OmegaConf.to_container(extra), "", source, kind)
    try:
        return OmegaConf.merge(base, extra)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: {error.full_key or 'the config'}: {reason}") from error


def _check_registered(registry: Registry[Any], value: Any, key: str, source: str) -> None:
    """Raise ValueError for a part that is not registered under the name it is given."""
    for name in value if isinstance(value, list) else [value]:
        if name not in registry.names():
            word = f"{key}={name}"
            where = "" if source == word else f"{source}: "
            raise ValueError(
                f"{where}{word} does not exist; {explain_value(name, registry.names())}; one of your own must be in a "
                "module that the config lists under plugins"
            )


def _check(hint: Any, value: Any, prefix: str, source: str, kind: type) -> None:
    """Raise ValueError for unknown keys and values outside the choices; OmegaConf checks the types."""
    plain, inner = without_none(hint), inner_dataclass(hint)
    if isinstance(plain, type) and is_dataclass(plain) and isinstance(value, dict):
        hints = get_type_hints(plain)
        registries = {entry.name: entry.metadata["registry"] for entry in fields(plain) if "registry" in entry.metadata}
        for name, part in value.items():
            key = f"{prefix}{name}"
            if name not in hints:
                whole = _whole_key(key, part)
                raise ValueError(f"{source}: there is no key {whole}; {explain_key(whole, kind)}")
            _check(hints[name], part, f"{key}.", source, kind)
            if name in registries:
                _check_registered(registries[name], part, key, source)
    elif inner is not None and isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check(inner, part, f"{prefix}{name}.", source, kind)
    elif get_origin(plain) in (tuple, list) and isinstance(value, list):
        for part in value:
            _check(get_args(plain)[0], part, prefix, source, kind)
    elif (choices := list_choices(hint)) and value not in (choices if plain is hint else (*choices, None)):
        assignment = f"{prefix.removesuffix('.')}={value}"
        where = "" if source == assignment else f"{source}: "
        raise ValueError(f"{where}{assignment} does not exist; {explain_value(value, choices)}")


def _whole_key(key: str, value: Any) -> str:
    """The full dotted key, following a value that is a chain of single keys, as in `optimizer.lr=1`."""
    while isinstance(value, dict) and len(value) == 1:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key
