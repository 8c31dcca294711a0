"""python -m launch <command>: reads the command line and turns what the user can mend into one clear message."""

import argparse
import sys
import traceback
from importlib import import_module

from omegaconf.errors import OmegaConfBaseException

from launch.suggest import explain_command
from launch.training import signals
from vjepa.registry import import_plugins

COMMANDS = {
    "demo": "generate videos, pretrain, probe, export and report: all of it in ten minutes on a laptop",
    "generate": "make videos of a generated kind (motions, physics, rooms, equations), packed and labelled",
    "pack": "turn a folder, csv or list of videos into tar shards with a manifest",
    "inspect": "print what a folder of shards holds, and check it",
    "train": "pretrain an encoder on packed videos",
    "submit": "send a training, probe or export to SLURM: script, copy of the code, requeue",
    "status": "say where runs are: step, rate, time left, requeues",
    "probe": "measure a frozen encoder: attentive, linear and k-NN classification",
    "compare-objectives": "train objectives at equal compute and put them side by side",
    "windows": "make a labelled set out of videos without labels: forward or backward, or which video",
    "compare": "say which of several probes differ by more than chance",
    "export": "write an encoder for others to load (safetensors, transformers, ONNX, torch.export, V-JEPA's own)",
    "features": "extract features of videos of any length, with a sliding window",
    "bench": "measure a training step, the loader, decoders or a probe on this machine",
    "doctor": "say what is installed, which devices and decoders work, and what is missing",
}


def main(words: list[str]) -> int:
    """Run one command; the exit status is 0, 2 where the input was at fault, 75 where a run was interrupted."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    words, plugins = take_plugins(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    name, *rest = words
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
        epilog="--debug shows the traceback of an error; --plugin MODULE imports parts of your own.",
    )
    command.add_arguments(parser)
    arguments = parser.parse_intermixed_args(rest)
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
    return 0


def take_plugins(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without every `--plugin MODULE`, and the modules: parts of a user's own, for any command."""
    rest, plugins, remaining = [], [], iter(words)
    for word in remaining:
        if word == "--plugin":
            plugins.append(next(remaining, ""))
        elif word.startswith("--plugin="):
            plugins.append(word.removeprefix("--plugin="))
        else:
            rest.append(word)
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
            "python -m launch <command> --help says more; --debug shows the traceback of an error.",
        ]
    )


def _message(error: BaseException) -> str:
    """The error in words; the first line of OmegaConf's, whose further lines repeat it in terms of its internals."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0] if isinstance(error, OmegaConfBaseException) else text


if __name__ == "__main__":
    trains = next((word for word in take_plugins(sys.argv[1:])[0] if word != "--debug"), "") == "train"
    if trains:
        signals.install()  # here, for a signal must not find the process without it
    try:
        status = main(sys.argv[1:])
    finally:
        if trains:
            signals.ignore()
    sys.exit(status)
