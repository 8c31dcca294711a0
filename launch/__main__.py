"""Entry point of `vjepa <command>`: dispatches to a command and prints user errors as one clear message.

`python -m launch <command>` is the same in a checkout. Imports only the standard library, so that `vjepa --version`,
`vjepa doctor` and a message about what is missing work on a bare Python.
"""

import argparse
import sys
import traceback
from importlib import import_module

from data.text import printable
from launch.plugins import PLUGINS, take_plugins
from launch.training import signals
from vjepa import __version__
from vjepa.extras import explain_missing
from vjepa.registry import import_plugins

COMMANDS = {
    "start": "from a folder of videos to a trained encoder and a report, in minutes",
    "demo": "generate videos, pretrain, probe, export and report, all in ten minutes on a laptop",
    "generate": "generate a labelled, packed data set (motions, physics, rooms, equations)",
    "pack": "turn a folder, csv or list of videos into tar shards with a manifest",
    "index": "index tar shards for random access: packed ones, or other tools' webdataset shards",
    "look": "look at a set through an encoder: neighbours, a map, features as colours",
    "inspect": "summarise a folder of shards, and verify it",
    "train": "pretrain an encoder on packed videos",
    "submit": "submit work to SLURM (train, probe, pack, features, ...): job scripts, code snapshot, requeue",
    "status": "show the progress of runs: step, rate, time left, requeues",
    "probe": "evaluate a frozen encoder: attentive, linear and k-NN classification",
    "plan": "plan with a world model in closed loop: success against floor and ceiling",
    "compare-objectives": "train objectives with equal compute and compare them",
    "windows": "build a labelled data set from unlabelled videos: forward or backward, or which video",
    "compare": "test which probe results differ significantly",
    "export": "export an encoder (safetensors, transformers, ONNX, torch.export, V-JEPA's own format)",
    "push": "upload an export to the Hugging Face Hub",
    "features": "extract features from videos of any length with a sliding window",
    "decode": "decode what a model imagines into pixels, and measure how close it comes",
    "surprise": "tell possible from impossible videos by the energy of what is seen",
    "futures": "draw several futures of one past from a predictor with a latent variable",
    "bench": "benchmark a training step, the loader, the decoders or a probe on this machine",
    "configs": "list the ready-made configs, or print one",
    "completion": "print the shell's completion of commands, options and configs",
    "doctor": "show what is installed, which devices and decoders work, and what is missing",
}


def main(argv: list[str]) -> int:
    """Run one command. Exit status: 0 on success, 2 for a user error, 75 for an interrupted run that can continue."""
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    argv, plugins = take_plugins(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        print(f"vjepa {__version__}")
        return 0
    name, *rest = argv
    given = PLUGINS.set(tuple(plugins))
    try:
        if name not in COMMANDS:
            explain = import_module("launch.suggest").explain_command
            raise ValueError(f"there is no command {name!r}; {explain(name, COMMANDS)}")
        import_plugins(plugins)
        command = import_module(f"launch.commands.{name.replace('-', '_')}")
        command.run(make_parser(name).parse_intermixed_args(rest))
    except _user_errors() as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_message(error, name)}", file=sys.stderr)
        return 2
    except signals.Interrupted as message:
        print(message, file=sys.stderr)
        return signals.UNFINISHED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        PLUGINS.reset(given)
    return 0


def make_parser(name: str) -> argparse.ArgumentParser:
    """The argument parser of one command."""
    command = import_module(f"launch.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"vjepa {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--debug shows the traceback of an error; --plugin MODULE imports your own extensions.",
    )
    command.add_arguments(parser)
    return parser


def start() -> None:
    """Run the command in sys.argv and exit with its status."""
    trains = next((argument for argument in take_plugins(sys.argv[1:])[0] if argument != "--debug"), "") == "train"
    if trains:
        signals.install()  # before the slow imports: a signal may arrive during them
    try:
        status = main(sys.argv[1:])
    finally:
        if trains:
            signals.ignore()
    sys.exit(status)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vjepa <command> ...",
            "",
            "Self-supervised video pretraining: predict the representation of what is hidden.",
            "",
            *lines,
            "",
            "vjepa <command> --help shows details; --debug shows the traceback of an error; --version the version.",
        ]
    )


def _user_errors() -> tuple[type[BaseException], ...]:
    """Errors with a message for the user. A command that did not load OmegaConf cannot raise its errors."""
    errors = sys.modules.get("omegaconf.errors")
    return (ValueError, OSError, ImportError, *([errors.OmegaConfBaseException] if errors else []))


def _message(error: BaseException, command: str) -> str:
    """The error's text, printable. Of an OmegaConf error only the first line: the rest repeats it in its own terms."""
    if isinstance(error, ImportError):
        return explain_missing(error, f"vjepa {command}")
    text = str(error) or type(error).__name__
    return printable(text.splitlines()[0] if type(error).__module__.startswith("omegaconf") else text, keep="\n")


if __name__ == "__main__":
    start()
