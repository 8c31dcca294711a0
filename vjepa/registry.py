"""Registries of named parts: objectives, masks, target sources, regularisers, encoders, heads, formats.

A decorator registers a part where it is defined; configs refer to it by name. Custom parts live in the user's own
modules, which the config lists under `run.plugins`.

    @OBJECTIVES.register("masked")
    class MaskedObjective(Objective): ...
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from sys import modules
from typing import Any, Generic, TypeVar

Part = TypeVar("Part")
Added = TypeVar("Added")


class Registry(Generic[Part]):
    """Parts of one kind by name. `key`: the config key that selects one; `homes`: modules with the built-in parts."""

    def __init__(self, key: str, *homes: str) -> None:
        self.key, self.homes = key, homes
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Added], Added]:
        """Decorator: register a part under `name`; ValueError if another part has that name."""

        def add(part: Added) -> Added:
            present = self._parts.get(name)
            if present is not None and _identity(present) != _identity(part):
                raise ValueError(
                    f"{self.key}: {name!r} is registered twice, by {_identity(present)} and {_identity(part)}"
                )
            self._parts[name] = part  # type: ignore[assignment]
            return part

        return add

    def find(self, name: str) -> Part:
        """The part registered under `name`; otherwise a ValueError with the closest and all known names."""
        if name not in self._parts:
            names = self.names()
        if name not in self._parts:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? There are" if near else "there are"
            raise ValueError(
                f"{self.key}: there is no {name!r}; {hint} {', '.join(names)}. A custom one must be in a module "
                "listed under plugins in the config, or given with --plugin"
            )
        return self._parts[name]

    def names(self) -> list[str]:
        """All registered names."""
        for home in self.homes:
            import_module(home)
        return list(self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def import_plugins(names: tuple[str, ...] | list[str]) -> None:
    """Import the modules that register custom parts: dotted names, or paths of .py files.

    Raises ValueError if a module cannot be found; errors raised by the module itself are not caught.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(Path(name).expanduser())
            continue
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the plugin exists, but one of its imports does not
            raise ValueError(
                f"run.plugins: there is no module {name!r}; give a dotted name that Python can import from here, or "
                "the path of a .py file"
            ) from error


def _import_file(path: Path) -> None:
    """Import a .py file once, under a name derived from its path."""
    whole = path.resolve()
    # the same name in every process, or a worker could not unpickle what the module defines
    name = f"vjepa_plugin_{hashlib.sha256(str(whole).encode()).hexdigest()[:16]}"
    if name in modules:
        return
    if not whole.is_file():
        raise ValueError(f"run.plugins: there is no file {path}")
    spec = spec_from_file_location(name, whole)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del modules[name]
        raise


def _identity(part: Any) -> str:
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', repr(part))}"


OBJECTIVES: Registry[Any] = Registry("objective", "vjepa.objectives")
ENCODERS: Registry[Any] = Registry(
    "encoder.kind", "vjepa.encoder", "vjepa.encoder21", "vjepa.encoder_causal", "vjepa.world.frames"
)
MASKS: Registry[Any] = Registry("masks.NAME.kind", "vjepa.masks", "vjepa.multiblock")
TARGETS: Registry[Any] = Registry("teacher.source", "vjepa.targets", "vjepa.distillation")
CALLBACKS: Registry[Any] = Registry("callbacks", "vjepa.registry")  # made without arguments, one for every run
REGULARISERS: Registry[Any] = Registry("regulariser.terms", "vjepa.regularise")
DYNAMICS: Registry[Any] = Registry("rollout.predictor", "vjepa.world.dynamics")
