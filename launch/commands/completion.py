"""Print the shell's completion of commands, options, ready-made configs and config keys.

vjepa completion bash > ~/.local/share/bash-completion/completions/vjepa
vjepa completion zsh > ~/.zfunc/_vjepa          (a folder in $fpath)
"""

import argparse

from launch.completion import SHELLS, write_script
from launch.config_files import list_configs
from launch.config_keys import FREE, list_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `completion`."""
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> None:
    """Print the script."""
    from launch.__main__ import COMMANDS, make_parser  # here: the entry point imports the commands

    choices = {name: [*_options(make_parser(name)), *_words(name)] for name in COMMANDS}
    print(write_script(arguments.shell, choices), end="")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _words(command: str) -> list[str]:
    """Configs and keys that may follow a command, if it takes a config."""
    from launch.probing.probe import ProbeConfig
    from launch.training.config import TrainConfig

    folder, kind = {
        "train": ("pretrain", TrainConfig), "submit": ("pretrain", TrainConfig), "probe": ("probe", ProbeConfig),
    }.get(command, ("", None))  # fmt: skip
    if kind is None:
        return []
    configs = [name.split("/")[1] for name in list_configs() if name.startswith(f"{folder}/")]
    return configs + [
        f"{key.name}=" for key in list_keys(kind.schema() if hasattr(kind, "schema") else kind) if FREE not in key.name
    ]
