"""The console script `vjepa`, and `python -m vjepa`: finds the command line and starts it.

The tools are the packages `data`, `probes` and `launch`, whose names are too common for anybody's site-packages. In a
checkout they are beside `vjepa/`; a wheel has them in `vjepa/_tools`. Only this module puts that folder on the path, so
`import vjepa` never makes a package named `data` importable, and no `data` of the user's hides ours.
"""

import sys
from importlib import import_module
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def find_tools() -> Path:
    """The folder that holds `launch`, `data`, `probes` and `configs`."""
    installed = _PACKAGE / "_tools"
    return installed if installed.is_dir() else _PACKAGE.parent


def main() -> None:
    """Run the command that the command line names; exits with its status."""
    tools = str(find_tools())
    rest = [entry for entry in sys.path if entry not in (tools, "", str(Path.cwd()))]
    # The current folder is for plugins by module name. It comes last: a `data` there must not hide ours.
    sys.path[:] = [tools, *rest, str(Path.cwd())]
    import_module("launch.__main__").start()
