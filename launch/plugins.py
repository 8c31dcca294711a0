"""The modules with a user's own extensions that the command line names with --plugin."""

from contextvars import ContextVar

PLUGINS: ContextVar[tuple[str, ...]] = ContextVar("plugins", default=())


def take_plugins(argv: list[str]) -> tuple[list[str], list[str]]:
    """Split off every `--plugin MODULE`, which any command takes: (the remaining arguments, the plugin modules)."""
    rest, plugins, remaining = [], [], iter(argv)
    for argument in remaining:
        if argument == "--plugin":
            plugins.append(next(remaining, ""))
        elif argument.startswith("--plugin="):
            plugins.append(argument.removeprefix("--plugin="))
        else:
            rest.append(argument)
    return rest, plugins
