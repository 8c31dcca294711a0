"""Entry point of `python -m launch <command>`: dispatches to a command and prints user errors as one clear message."""

import argparse
import sys
import traceback
from importlib import import_module

from omegaconf.errors import OmegaConfBaseException

from data.text import printable
from launch.config import PLUGINS
from launch.suggest import explain_command
from launch.training import signals
from vjepa.registry import import_plugins

COMMANDS = {
    "demo": "generate videos, pretrain, probe, export and report, all in ten minutes on a laptop",
    "generate": "generate a labelled, packed data set (motions, physics, rooms, equations)",
    "pack": "turn a folder, csv or list of videos into tar shards with a manifest",
    "inspect": "summarise a folder of shards, and verify it",
    "train": "pretrain an encoder on packed videos",
    "submit": "submit a training run, probe or export to SLURM: job script, code snapshot, requeue",
    "status": "show the progress of runs: step, rate, time left, requeues",
    "probe": "evaluate a frozen encoder: attentive, linear and k-NN classification",
    "plan": "plan with a world model in closed loop: success against floor and ceiling",
    "compare-objectives": "train objectives with equal compute and compare them",
    "windows": "build a labelled data set from unlabelled videos: forward or backward, or which video",
    "compare": "test which probe results differ significantly",
    "export": "export an encoder (safetensors, transformers, ONNX, torch.export, V-JEPA's own format)",
    "features": "extract features from videos of any length with a sliding window",
    "decode": "decode what a model imagines into pixels, and measure how close it comes",
    "surprise": "tell possible from impossible videos by the energy of what is seen",
    "futures": "draw several futures of one past from a predictor with a latent variable",
    "bench": "benchmark a training step, the loader, the decoders or a probe on this machine",
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
    name, *rest = argv
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; {explain_command(name, COMMANDS)}", file=sys.stderr)
        return 2
    try:
        import_plugins(plugins)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = import_module(f"launch.commands.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"python -m launch {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--debug shows the traceback of an error; --plugin MODULE imports your own extensions.",
    )
    command.add_arguments(parser)
    arguments = parser.parse_intermixed_args(rest)
    given = PLUGINS.set(tuple(plugins))
    try:
        command.run(arguments)
    except (ValueError, OSError, ImportError, OmegaConfBaseException) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
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


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m launch <command> ...",
            "",
            "Self-supervised video pretraining: predict the representation of what is hidden.",
            "",
            *lines,
            "",
            "python -m launch <command> --help shows details; --debug shows the traceback of an error.",
        ]
    )


def _message(error: BaseException) -> str:
    """The error's text, printable. Of an OmegaConf error only the first line: the rest repeats it in its own terms."""
    text = str(error) or type(error).__name__
    return printable(text.splitlines()[0] if isinstance(error, OmegaConfBaseException) else text, keep="\n")


if __name__ == "__main__":
    trains = next((argument for argument in take_plugins(sys.argv[1:])[0] if argument != "--debug"), "") == "train"
    if trains:
        signals.install()  # before the slow imports: a signal may arrive during them
    try:
        status = main(sys.argv[1:])
    finally:
        if trains:
            signals.ignore()
    sys.exit(status)
