"""List the ready-made configs, or print one.

    vjepa configs                              every config with its first line of description
    vjepa configs tiny_cpu > mine.yaml         a copy to edit; then `vjepa train mine.yaml ...`

Commands that take a config find these by name from any folder: `vjepa train tiny_cpu data.path=shards`.
"""

import argparse

from launch.config_files import find_config, list_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `configs`."""
    parser.add_argument("name", nargs="?", help="print this config")


def run(arguments: argparse.Namespace) -> None:
    """Print the list or one file; FileNotFoundError for a name that does not exist."""
    if arguments.name is None:
        width = max(map(len, list_configs()))
        for name, file in list_configs().items():
            print(f"{name:<{width}}  {file.read_text().splitlines()[0].lstrip('# ')}")
        return
    file = find_config(arguments.name)
    if not file.is_file():
        raise FileNotFoundError(f"there is no config {arguments.name}; `vjepa configs` lists them")
    print(file.read_text(), end="")
